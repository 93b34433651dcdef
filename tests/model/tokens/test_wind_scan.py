import math

import pytest
import torch
from torch import Tensor

from aqnet.errors import AqnetError
from aqnet.grid import Grid
from aqnet.model.tokens.positions import patches_of
from aqnet.model.tokens.wind_scan import NUM_SECTORS, WindScan, wind_sector
from tests.reference.wind_scan import mean_wind_sector, regional_ranks, scan_order


def grid(height: int = 8, width: int = 12, mask: Tensor | None = None, west: float = 80.0) -> Grid:
    lat = torch.linspace(50, 20, height, dtype=torch.float64)[:, None].expand(height, width)
    lon = torch.linspace(west, west + 50, width, dtype=torch.float64).expand(height, width)
    if mask is None:
        mask = torch.ones(height, width, dtype=torch.bool)
    return Grid(lat, lon, None, mask)


def scan_of(where: Grid, regions: tuple[int, int] | None = None) -> tuple[WindScan, Tensor]:
    patches = patches_of(where, 1)
    tokens = patches.domain.nonzero().squeeze(1)
    return WindScan(patches, tokens, regions), tokens


def random_mask(height: int = 8, width: int = 12) -> Tensor:
    return torch.rand(height, width, generator=torch.Generator().manual_seed(3)) < 0.6


@pytest.mark.parametrize("mask", [None, random_mask()], ids=["all", "domain"])
@pytest.mark.parametrize("regions", [None, (2, 3)])
def test_order_then_rank_is_the_identity(mask, regions):
    scan, tokens = scan_of(grid(mask=mask), regions)
    assert scan.orders.shape == (NUM_SECTORS + 2, len(tokens))
    expected = torch.arange(len(tokens)).expand_as(scan.orders)
    assert torch.equal(scan.ranks.gather(1, scan.orders), expected)
    assert torch.equal(scan.orders.gather(1, scan.ranks), expected)


@pytest.mark.parametrize("west", [80.0, 155.0], ids=["china", "across 180 degrees"])
def test_every_sector_reads_tokens_as_the_plain_sort_does(west):
    where = grid(mask=random_mask(), west=west)
    scan, tokens = scan_of(where)
    lat, lon = where.lat.flatten()[tokens], where.lon.flatten()[tokens]
    centre = ((lat.min() + lat.max()).item() / 2, (lon.min() + lon.max()).item() / 2)
    for sector in range(NUM_SECTORS):
        angle = 2 * math.pi * sector / NUM_SECTORS
        assert scan.orders[sector].tolist() == scan_order(lat, lon, centre, angle)


def test_last_two_rows_are_rows_from_the_north_and_columns_from_the_west():
    scan, _ = scan_of(grid(3, 4))
    raster = torch.arange(12).reshape(3, 4)
    assert torch.equal(scan.orders[NUM_SECTORS], raster.flatten())
    assert torch.equal(scan.orders[NUM_SECTORS + 1], raster.T.flatten())
    north = grid(3, 4)
    turned, _ = scan_of(Grid(north.lat.flip(0, 1), north.lon.flip(0, 1), None, north.mask))
    assert torch.equal(turned.orders[NUM_SECTORS], raster.flip(0, 1).flatten())


def test_quarter_turn_is_across_the_wind_and_pairs_the_raster_orders():
    scan, _ = scan_of(grid())
    assert scan.quarter.tolist() == [*range(4, 16), *range(4), 17, 16]


def test_sector_is_that_of_the_plain_mean_over_valid_cells():
    generator = torch.Generator().manual_seed(0)
    mask = random_mask()
    scan, _ = scan_of(grid(mask=mask))
    u = torch.randn(20, 8, 12, generator=generator) + 2 * torch.randn(20, 1, 1, generator=generator)
    v = torch.randn(20, 8, 12, generator=generator) + 2 * torch.randn(20, 1, 1, generator=generator)
    u[torch.rand(u.shape, generator=generator) < 0.3] = torch.nan
    u[:, ~mask] = 1e6  # outside the domain nothing counts
    found = scan.sectors(u, v)[:, 0].tolist()
    valid = mask & u.isfinite()
    rows = zip(u, v, valid, strict=True)
    assert found == [mean_wind_sector(a, b, c, NUM_SECTORS) for a, b, c in rows]


def test_turning_the_wind_by_a_sector_moves_to_the_next():
    turn = 2 * math.pi / NUM_SECTORS
    for sector in range(NUM_SECTORS):
        for offset in (-0.4, 0.0, 0.4):
            angle = torch.tensor((sector + offset) * turn)
            u, v = (5 * angle.cos()).expand(1, 7), (5 * angle.sin()).expand(1, 7)
            assert wind_sector(u, v, torch.ones(1, 7, dtype=torch.bool)).item() == sector


def test_weak_opposed_or_missing_wind_is_calm():
    u = torch.tensor([[0.4, 0.4], [9.0, -9.0], [torch.nan, torch.nan]])
    valid = u.isfinite()
    assert wind_sector(u, torch.zeros_like(u), valid).tolist() == [NUM_SECTORS] * 3


def test_regions_rank_their_own_tokens_by_their_own_wind():
    mask = random_mask()
    mask[:4, :4] = False
    mask[1, 1] = True  # a region of a single token
    where = grid(mask=mask)
    scan, tokens = scan_of(where, (2, 3))
    sector = torch.randint(NUM_SECTORS, (2, 6), generator=torch.Generator().manual_seed(1))
    fraction = scan.fractions(sector)
    for sample in range(2):
        angles = [2 * math.pi * s / NUM_SECTORS for s in sector[sample].tolist()]
        ranks, sizes = regional_ranks(where.lat, where.lon, tokens.tolist(), (2, 3), angles)
        expected = [ranks[token] / max(1, sizes[token] - 1) for token in tokens.tolist()]
        assert torch.allclose(fraction[sample], torch.tensor(expected, dtype=torch.float64))


def test_each_region_has_the_wind_of_its_cells():
    scan, _ = scan_of(grid(), (2, 3))
    u, v = torch.zeros(1, 8, 12), torch.zeros(1, 8, 12)
    u[:, :4, 4:8], v[:, 4:, 8:] = -3.0, 3.0
    calm = NUM_SECTORS
    assert scan.sectors(u, v).tolist() == [[calm, 8, calm, calm, calm, 4]]


def test_regions_that_do_not_divide_the_grid_are_refused():
    with pytest.raises(AqnetError, match=r"model\.regions \[3, 3\].*8 x 12"):
        scan_of(grid(), (3, 3))


def test_elevation_of_a_patch_is_the_mean_of_what_is_known_and_0_without():
    where = grid(2, 4)
    elevation = torch.tensor([[1000.0, torch.nan, torch.nan, torch.nan]]).expand(2, 4)
    patches = patches_of(Grid(where.lat, where.lon, elevation, where.mask), 2)
    assert patches.elevation_km.tolist() == [1.0, 0.0]
