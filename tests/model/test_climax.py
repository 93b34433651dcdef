import datetime as dt
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aqnet.batch import Grid, Statistics
from aqnet.config import from_dict
from aqnet.errors import AqnetError
from aqnet.model.calendar import calendar_features, calendar_size
from aqnet.model.climax import ClimaX

VARIABLES = ["u", "v", "temp", "pm25", "o3", "lat2d", "lon2d", "elevation"]
TARGETS = ["pm25", "o3"]
LEADS = [12, 24, 48, 96]
STD = (10.0, 10.0, *(1.0,) * 6)


def grid(height: int = 8, width: int = 12) -> Grid:
    lat = torch.linspace(50, 20, height, dtype=torch.float64)[:, None].expand(height, width)
    lon = torch.linspace(80, 130, width, dtype=torch.float64).expand(height, width)
    generator = torch.Generator().manual_seed(5)
    mask = torch.rand(height, width, generator=generator) < 0.5
    mask[:4, :4] = False
    return Grid(lat, lon, 4000 * torch.rand(height, width, generator=generator), mask)


def model_of(where: Grid | None = None, random: bool = True, **settings: Any) -> ClimaX:
    """A small float64 model in evaluation mode; `random` gives every parameter an effect."""
    model = {"embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0, "window": 7}
    split = {"train": ["2013"], "validation": ["2014"], "test": ["2015"]}
    data = {"stores": "s", "variables": VARIABLES, "targets": TARGETS, "lead_times": LEADS}
    tree = {"run_dir": "r", "data": {**data, "split": split}, "train": {"max_steps": 1}}
    config = from_dict({**tree, "model": {**model, **settings}}, "test")
    statistics = Statistics(tuple(VARIABLES), (0.0,) * len(VARIABLES), STD)
    torch.manual_seed(0)
    result = ClimaX(config, where or grid(), statistics).double().eval()
    if random:
        for parameter in result.parameters():
            nn.init.normal_(parameter, std=0.3)
    return result


def inputs(height: int = 8, width: int = 12, leads: list[int] = LEADS) -> tuple[Tensor, ...]:
    """Fields with gaps and a steady north-eastward wind in sample 0, a westward one in 1."""
    generator = torch.Generator().manual_seed(1)
    fields = torch.randn(2, 8, height, width, generator=generator, dtype=torch.float64)
    fields[:, 2:5][torch.rand(2, 3, height, width, generator=generator) < 0.3] = torch.nan
    fields[:, :2] *= 0.01
    fields[0, :2] += 0.6
    fields[1, 0] -= 0.6
    return fields, torch.tensor([400_000, 400_007]), torch.tensor([leads, leads])


def turned(fields: Tensor, degrees: float) -> Tensor:
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    result = fields.clone()
    result[:, 0] = angle.cos() * fields[:, 0] - angle.sin() * fields[:, 1]
    result[:, 1] = angle.sin() * fields[:, 0] + angle.cos() * fields[:, 1]
    return result


def same(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> bool:
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("mode", ["joint", "conditioned"])
@pytest.mark.parametrize("tokens", ["domain", "all"])
def test_forecast_has_all_lead_times_and_is_nan_only_outside_the_tokens(mode, tokens):
    model = model_of(lead_time_mode=mode, tokens=tokens)
    out = model(*inputs())
    assert out.shape == (2, 4, 2, 8, 12)
    patches = grid().mask.reshape(4, 2, 6, 2).any(dim=3).any(dim=1)
    inside = patches.repeat_interleave(2, 0).repeat_interleave(2, 1)
    expected = inside if tokens == "domain" else torch.ones_like(inside)
    assert torch.equal(out.isfinite(), expected.expand_as(out))


def test_parameters_bear_the_names_and_shapes_of_climax():
    model = model_of(lead_time_mode="conditioned")
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    expected = {
        "token_embeds.proj_weights": [8, 16, 1, 2, 2],
        "token_embeds.proj_biases": [8, 16],
        "var_embed": [1, 8, 16],
        "var_query": [1, 1, 16],
        "pos_embed": [1, 24, 16],
        "var_agg.in_proj_weight": [48, 16],
        "var_agg.out_proj.bias": [16],
        "lead_time_embed.weight": [16, 1],
        "blocks.2.attn.qkv.weight": [48, 16],
        "blocks.2.attn.proj.bias": [16],
        "blocks.0.mlp.fc1.weight": [32, 16],
        "blocks.0.norm2.weight": [16],
        "norm.bias": [16],
        "head.4.weight": [8, 16],
    }
    assert expected.items() <= shapes.items()
    assert set(model.state_dict()) == set(shapes)  # index tensors are not saved


def test_one_conditioned_lead_time_is_as_in_the_list():
    model = model_of(lead_time_mode="conditioned")
    fields, time, lead_time = inputs()
    whole = model(fields, time, lead_time)
    mixed = torch.tensor([[48], [12]])
    one = model(fields, time, mixed)
    assert same(one[0, 0], whole[0, 2]) and same(one[1, 0], whole[1, 0])


@pytest.mark.parametrize("settings", [{}, {"attention": "window"}], ids=["global", "window"])
def test_samples_of_a_batch_do_not_touch(settings):
    model = model_of(**settings)
    fields, time, lead_time = inputs()
    single = [model(fields[i : i + 1], time[i : i + 1], lead_time[:1]) for i in range(2)]
    assert same(model(fields, time, lead_time), torch.cat(single))


def wind_only_scan(**settings: Any) -> ClimaX:
    """A model on which wind acts through the order alone: its own embeddings are zero."""
    model = model_of(**settings)
    with torch.no_grad():
        model.token_embeds.proj_weights[:2] = 0
    return model


def test_forecast_ignores_scan_order_without_scan_embedding():
    fields, *times = inputs()
    model = wind_only_scan(scan_embedding=False)
    assert same(model(fields, *times), model(turned(fields, 90.0), *times))


@pytest.mark.parametrize(
    "settings",
    [{}, {"attention": "window", "scan_embedding": False}, {"regions": [2, 3]}],
    ids=["embedding", "windows", "regions"],
)
def test_scan_acts_through_embedding_or_windows(settings):
    fields, *times = inputs()
    model = wind_only_scan(**settings)
    assert not same(model(fields, *times), model(turned(fields, 90.0), *times), 1e-3)
    # within one sector nothing changes
    assert same(model(fields, *times), model(turned(fields, 3.0), *times))


def test_raster_scan_does_not_look_at_the_wind():
    fields, *times = inputs()
    model = wind_only_scan(scan="raster", attention="window")
    assert same(model(fields, *times), model(turned(fields, 90.0), *times))


@pytest.mark.parametrize("attention", ["global", "window"])
def test_window_of_all_tokens_in_any_scan_order_is_global_attention(attention):
    settings = {"scan_embedding": False, "tokens": "all"}
    plain = model_of(attention="global", **settings)
    wide = model_of(attention=attention, window=24, **settings)
    assert same(plain(*inputs()), wide(*inputs()))


@pytest.mark.parametrize("attention", ["global", "window"])
def test_fields_stored_from_the_south_give_the_same_forecast_reversed(attention):
    fields, *times = inputs()
    north = grid()
    south = Grid(*(field.flip(0) for field in (north.lat, north.lon, north.elevation, north.mask)))
    models = [model_of(where, patch=1, attention=attention) for where in (north, south)]
    for model in models:
        nn.init.zeros_(model.pos_embed)
    forecast = models[0](fields, *times)
    assert same(models[1](fields.flip(2), *times).flip(3), forecast)


@pytest.mark.parametrize("terrain", [True, False])
def test_domain_tokens_are_plain_attention_over_the_same_tokens(terrain):
    """The blocks written out over domain tokens alone, terrain as a dense bias."""
    settings = {"terrain": {"enabled": terrain}, "scan_embedding": False, "calendar": "off"}
    model, every = model_of(**settings), model_of(**settings, tokens="all")
    every.load_state_dict(model.state_dict())
    fields, time, lead_time = inputs()
    calm = every.scan.calm(2)
    x = every._embed(fields, calm)[:, model.tokens]
    z = every.elevation_km[model.tokens].double()
    for block in model.blocks:
        x = x + dense_attention(block.attn, block.norm1(x), z if terrain else None)
        x = x + block.mlp(block.norm2(x))
    out = model._to_fields(model.head(model.norm(x)), 2, 4)
    start = model.rho[:, :, None, None] * fields[:, None, 3:5].nan_to_num(0.0)
    assert same(model(fields, time, lead_time), out + start)


def dense_attention(attn: nn.Module, x: Tensor, z: Tensor | None) -> Tensor:
    q, k, v = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    score = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if z is not None:
        climb = z[:, None] - z[None, :]
        up, down = (nn.functional.softplus(p)[:, None, None] for p in (attn.up, attn.down))
        score = score - up * climb.clamp(min=0) - down * (-climb).clamp(min=0)
    return attn.proj((score.softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_change_prediction_starts_at_damped_persistence():
    for settings in ({}, {"lead_time_mode": "conditioned"}):
        model = model_of(random=False, **settings)
        rho = torch.rand(4, 2, dtype=torch.float64)
        model.set_rho(rho)
        fields, *times = inputs()
        expected = rho[:, :, None, None] * fields[:, None, 3:5].nan_to_num(0.0)
        out = model(fields, *times)
        inside = out.isfinite()
        assert inside.any() and same(out[inside], expected.expand_as(out)[inside])


def test_rho_of_another_shape_or_for_values_is_refused():
    with pytest.raises(AqnetError, match=r"expected shape \[4, 2\].*found \[2, 4\]"):
        model_of().set_rho(torch.zeros(2, 4))
    with pytest.raises(AqnetError, match=r"model\.predict: change"):
        model_of(predict="value").set_rho(torch.zeros(4, 2))


@pytest.mark.parametrize(
    ("mode", "leads"),
    [("conditioned", [12, 36]), ("joint", [12]), ("joint", [24, 12, 48, 96])],
)
def test_other_lead_times_are_refused_and_compiled_give_nan(mode, leads):
    model = model_of(lead_time_mode=mode)
    with pytest.raises(AqnetError, match=r"lead_time \[.*data\.lead_times \[12, 24, 48, 96\]"):
        model(*inputs(leads=leads))
    if len(leads) == 4 or mode == "conditioned":
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert compiled(*inputs(leads=leads))[:, -1].isnan().all()


def test_missing_variable_is_ignored_with_ignore_and_counts_as_mean_with_fill():
    fields, *times = inputs()
    fields[:, 2] = torch.nan
    zero = fields.clone()
    zero[:, 2] = 0.0
    ignoring, filling = model_of(), model_of(missing="fill")
    assert ignoring(fields, *times)[..., grid().mask].isfinite().all()
    assert not same(ignoring(fields, *times), ignoring(zero, *times), 1e-3)
    assert same(filling(fields, *times), filling(zero, *times))
    with torch.no_grad():
        before = ignoring(fields, *times)
        ignoring.token_embeds.proj_biases[2] += 1.0
    assert same(before, ignoring(fields, *times))


def test_empty_item_gives_finite_forecasts_and_gradients():
    model = model_of().train()
    fields, *times = inputs()
    out = model(torch.full_like(fields, torch.nan), *times)[..., grid().mask]
    out.sum().backward()
    assert out.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_calendar_starts_without_effect_and_then_knows_hour_and_longitude():
    fields, time, lead_time = inputs()
    fresh = model_of(random=False)
    nn.init.normal_(fresh.head[-1].weight)
    assert same(fresh(fields, time, lead_time), fresh(fields, time + 7, lead_time))
    model = model_of()
    assert not same(model(fields, time, lead_time), model(fields, time + 7, lead_time), 1e-3)


def test_sun_stands_where_the_almanac_says():
    # 20 March 2016, 12:00 UTC, equator: overhead at 0 E, at the horizon 90 degrees away, and
    # 21 June 2016 at 40 N, 120 E: local solar noon at 04:00 UTC, 16.6 degrees from the zenith
    equinox = torch.tensor([(dt.date(2016, 3, 20) - dt.date(1970, 1, 1)).days * 24 + 12])
    june = torch.tensor([[(dt.date(2016, 6, 21) - dt.date(1970, 1, 1)).days * 24 + 4]])
    lat, lon = torch.tensor([0.0, 0.0, 0.0, 40.0]), torch.tensor([0.0, 90.0, 180.0, 120.0])
    features = calendar_features("day_and_year", equinox, june, lat, lon)[0]
    assert features.shape == (4, calendar_size("day_and_year", 1))
    assert torch.allclose(features[:3, 2], torch.tensor([1.0, 0.0, -1.0]), atol=2e-3)
    noon, dusk = torch.tensor([0.0, -1.0]), torch.tensor([-1.0, 0.0])  # sine, cosine of 12 and 18 h
    assert torch.allclose(features[:2, :2], torch.stack([noon, dusk]), atol=1e-5)
    assert math.degrees(math.acos(features[3, 5])) == pytest.approx(16.6, abs=0.3)
    phase = torch.atan2(features[0, 6], features[0, 7]) / (2 * math.pi) * 365.2422
    assert phase.item() == pytest.approx(79.5, abs=1.0)


def test_grid_that_is_no_multiple_of_the_patch_is_padded_and_cut():
    where = grid(7, 11)
    out = model_of(where)(*inputs(7, 11))
    assert out.shape == (2, 4, 2, 7, 11)
    assert out[..., where.mask].isfinite().all()


def test_settings_that_do_not_fit_are_refused():
    flat = Grid(grid().lat, grid().lon, None, grid().mask)
    with pytest.raises(AqnetError, match=r"model\.terrain\.enabled"):
        model_of(flat)
    with pytest.raises(AqnetError, match=r"model\.embed_dim 18"):
        model_of(embed_dim=18)
    with pytest.raises(AqnetError, match="no valid cell"):
        model_of(Grid(grid().lat, grid().lon, grid().elevation, torch.zeros(8, 12).bool()))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"attention": "window", "lead_time_mode": "conditioned", "calendar": "day_and_year"},
        {"regions": [2, 3], "tokens": "all"},
        {"activation_checkpointing": True, "drop_path": 0.0, "drop_rate": 0.0},
    ],
    ids=["joint", "window", "regions", "checkpointing"],
)
def test_forward_and_backward_compile_whole(settings):
    model = model_of(**settings)
    if settings.get("activation_checkpointing"):
        model.train()
    args = inputs()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found, expected = compiled(*args), model(*args)
    assert same(found, expected)
    parameters = list(model.parameters())
    gradients = [
        torch.autograd.grad(out.nan_to_num(0.0).square().sum(), parameters)
        for out in (found, expected)
    ]
    assert all(same(a, b, 1e-8) for a, b in zip(*gradients, strict=True))
