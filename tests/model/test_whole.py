"""ClimaX against the whole model in its plain form: forecasts and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from aqnet.batch import Statistics
from aqnet.model.climax import ClimaX
from tests.model.builders import VARIABLES, config_of, grid, inputs
from tests.model.tokens.test_weather import WEATHER, with_weather
from tests.reference.climax import PlainClimaX

# a wind whose normalised values alone would point elsewhere
STATISTICS = Statistics(tuple(VARIABLES), (-3.0, 4.0, *(0.0,) * 6), (10.0, 5.0, *(1.0,) * 6))
LAST_DAYS = {"recent_days": [1, 2, 3, 7, 14, 30]}  # as many channels as WEATHER
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "all tokens": {"tokens": "all"},
    "the original": {
        "tokens": "all",
        "missing": "fill",
        "lead_time_mode": "conditioned",
        "regions": [2, 3],
        "terrain": {"enabled": True, "blocks": [0]},
        "calendar": "off",
        "predict": "value",
        "transport": "off",
    },
    "windows": {"attention": "window", "calendar": "day_and_year"},
    "windows of all tokens": {"attention": "window", "tokens": "all", "window": 8},
    "raster windows": {"attention": "window", "scan": "raster", "lead_time_mode": "conditioned"},
    "no terrain, no scan": {"terrain": {"enabled": False}, "scan_embedding": False},
    "regions of the domain": {"regions": [4, 2], "patch": 1},
    "moved fields alone": {"transport": "fields", "lead_time_mode": "conditioned"},
    "attention along the wind alone": {"transport": "attention", "predict": "value"},
    "along the wind in windows": {"attention": "window", "terrain": {"enabled": False}},
    "no transport": {"transport": "off"},
    "last days": {"more": LAST_DAYS},
    "last days, conditioned": {"more": LAST_DAYS, "lead_time_mode": "conditioned"},
    "last days, value": {"more": LAST_DAYS, "predict": "value"},
    "weather to come": {"more": WEATHER},
    "weather to come, conditioned": {"more": WEATHER, "lead_time_mode": "conditioned"},
    "no transport, flat, in windows": {
        "transport": "off",
        "attention": "window",
        "terrain": {"enabled": False},
    },
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def distance(found: Tensor, expected: Tensor) -> float:
    """Norm-wise, relative."""
    difference = (found.double() - expected).norm() / expected.norm().clamp(min=1e-30)
    return difference.item()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_forecast_and_gradients_are_those_of_the_plain_model(
    settings: dict[str, Any], dtype: torch.dtype
) -> None:
    config, generator = config_of(**settings), torch.Generator().manual_seed(2)
    model = ClimaX(config, grid(), STATISTICS).to(dtype).eval()
    for name, parameter in model.named_parameters():
        values = 0.2 * torch.randn(parameter.shape, generator=generator)
        if name.endswith("travel_time"):
            values *= 4.0  # days, before the input time and beyond the last lead time too
        if name.endswith("travel_width"):
            values += 1.0
        parameter.data.copy_(values)
    if settings.get("transport") != "off":
        model.transport.speed.fill_(1.25)
        model.transport.turn.fill_(-15.0)
    plain = PlainClimaX(config, grid(), STATISTICS).double()
    plain.load_state_dict(model.state_dict())
    fields, *times = with_weather() if "more" in settings else inputs()
    fields[0, :2, 3:6, 2:9], fields[0, :2, 0] = torch.nan, torch.nan  # no wind there
    found, expected = model(fields.to(dtype), *times), plain(fields.to(dtype).double(), *times)
    assert torch.equal(found.isnan(), expected.isnan())
    found, expected = (out[expected.isfinite()] for out in (found, expected))
    assert distance(found, expected) < TOLERANCE[dtype]

    cotangent = torch.randn(found.shape, generator=generator)
    for out in (found, expected):
        (out * cotangent).sum().backward()
    found, expected = (gradients(module) for module in (model, plain))
    for name, gradient in found.items():
        assert distance(gradient, expected[name]) < TOLERANCE[dtype], name


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    """By name; numbers of heads, a few a block, together over the blocks."""
    result: dict[str, list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        if name.endswith((".up", ".down", ".travel_time", ".travel_width")):
            name = name.rpartition(".")[2]
        result.setdefault(name, []).append(parameter.grad.double())
    return {name: torch.cat(parts) for name, parts in result.items()}
