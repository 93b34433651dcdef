"""Windows of two directions in turn: which tokens a token hears of after how many blocks."""

import pytest
import torch
from torch import Tensor

from aqnet.grid import Grid
from aqnet.model.tokens.positions import patches_of
from aqnet.model.tokens.wind_scan import NUM_SECTORS, WindScan
from tests.model.builders import grid, inputs, model_of

CALM = NUM_SECTORS


def heard(scan: WindScan, row: int, window: int, blocks: int) -> float:
    """Share of the pairs of tokens that `blocks` blocks connect where a sample reads by `row`."""
    turned = int(scan.quarter[row])
    windows = [scan.ranks[order] // window for order in (row, turned)]
    reached = torch.eye(scan.ranks.shape[1], dtype=torch.bool)
    for block in range(blocks):
        number = windows[block % 2]
        members = torch.nn.functional.one_hot(number).float()
        reached = (members @ ((members.T @ reached.float()) > 0).float()) > 0
    return reached.float().mean().item()


def oval(height: int, width: int) -> Grid:
    lat = torch.linspace(55, 15, height, dtype=torch.float64)[:, None].expand(height, width)
    lon = torch.linspace(70, 140, width, dtype=torch.float64).expand(height, width)
    return Grid(lat, lon, None, ((lat - 36) / 17) ** 2 + ((lon - 104) / 30) ** 2 < 0.8)


@pytest.mark.parametrize("tokens", ["domain", "all"])
def test_three_blocks_connect_every_pair_of_tokens_in_any_wind_and_in_none(tokens):
    patches = patches_of(oval(24, 48), 1)
    every = torch.arange(len(patches.lat))
    chosen = patches.domain.nonzero().squeeze(1) if tokens == "domain" else every
    scan, window = WindScan(patches, chosen), len(chosen) // 8
    for row in range(CALM + 1):
        assert heard(scan, row, window, 1) < 0.2
        assert 0.9 <= heard(scan, row, window, 2) <= 1.0
        assert heard(scan, row, window, 3) == 1.0


def listens(depth: int, fields: Tensor, **settings: str) -> Tensor:
    """Whose temperature the forecast of each token depends on, by its gradient, bool [L, L]."""
    where = grid(6, 8)
    where.mask[:] = True
    _, *times = inputs(6, 8)
    model = model_of(where, patch=1, window=12, depth=depth, attention="window", **settings)
    fields = fields.clone().requires_grad_()
    forecast = model(fields, times[0][:1], times[1][:1])[0, 0, 0].flatten()
    gradients = [
        torch.autograd.grad(value, fields, retain_graph=True)[0][0, 2].flatten()
        for value in forecast
    ]
    return torch.stack(gradients) != 0.0


@pytest.mark.parametrize("air", ["windy", "calm", "raster"])
def test_forecast_of_each_token_hears_of_all_after_three_blocks_and_not_after_one(air):
    fields = inputs(6, 8)[0][:1].nan_to_num(0.0)
    if air == "calm":
        fields[:, :2] = 0.0
    settings = {"scan": "raster"} if air == "raster" else {}
    own = listens(1, fields, **settings)
    assert (own.sum(dim=1) == 12).all()
    assert listens(3, fields, **settings).all()
