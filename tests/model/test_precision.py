"""bf16 by autocast: what must stay in FP32 does, and the rest comes close."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from aqnet.model.climax import ClimaX
from tests.conftest import run
from tests.model.builders import STATISTICS, config_of, grid, inputs, same

BF16 = {"device_type": "cpu", "dtype": torch.bfloat16}


def single(**settings: str) -> ClimaX:
    """In FP32, as training has it, every parameter in effect."""
    torch.manual_seed(0)
    model = ClimaX(config_of(**settings), grid(), STATISTICS)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("settings", [{}, {"attention": "window", "lead_time_mode": "conditioned"}])
def test_bf16_forecasts_and_gradients_are_fp32_numbers_near_those_of_fp32(settings):
    model = single(**settings).eval()
    fields, *times = inputs()
    expected = model(fields.float(), *times)
    with torch.autocast(**BF16):
        found = model(fields.float(), *times)
    assert found.dtype == torch.float32
    inside = expected.isfinite()
    assert torch.equal(found.isfinite(), inside)
    difference = (found - expected)[inside].norm() / expected[inside].norm()
    assert 1e-5 < difference < 0.03
    found[inside].square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name


def test_wind_and_aggregation_do_not_see_autocast():
    model = single()
    generator = torch.Generator().manual_seed(3)
    fields = torch.randn(200, 8, 8, 12, generator=generator)
    sector = model._sectors(fields)
    assert len(sector.unique()) == 17  # every sector and calm
    pixels, weights = torch.randn(2, 5, 8, 4, generator=generator), model.token_embeds
    arguments = (pixels, None, weights.affine(model.var_embed), model.var_query)
    aggregate = model.var_agg(*arguments)
    with torch.autocast(**BF16):
        assert torch.equal(model._sectors(fields), sector)
        assert torch.equal(model.var_agg(*arguments), aggregate)


@pytest.mark.parametrize("settings", [{}, {"attention": "window"}])
def test_bf16_compiles_whole(settings):
    model = single(**settings).eval()
    fields, *times = inputs()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast(**BF16):
        found, expected = compiled(fields.float(), *times), model(fields.float(), *times)
    assert same(found, expected, 0.05)


def trains(tiny: dict[str, Any], folder: Path, *settings: str) -> dict[str, Tensor]:
    """The weights after four micro-batches a step and validations, or after more of that."""
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump({**tiny, "run_dir": str(folder / "run")}))
    run("train.py", "--config", str(config), *settings)
    assert (folder / "run/status").read_text() == "finished\n"
    latest = (folder / "run/checkpoints/latest").read_text().strip()
    path = folder / "run/checkpoints" / latest / "model.pt"
    weights: dict[str, Tensor] = torch.load(path, weights_only=True)["model"]
    return weights


def test_train_py_trains_in_bf16(tiny: dict[str, Any], tmp_path: Path):
    trains(tiny, tmp_path, "train.precision=bf16", "train.max_steps=2")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_train_py_trains_compiled_and_continues_to_the_same_bits(
    tiny: dict[str, Any], tmp_path: Path
):
    compiled = ("train.compile=true", "train.decay_steps=4", "train.evaluate_after_training=false")
    whole, parts, eager = (tmp_path / name for name in ("whole", "parts", "eager"))
    for folder in (whole, parts, eager):
        folder.mkdir()
    expected = trains(tiny, whole, *compiled, "train.max_steps=4")
    trains(tiny, parts, *compiled, "train.max_steps=2")
    found = trains(tiny, parts, *compiled, "train.max_steps=4")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    plain = trains(tiny, eager, *compiled[1:], "train.max_steps=4")
    moved = [(value - found[name]).norm() for name, value in plain.items()]
    assert 0 < max(moved) < 0.02  # dropout draws other numbers
