"""Coordinates of grids: longitudes, areas, sameness, and points found in index space."""

import numpy as np
import pytest
import torch

from aqnet import grid as grids
from aqnet.grid import Grid
from tests.data.source_writers import lambert


def degrees(lat: np.ndarray, lon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lats, lons = np.meshgrid(lat, lon, indexing="ij")
    return lats, lons


@pytest.mark.parametrize("number", [0.0, 179.0, 180.0, -180.0, 181.0, 359.0, -540.0])
def test_differences_of_longitude_are_brought_within_180_degrees(number: float):
    expected = {179.0: 179.0, 181.0: -179.0, 359.0: -1.0}.get(number, 0.0 if number == 0 else -180)
    assert grids.wrapped(number) == expected
    assert grids.wrapped(np.array([number]))[0] == expected
    assert grids.wrapped(torch.tensor([number]))[0] == expected


def test_longitudes_from_0_and_from_minus_180_are_the_same_place():
    lat, lon = degrees(np.arange(3.0), np.arange(178.0, 184.0))
    assert grids.same_place(lat, lon, lat + 1e-5, np.where(lon > 180, lon - 360, lon))
    assert not grids.same_place(lat, lon, lat, lon + 0.1)
    assert not grids.same_place(lat, lon, lat[::-1], lon)
    assert not grids.same_place(lat, lon, lat[:2], lon[:2])


def test_degree_grids_are_told_from_projected_ones_also_across_the_date_line():
    lat, lon = degrees(np.linspace(50, 20, 4), np.array([179.0, -180.0, -179.0]))
    assert grids.on_degrees(lat, lon)
    np.testing.assert_allclose(grids.cell_areas(lat, lon), np.cos(np.radians(lat)))
    lat, lon, _ = lambert(5, 6, 100.0)
    assert not grids.on_degrees(lat, lon)
    assert (grids.cell_areas(lat, lon) == 1).all()
    mask = torch.ones(5, 6, dtype=torch.bool)
    assert not Grid(torch.from_numpy(lat), torch.from_numpy(lon), None, mask).on_degrees


@pytest.mark.parametrize("north_first", [False, True])
@pytest.mark.parametrize("turn", [0.0, 75.0])  # degrees: the grid then crosses the date line
def test_points_are_found_in_a_lambert_grid(north_first: bool, turn: float):
    lat, lon, _ = lambert(60, 80, 60.0, north_first)
    lon = grids.continuous(grids.wrapped(lon + turn))
    rng = np.random.default_rng(3)
    y, x = rng.uniform(-0.4, 59.4, 500), rng.uniform(-0.4, 79.4, 500)
    inside = grids.interpolated(np.stack((lat, lon)), y, x)[0]
    found = grids.located(inside[0], grids.wrapped(inside[1]), lat, lon)
    np.testing.assert_allclose(found[0], y, atol=1e-6)
    np.testing.assert_allclose(found[1], x, atol=1e-6)
    far = np.array([0.0, 80.0, lat.min() - 2]), np.full(3, lon[0, 0])
    assert np.isnan(grids.located(*far, lat, lon)).all()


def test_points_beyond_the_cells_of_a_grid_are_not_found():
    lat, lon = degrees(np.arange(10.0, 13.0), np.arange(4.0))
    y, x = grids.located(np.array([9.6, 9.4, 12.4]), np.array([3.4, 1.0, 3.6]), lat, lon)
    np.testing.assert_allclose(y, [-0.4, np.nan, np.nan], atol=1e-9)
    np.testing.assert_allclose(x, [3.4, np.nan, np.nan], atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1)])
def test_of_a_single_row_or_column_the_centres_are_found(shape: tuple[int, int]):
    rng = np.random.default_rng(4)
    lat, lon = rng.uniform(20, 50, shape), rng.uniform(80, 130, shape)
    y, x = grids.located(lat.ravel(), lon.ravel(), lat, lon)
    np.testing.assert_array_equal(y * shape[1] + x, np.arange(lat.size))
    y, x = grids.located(lat.ravel() + 0.01, lon.ravel(), lat, lon)
    assert np.isnan(y).all() and np.isnan(x).all()
