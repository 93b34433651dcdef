"""Where tokens' air comes from, on grids around the globe and across its meridians."""

import pytest
import torch
from torch import Tensor

from aqnet.config import Config
from aqnet.grid import Grid, wrapped
from aqnet.model.tokens.positions import Patches, middle_longitude, patches_of
from aqnet.model.transport import Transport
from tests.model.builders import config_of

LAT = torch.tensor([42.0, 41.0, 40.0, 39.0, 38.0], dtype=torch.float64)
WIND = 4.0  # m/s eastward; in 12 h 173 km, less than a column


def grid(lon: Tensor, inside: Tensor | None = None) -> Grid:
    """Rows from the north, of these columns; `inside`: those of the domain."""
    lat, columns = torch.meshgrid(LAT, lon, indexing="ij")
    mask = torch.ones_like(lat, dtype=torch.bool)
    return Grid(lat, columns, None, mask if inside is None else mask & inside)


def parts(where: Grid, patch: int = 1) -> tuple[Config, Grid, Patches, Tensor]:
    """What a `Transport` with attention along the wind is made of."""
    patches = patches_of(where, patch)
    config = config_of(transport="attention", patch=patch, tokens="all")
    return config, where, patches, torch.arange(len(patches.lat))


def displacement(where: Grid, u: float = WIND, v: float = 0.0, patch: int = 1) -> Tensor:
    """Of the air of every patch after 12 h, [1,000 km], shape [h, w, 2]."""
    known = parts(where, patch)
    wind = (torch.full_like(where.lat, part)[None, None] for part in (u, v))
    found = Transport(*known)(*wind, None, torch.arange(4)[None]).displacement
    assert found is not None
    return found[0, :, 0].unflatten(0, known[2].shape)


def around(first: float, step: float = 2.5) -> Tensor:
    """Columns around the whole globe."""
    return first + step * torch.arange(round(360 / step), dtype=torch.float64)


@pytest.mark.parametrize("step", [2.5, 2.4])  # the second is no binary fraction
@pytest.mark.parametrize("first", [0.0, -180.0, 1.25, 100.0])
@pytest.mark.parametrize("westward", [False, True])
def test_around_the_globe_no_column_but_the_edge_has_air_from_elsewhere(
    first: float, step: float, westward: bool
):
    lon = around(first, step)
    found = displacement(grid(lon.flip(0) if westward else lon))[2]
    found = found.flip(0) if westward else found
    expected = -WIND * 12 * 3600 / 1e6
    assert torch.allclose(found[1:, 0], torch.full_like(found[1:, 0], expected), rtol=1e-3)
    assert found[0, 0].abs() < 1e-4  # air over the edge departs from the edge
    assert found[:, 1].abs().max() < 1e-4


def test_grids_of_the_globe_are_cut_where_their_columns_end_and_the_domain_where_it_is_open():
    for first in (0.0, -180.0, 100.0):
        middle = middle_longitude(patches_of(grid(around(first)), 1))
        assert wrapped(middle - (first + 180 - 1.25)).abs() < 1e-9
    padded = patches_of(grid(around(0.0, 2.5)), 5)  # 144 columns: the last patch sticks out
    assert wrapped(middle_longitude(padded) - 180.0).abs() < 10
    lon = around(0.0)
    africa = (lon < 50) | (lon > 340)  # on both sides of where the columns end
    middle = middle_longitude(patches_of(grid(lon, africa), 1))
    assert abs(wrapped(middle.item() - 15.0)) < 1e-9


def test_regions_across_a_meridian_have_the_paths_of_one_elsewhere():
    lon = 100.0 + 2.5 * torch.arange(20, dtype=torch.float64)
    expected = displacement(grid(lon), 3.0, 4.0, patch=2)
    for east in (60.0, 240.0):  # across 180, and across 0 degrees
        for columns in (lon + east, wrapped(lon + east), (lon + east) % 360):
            found = displacement(grid(columns), 3.0, 4.0, patch=2)
            assert torch.allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("v", [0.0, 4.0])
def test_air_crosses_the_cut_of_the_map_inside_the_columns(v: float):
    """Where the domain is on both sides of the last column, the map is cut elsewhere."""
    lon, inside = around(0.0), torch.ones(144, dtype=torch.bool)
    inside[70:74] = False  # a gap of the domain, wide enough for the cut
    assert Transport(*parts(grid(lon, inside))).rounds is not None
    found, expected = (degrees_moved(where, v) for where in (grid(lon, inside), grid(lon)))
    assert torch.allclose(found[:, 1:], expected[:, 1:], atol=0.02)
    assert found[:, 1:].min() > -2.2 and found[:, 1:].max() < -1.8


def degrees_moved(where: Grid, v: float) -> Tensor:
    """Degrees east of each cell that its air comes from, by its place on the map, [H, W]."""
    own = wrapped(where.lon - middle_longitude(patches_of(where, 1)))
    found = displacement(where, v=v)
    east, north = (torch.rad2deg(part / 6.371) for part in found.unbind(-1))
    shrink = (torch.deg2rad(part).cos() for part in (where.lat, where.lat + north))
    here, there = shrink
    return (own * here + east) / there - own


def test_a_patch_half_the_globe_from_the_first_column_lies_where_its_cells_do():
    for first in (0.0, -180.0, 100.0):
        lon = around(first)
        patches = patches_of(grid(lon), 16)  # the fifth holds the column 180 degrees further
        centres = patches.lon.view(patches.shape)[0]
        expected = first + 40.0 * torch.arange(9) + 18.75
        assert wrapped(centres - expected).abs().max() < 1e-9
