import datetime as dt
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aqnet.errors import AqnetError
from aqnet.grid import Grid
from aqnet.model.climax import ClimaX
from aqnet.model.tokens.calendar import calendar_features, calendar_size
from tests.model.builders import grid, inputs, model_of, same


def turned(fields: Tensor, degrees: float) -> Tensor:
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    result = fields.clone()
    result[:, 0] = angle.cos() * fields[:, 0] - angle.sin() * fields[:, 1]
    result[:, 1] = angle.sin() * fields[:, 0] + angle.cos() * fields[:, 1]
    return result


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
    buffers = {"transport.speed", "transport.turn"}
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
    assert set(model.state_dict()) == set(shapes) | buffers  # index tensors are not saved


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
    model = model_of(transport="off", **settings)
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


def test_change_prediction_starts_at_damped_persistence():
    for settings in ({}, {"lead_time_mode": "conditioned"}):
        model = model_of(random=False, **settings)
        rho = torch.rand(4, 2, dtype=torch.float64)
        model.start_from(rho)
        fields, *times = inputs()
        expected = rho[:, :, None, None] * fields[:, None, 3:5].nan_to_num(0.0)
        out = model(fields, *times)
        inside = out.isfinite()
        assert inside.any() and same(out[inside], expected.expand_as(out)[inside])


def test_change_prediction_along_the_wind_starts_at_what_the_air_brings():
    model = model_of(random=False)
    here, there = torch.rand(2, 4, 2, dtype=torch.float64)
    model.start_from(here, there, speed=1.5, turn=-20.0)
    assert (model.transport.speed, model.transport.turn) == (1.5, -20.0)
    fields, *times = inputs()
    moved = model.bring(fields, torch.arange(4).expand(2, 4))
    now = fields[:, None, 3:5].nan_to_num(0.0)
    unknown = moved.targets.isnan()
    brought = torch.where(unknown, now, moved.targets)
    expected = here[:, :, None, None] * now + there[:, :, None, None] * brought
    out = model(fields, *times)
    inside = out.isfinite()
    assert (inside & unknown).any() and (inside & ~unknown).any()
    assert not same(moved.targets[:, 3].nan_to_num(0.0), fields[:, 3:5].nan_to_num(0.0), 1e-2)
    assert inside.any() and same(out[inside], expected.expand_as(out)[inside])


def test_what_a_forecast_starts_from_is_as_exact_in_bf16():
    more = {"recent_days": [1, 7]}
    model = model_of(random=False, more=more).float()
    model.start_from(torch.rand(4, 2), torch.rand(4, 2), torch.rand(2, 4, 2))
    fields, *times = inputs()
    means = torch.randn(2, 4, *fields.shape[2:], generator=torch.Generator().manual_seed(2))
    fields = torch.cat([fields.float(), means], dim=1)
    plain = model(fields, *times)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(fields, *times)
    assert plain.isfinite().any() and torch.equal(found.nan_to_num(7.0), plain.nan_to_num(7.0))


def test_rho_of_another_shape_is_refused_and_what_a_model_lacks_is_not_looked_at():
    with pytest.raises(AqnetError, match=r"expected shape \[4, 2\].*found \[2, 4\]"):
        model_of().start_from(torch.zeros(2, 4))
    with pytest.raises(AqnetError, match=r"expected shape \[4, 2\].*found \[4\]"):
        model_of().start_from(torch.zeros(4, 2), torch.zeros(4))
    for settings in ({"predict": "value"}, {"transport": "off"}, {"transport": "attention"}):
        model_of(**settings).start_from(torch.zeros(4, 2), torch.zeros(4, 2), None, 2.0, 10.0)


@pytest.mark.parametrize(
    ("mode", "leads"),
    [("conditioned", [12, 36]), ("joint", [12]), ("joint", [24, 12, 48, 96])],
)
def test_other_lead_times_are_refused_and_compiled_give_nan(mode, leads):
    model = model_of(lead_time_mode=mode, depth=1)
    with pytest.raises(AqnetError, match=r"lead_time \[.*data\.lead_times \[12, 24, 48, 96\]"):
        model(*inputs(leads=leads))
    if len(leads) == 4 or mode == "conditioned":
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
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
        {"attention": "window", "tokens": "all"},
        {"regions": [2, 3], "tokens": "all"},
        {"regions": [2, 3], "lead_time_mode": "conditioned", "missing": "fill"},
        {"activation_checkpointing": True, "drop_path": 0.0, "drop_rate": 0.0},
    ],
    ids=[
        "joint",
        "window conditioned",
        "window all",
        "regions all",
        "regions conditioned",
        "checkpointing",
    ],
)
def test_forward_and_backward_compile_whole(settings):
    model = model_of(depth=2, **settings)
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


@pytest.mark.parametrize("attention", ["global", "window"])
def test_activation_checkpointing_computes_blocks_twice_and_gradients_alike(attention):
    settings = {"attention": attention, "drop_rate": 0.0, "drop_path": 0.0}
    results = []
    for kept in (False, True):
        model = model_of(activation_checkpointing=kept, **settings).train()
        calls = []
        model.blocks[1].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model(*inputs()).nan_to_num(0.0).square().sum().backward()
        assert len(calls) == (2 if kept else 1)
        results.append([parameter.grad for parameter in model.parameters()])
    assert all(same(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("mode", ["joint", "conditioned"])
def test_lead_times_of_an_input_share_one_embedding(mode):
    model, batches = model_of(lead_time_mode=mode), []
    model.var_agg.register_forward_hook(lambda _, args, out: batches.append(out.shape[0]))
    model(*inputs())
    assert batches == [2]


@pytest.mark.parametrize("mode", ["joint", "conditioned"])
def test_only_target_channels_are_computed(mode):
    model = model_of(lead_time_mode=mode, tokens="all")
    leads = 4 if mode == "joint" else 1
    assert model.head[-1].out_features == 2 * leads * 2 * 2  # 2 targets in patches of 2 x 2
