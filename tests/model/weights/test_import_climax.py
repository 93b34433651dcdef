"""Microsoft's ClimaX: what a model of its size takes, and that it then computes the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aqnet import config as configs
from aqnet.batch import Statistics
from aqnet.checkpoint import files as checkpoint_files
from aqnet.errors import AqnetError
from aqnet.model.weights.import_climax import VARIABLES, resized_kernels
from aqnet.model.weights.import_weights import blank_model, import_weights
from aqnet.model.weights.transfer import Report, resized_positions, take_weights
from tests.model.weights.checkpoints import SHAPE, config
from tests.reference.aq_net2 import encode, head, image

DIM, HEADS, DEPTH, PATCH = 32, 16, 8, 2
TAKEN = {"u": 4, "v": 5, "temp": 3, "rh": 40, "lat2d": 2, "elevation": 1}


def climax_state(names: str = "var", patch: int = PATCH, length: int = 32) -> dict[str, Tensor]:
    """State dict with the published keys; `names` is how the aggregation was called."""
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    state = {
        f"{names}_embed": random(1, 48, DIM),
        f"{names}_query": random(1, 1, DIM),
        f"{names}_agg.in_proj_weight": random(3 * DIM, DIM),
        f"{names}_agg.in_proj_bias": random(3 * DIM),
        f"{names}_agg.out_proj.weight": random(DIM, DIM),
        f"{names}_agg.out_proj.bias": random(DIM),
        "pos_embed": random(1, length, DIM),
        "lead_time_embed.weight": random(DIM, 1),
        "lead_time_embed.bias": random(DIM),
        "norm.weight": 1 + random(DIM),
        "norm.bias": random(DIM),
    }
    for v in range(48):
        state[f"token_embeds.{v}.proj.weight"] = random(DIM, 1, patch, patch)
        state[f"token_embeds.{v}.proj.bias"] = random(DIM)
    for number in range(DEPTH):
        block = f"blocks.{number}."
        for norm in ("norm1", "norm2"):
            state |= {f"{block}{norm}.weight": 1 + random(DIM), f"{block}{norm}.bias": random(DIM)}
        for name, rows, columns in (
            ("attn.qkv", 3 * DIM, DIM),
            ("attn.proj", DIM, DIM),
            ("mlp.fc1", 4 * DIM, DIM),
            ("mlp.fc2", DIM, 4 * DIM),
        ):
            state[f"{block}{name}.weight"] = random(rows, columns)
            state[f"{block}{name}.bias"] = random(rows)
    for name, rows in (("head.0", DIM), ("head.2", DIM), ("head.4", 48 * patch**2)):
        state |= {f"{name}.weight": random(rows, DIM), f"{name}.bias": random(rows)}
    return state


def where(**settings: Any) -> configs.Config:
    sizes = {"embed_dim": DIM, "num_heads": HEADS, "depth": DEPTH, "compatibility": "none"}
    return config(**{**sizes, **settings})


def imported(
    state: dict[str, Tensor], target: configs.Config, tmp_path: Path
) -> tuple[Report, checkpoint_files.Loaded]:
    path = tmp_path / "climax.ckpt"
    torch.save({"state_dict": {f"net.{key}": value for key, value in state.items()}}, path)
    report = import_weights(path, target, tmp_path / "out", SHAPE)
    return report, checkpoint_files.read(tmp_path / "out")


@pytest.mark.parametrize("names", ["var", "channel"])
def test_a_model_of_its_variables_and_size_computes_the_same(names: str, tmp_path: Path):
    target = where(variables=list(TAKEN), targets=["temp", "u"])
    _, loaded = imported(climax_state(names), target, tmp_path)
    model = blank_model(target, SHAPE).eval()
    assert model.load_state_dict(loaded.model, strict=False).unexpected_keys == []
    fields = torch.randn(2, len(TAKEN), *SHAPE)
    plain = climax_state("var")
    chosen = list(TAKEN.values())
    plain["var_embed"] = plain["var_embed"][:, chosen]
    kernels = [plain[f"token_embeds.{v}.proj.weight"] for v in chosen]
    biases = [plain[f"token_embeds.{v}.proj.bias"] for v in chosen]
    plain["token_embeds.proj_weights"] = torch.stack(kernels)
    plain["token_embeds.proj_biases"] = torch.stack(biases)
    for part in ("weight", "bias"):  # the outputs are the new model's own
        plain[f"head.4.{part}"] = model.state_dict()[f"head.4.{part}"]
    hours = torch.tensor([[12, 24, 48, 96]] * 2)
    with torch.no_grad():
        ours = model(fields, torch.zeros(2, dtype=torch.int64), hours)
    for at in range(4):
        lead = hours[:, at] / 100
        tokens = encode(plain, fields, lead, HEADS, PATCH, torch.zeros(2, 32))
        theirs = image(head(plain, tokens), fields, PATCH)
        torch.testing.assert_close(ours[:, at], theirs, rtol=0, atol=1e-5)


def test_every_name_is_taken_initialised_or_dropped_with_a_reason(tmp_path: Path):
    target = where(
        calendar="day", terrain={"enabled": True}, predict="change", lead_time_mode="joint"
    )
    state = climax_state("channel")
    report, loaded = imported(state, target, tmp_path)
    assert loaded.model.keys() == report.taken.keys()
    whole = blank_model(target, SHAPE).state_dict().keys()
    assert whole <= report.taken.keys() | report.initialised.keys()
    assert report.dropped["head.4.weight"] == "other targets than ClimaX's variables"
    assert report.dropped["lead_time_embed.bias"] == "the model has no such tensor"
    assert report.initialised["variable pm25"] == "not in ClimaX"
    assert report.initialised["blocks.3.attn.up"] == "not in ClimaX"
    assert report.initialised["rho"] == "not in ClimaX"
    (others,) = [name for name in report.dropped if name.startswith("variables ")]
    assert "land_sea_mask" in others and "10m_u" not in others and others.count(",") == 41
    aggregated = {key.replace("channel", "var") for key in state if "token_embeds" not in key}
    assert aggregated <= report.taken.keys() | report.dropped.keys()
    at = target.data.variables.index("rh")
    kernels = loaded.model["token_embeds.proj_weights"]
    assert torch.equal(kernels[at], state["token_embeds.40.proj.weight"])
    assert VARIABLES[40] == "relative_humidity_925" and len(VARIABLES) == 48


def test_patch_kernels_and_positions_are_resized(tmp_path: Path):
    state = climax_state(patch=4, length=2 * 8**2)  # 8 x 16 patches of a coarser kind
    report, loaded = imported(state, where(), tmp_path)
    assert "resized from 8 x 16 patches" in report.taken["pos_embed"]
    image = state["pos_embed"].transpose(1, 2).reshape(1, DIM, 8, 16)
    expected = F.interpolate(image, size=(4, 8), mode="bicubic", align_corners=False)
    ours = loaded.model["pos_embed"].transpose(1, 2).reshape(1, DIM, 4, 8)
    torch.testing.assert_close(ours, expected)
    u, kernel = loaded.model["token_embeds.proj_weights"][0], state["token_embeds.4.proj.weight"]
    assert u.shape[-1] == 2
    torch.testing.assert_close(u[:, 0, 0, 1], kernel[:, 0, :2, 2:].sum(dim=(1, 2)))


@pytest.mark.parametrize(("old", "new"), [(4, 2), (2, 4), (2, 2), (4, 3)])
def test_a_constant_field_gives_the_same_token_through_a_resized_kernel(old: int, new: int):
    weights = torch.randn(3, 5, 1, old, old)
    resized = resized_kernels(weights, new)
    assert resized.shape == (3, 5, 1, new, new)
    torch.testing.assert_close(resized.sum(dim=(2, 3, 4)), weights.sum(dim=(2, 3, 4)))


def test_positions_of_the_same_size_stay():
    table = torch.randn(1, 32, 8)
    torch.testing.assert_close(resized_positions(table, (4, 8), (4, 8)), table)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"embed_dim": 48}, ["embed_dim 48", "can take nothing", "china_climax_1024"]),
        ({"num_heads": 8}, ["num_heads 8", "can take nothing"]),
    ],
)
def test_another_size_can_take_nothing_and_is_told_so(
    settings: dict[str, Any], words: list[str], tmp_path: Path
):
    with pytest.raises(AqnetError) as error:
        imported(climax_state(), where(**settings), tmp_path)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("shape", [(1, 15, DIM), (1, 24, DIM), (1, 32, 7)])
def test_positions_that_are_no_global_grids_are_refused(shape: tuple[int, ...], tmp_path: Path):
    state = climax_state()
    state["pos_embed"] = torch.ones(shape)
    with pytest.raises(AqnetError, match="twice as wide as high"):
        imported(state, where(), tmp_path)


def test_a_run_can_start_from_it_but_nothing_evaluates_without_statistics(tmp_path: Path):
    target = where(predict="change")
    imports, loaded = imported(climax_state(), target, tmp_path)
    model = blank_model(target, SHAPE)
    model.start_from(torch.full((4, 6), 0.5))  # as a run does from its data
    report = take_weights(model, target, loaded)
    assert report.taken.keys() == imports.taken.keys() and not report.dropped
    assert report.initialised["variable pm25"] == "not in ClimaX"
    assert report.initialised["rho"] == report.initialised["head.4.bias"] == "not in the checkpoint"
    state, source = model.state_dict(), climax_state()
    assert torch.equal(state["blocks.7.attn.qkv.weight"], source["blocks.7.attn.qkv.weight"])
    assert torch.equal(state["rho"], torch.full((4, 6), 0.5))
    with pytest.raises(AqnetError, match="no statistics"):
        Statistics.from_dict(loaded.state["statistics"])


def test_the_shipped_configuration_is_one_that_takes_them():
    shipped = configs.load(Path(__file__).parents[3] / "configs/china_climax_1024.yaml")
    model = shipped.model
    assert (model.embed_dim, model.depth, model.num_heads, model.decoder_depth) == (1024, 8, 16, 2)
    assert model.mlp_ratio == 4.0 and model.lead_time_mode == "conditioned"
    assert set(TAKEN) <= set(shipped.data.variables)
