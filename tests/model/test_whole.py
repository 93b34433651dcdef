"""ClimaX against the whole model in its plain form: forecasts and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from aqnet.batch import Statistics
from aqnet.model.climax import ClimaX
from tests.model.builders import VARIABLES, config_of, grid, inputs
from tests.reference.climax import PlainClimaX

# a wind whose normalised values alone would point elsewhere
STATISTICS = Statistics(tuple(VARIABLES), (-3.0, 4.0, *(0.0,) * 6), (10.0, 5.0, *(1.0,) * 6))
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
    },
    "windows": {"attention": "window", "calendar": "day_and_year"},
    "windows of all tokens": {"attention": "window", "tokens": "all", "window": 8},
    "raster windows": {"attention": "window", "scan": "raster", "lead_time_mode": "conditioned"},
    "no terrain, no scan": {"terrain": {"enabled": False}, "scan_embedding": False},
    "regions of the domain": {"regions": [4, 2], "patch": 1},
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
    for parameter in model.parameters():
        values = 0.2 * torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(values)
    plain = PlainClimaX(config, grid(), STATISTICS).double()
    plain.load_state_dict(model.state_dict())
    fields, *times = inputs()
    found, expected = model(fields.to(dtype), *times), plain(fields.to(dtype).double(), *times)
    assert torch.equal(found.isnan(), expected.isnan())
    found, expected = (out[expected.isfinite()] for out in (found, expected))
    assert distance(found, expected) < TOLERANCE[dtype]

    cotangent = torch.randn(found.shape, generator=generator)
    for out in (found, expected):
        (out * cotangent).sum().backward()
    references = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and references[name].grad is not None
        assert distance(parameter.grad, references[name].grad) < TOLERANCE[dtype], name
