"""Bilinear interpolation against scipy on degree grids and against plane fields on others."""

import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from aqnet.evaluation.interpolation import bilinear

RNG = np.random.default_rng(0)


def degrees(lat: np.ndarray, lon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lats, lons = np.meshgrid(lat, lon, indexing="ij")
    return lats, lons


@pytest.mark.parametrize("descending", [False, True])
def test_degree_grid_agrees_with_scipy(descending: bool):
    lat, lon = np.array([10.0, 11.0, 13.0, 14.5, 15.0]), np.linspace(100, 104, 9)
    order = slice(None, None, -1) if descending else slice(None)
    values = RNG.normal(size=(3, 5, 9))
    to_lat, to_lon = RNG.uniform(10, 15, 200), RNG.uniform(100, 104, 200)
    grid = degrees(lat[order], lon)
    found = bilinear(*grid, to_lat, to_lon)(values[:, order].reshape(3, -1))
    for field, mine in zip(values, found, strict=True):
        expected = RegularGridInterpolator((lat, lon), field)(np.stack([to_lat, to_lon], -1))
        np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-9)


def lambert(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Cell centres of a Lambert conformal grid over China, on a sphere."""
    first, second, centre = np.radians([25.0, 47.0, 103.0])
    cone = np.log(np.cos(first) / np.cos(second)) / np.log(
        np.tan(np.pi / 4 + second / 2) / np.tan(np.pi / 4 + first / 2)
    )
    factor = np.cos(first) * np.tan(np.pi / 4 + first / 2) ** cone / cone
    radius = 6371.0
    x, y = np.meshgrid(np.linspace(-2600, 2600, columns), np.linspace(-2200, 2200, rows))
    origin = radius * factor / np.tan(np.pi / 4 + np.radians(35) / 2) ** cone
    rho = np.hypot(x, origin - y)
    lat = 2 * np.arctan((radius * factor / rho) ** (1 / cone)) - np.pi / 2
    lon = centre + np.arctan2(x, origin - y) / cone
    return np.degrees(lat), np.degrees(lon)


def test_projected_grid_finds_its_own_points_and_coordinates():
    lat, lon = lambert(60, 80)
    centres = bilinear(lat, lon, lat.flatten(), lon.flatten())
    values = RNG.normal(size=lat.size)
    np.testing.assert_allclose(centres(values), values, atol=1e-6)
    down, right = RNG.uniform(0, 58.9, 300), RNG.uniform(0, 78.9, 300)
    top, left = down.astype(int), right.astype(int)

    def between(field: np.ndarray) -> np.ndarray:
        y, x = down - top, right - left
        upper = field[top, left] * (1 - x) + field[top, left + 1] * x
        return upper * (1 - y) + (field[top + 1, left] * (1 - x) + field[top + 1, left + 1] * x) * y

    found = bilinear(lat, lon, between(lat), between(lon))
    np.testing.assert_allclose(found(values), between(values.reshape(lat.shape)), atol=1e-6)


def test_points_outside_have_no_value_and_half_a_cell_beyond_that_of_the_border():
    lat, lon = lambert(20, 30)
    outside = bilinear(lat, lon, np.array([-30.0, 80.0, 35.0]), np.array([103.0, -60.0, 160.0]))
    assert not outside.inside.any() and np.isnan(outside(np.ones(lat.size))).all()
    grid = degrees(np.arange(3.0), np.arange(4.0))
    beyond = bilinear(*grid, np.array([-0.4, -0.6, 2.4]), np.array([1.0, 1.0, 3.3]))
    values = np.arange(12.0)
    np.testing.assert_allclose(beyond(values), [1.0, np.nan, 11.0])


def test_global_grid_is_whole_at_its_seam():
    grid = degrees(np.array([50.0, 40.0, 30.0]), np.arange(0.0, 360.0, 2.0))
    field = np.cos(np.radians(grid[1])) * 100
    found = bilinear(*grid, np.array([45.0, 35.0, 41.0]), np.array([-1.0, 359.0, 1.0]))
    np.testing.assert_allclose(found(field.flatten()), 100 * (1 + np.cos(np.radians(2))) / 2)


def test_missing_corners_do_not_bleed_and_the_rest_is_weighted_anew():
    grid = degrees(np.arange(2.0), np.arange(2.0))
    values = np.array([[1.0, np.nan, 3.0, 4.0], [1.0, np.nan, np.nan, np.nan]])
    found = bilinear(*grid, np.array([0.5, 0.2]), np.array([0.5, 0.2]))(values)
    np.testing.assert_allclose(found[0, 0], (1 + 3 + 4) / 3)
    np.testing.assert_allclose(found[:, 1][1], 1.0)  # the one corner left has 64 % of the weight
    assert np.isnan(found[1, 0])  # and here 25 %


def test_cells_outside_the_domain_do_not_count():
    grid = degrees(np.arange(3.0), np.arange(3.0))
    mask = np.array([[0, 0, 1], [0, 1, 1], [0, 0, 0]], bool)
    points = bilinear(*grid, np.array([0.5, 0.1, 1.0]), np.array([1.5, 0.1, 1.0])).within(mask)
    assert points.inside.tolist() == [True, False, True]
    np.testing.assert_allclose(points(np.array([1.0, 2.0, 4.0])), [7 / 3, np.nan, 2.0])


def test_single_row_such_as_a_list_of_stations_has_values_at_its_centres():
    lat, lon = np.array([[40.0, 40.1, 39.8, 40.3]]), np.array([[116.0, 116.2, 116.4, 115.9]])
    points = bilinear(lat, lon, np.array([40.1, 39.8, 40.3, 41.0]), np.append(lon[0, 1:], 116.0))
    np.testing.assert_array_equal(points(np.arange(4.0)), [1.0, 2.0, 3.0, np.nan])


def test_every_station_of_a_long_list_has_its_own_value():
    lat, lon = RNG.uniform(20, 50, (1, 300)), RNG.uniform(-180, 180, (1, 300))
    values = np.arange(300.0)
    np.testing.assert_array_equal(bilinear(lat, lon, lat[0], lon[0] + 360)(values), values)
    np.testing.assert_array_equal(bilinear(lat.T, lon.T, lat[0], lon[0])(values), values)


def test_a_projected_grid_across_the_date_line_is_as_one_elsewhere():
    lat, lon = lambert(20, 30)
    to_lat, to_lon = RNG.uniform(30, 45, 50), RNG.uniform(90, 115, 50)
    across = np.where(lon + 77 > 180, lon - 283, lon + 77)
    assert abs(np.diff(across, axis=1)).max() > 300
    values = RNG.normal(size=lat.size)
    expected = bilinear(lat, lon, to_lat, to_lon)(values)
    found = bilinear(lat, across, to_lat, to_lon + 77)(values)
    np.testing.assert_allclose(found, expected, atol=1e-7)
