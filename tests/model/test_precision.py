"""bf16 by autocast: what must stay in FP32 does, and the rest comes close."""

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from aqnet.batch import Batch
from aqnet.model.climax import ClimaX
from aqnet.training.optimizer import make_optimizer
from aqnet.training.step import TrainingState, optimizer_step
from tests.conftest import run
from tests.model.builders import LEADS, STATISTICS, TARGETS, config_of, grid, inputs, same

BF16 = {"device_type": "cpu", "dtype": torch.bfloat16}


def single(**settings: Any) -> ClimaX:
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


def trained(compiled: bool, parts: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
    """Weights after steps of two micro-batches, and a forecast on the way; a new part begins from
    the states of the one before."""
    fields, *times = inputs()
    targets = torch.zeros(2, len(LEADS), len(TARGETS), *grid().shape)
    batch = Batch(fields.float(), *times, targets, grid().mask.expand_as(targets))
    states, step = None, 0
    for steps in parts:
        model, device = single(depth=1), torch.device("cpu")
        if compiled:
            torch._dynamo.reset()
            model.compile(backend="aot_eager")
        optimizer = make_optimizer(model, config_of().train)
        if states is not None:
            model.load_state_dict(states[0])
            optimizer.load_state_dict(states[1])
        state = TrainingState(config_of(), model, model, optimizer, device)
        for _ in range(steps):
            assert optimizer_step(state, iter([batch] * 2), 2, step, [0.0]).updated
            model.eval()
            with torch.inference_mode():
                forecast = model(*batch[:3])
            model.train()
            step += 1
        states = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    assert states is not None
    return states[0], forecast


@pytest.mark.slow
def test_compiled_training_accumulates_validates_and_continues_to_the_same_bits():
    # by the compiler's front; the slow test below has its kernels
    weights, forecast = trained(True, [2])
    again, later = trained(True, [1, 1])
    plain, eager = trained(False, [2])
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    assert torch.equal(forecast.nan_to_num(0.0), later.nan_to_num(0.0))
    assert all(same(plain[name], value, 1e-4) for name, value in weights.items())
    assert same(eager, forecast, 1e-4)


def trains(tiny: dict[str, Any], folder: Path, *settings: str) -> dict[str, Tensor]:
    """The last weights of a run by train.py in that folder, which may go on there."""
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
def test_train_py_trains_compiled(tiny: dict[str, Any], tmp_path: Path):
    trains(tiny, tmp_path, "train.compile=true", "train.max_steps=2")
