"""A small model, its grid and its inputs, for the tests of the model."""

from typing import Any

import torch
from torch import Tensor, nn

from aqnet.batch import Statistics
from aqnet.config import Config, from_dict
from aqnet.grid import Grid
from aqnet.model.climax import ClimaX

VARIABLES = ["u", "v", "temp", "pm25", "o3", "lat2d", "lon2d", "elevation"]
TARGETS = ["pm25", "o3"]
LEADS = [12, 24, 48, 96]
STATISTICS = Statistics(tuple(VARIABLES), (0.0,) * 8, (10.0, 10.0, *(1.0,) * 6))


def grid(height: int = 8, width: int = 12) -> Grid:
    lat = torch.linspace(50, 20, height, dtype=torch.float64)[:, None].expand(height, width)
    lon = torch.linspace(80, 130, width, dtype=torch.float64).expand(height, width)
    generator = torch.Generator().manual_seed(5)
    mask = torch.rand(height, width, generator=generator) < 0.5
    mask[:4, :4] = False
    return Grid(lat, lon, 4000 * torch.rand(height, width, generator=generator), mask)


def config_of(more: dict[str, Any] | None = None, **settings: Any) -> Config:
    """A small model with `settings` in place of its defaults; `more` keys of `data`."""
    model = {"embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0, "window": 7}
    split = {"train": ["2013"], "validation": ["2014"], "test": ["2015"]}
    data = {"stores": "s", "variables": VARIABLES, "targets": TARGETS, "lead_times": LEADS}
    tree = {
        "run_dir": "r",
        "data": {**data, "split": split, **(more or {})},
        "train": {"max_steps": 1},
    }
    return from_dict({**tree, "model": {**model, **settings}}, "test")


def model_of(where: Grid | None = None, random: bool = True, **settings: Any) -> ClimaX:
    """A small float64 model in evaluation mode; `random` gives every parameter an effect; settings
    are those of `config_of`."""
    torch.manual_seed(0)
    result = ClimaX(config_of(**settings), where or grid(), STATISTICS).double().eval()
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


def same(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> bool:
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
