"""Resampling in index space, regridding of static fields, and winds on projected grids."""

import numpy as np
import pytest

from aqnet.data.regridding import conservative, resample, winds
from tests.data.source_writers import lambert


def degrees(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    lat, lon = np.meshgrid(np.linspace(50, 20, height), np.linspace(80, 130, width), indexing="ij")
    return lat, lon


GRIDS = {"lambert": lambert(34, 43)[:2], "degrees": degrees(34, 43)}
SHAPES = [(12, 16), (17, 43), (34, 43), (1, 1), (50, 60)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", GRIDS)
def test_area_mean_keeps_the_integral_of_random_fields(name: str, shape: tuple[int, int]):
    lat, lon = GRIDS[name]
    field = np.random.default_rng(0).gamma(1.0, 30.0, (3, 34, 43)).astype(np.float32)
    area = np.cos(np.radians(lat)) if name == "degrees" else np.ones_like(lat)
    resampler = resample.Resampler("area", lat, lon, shape)
    found = resampler.mean(field).astype(np.float64)
    target_area = brute_force_area(area, shape)
    assert target_area.sum() == pytest.approx(area.sum(), rel=1e-12)
    integral = (field.astype(np.float64) * area).sum(axis=(1, 2))
    np.testing.assert_allclose((found * target_area).sum(axis=(1, 2)), integral, rtol=1e-6)


def overlaps(size: int, target: int) -> np.ndarray:
    """[target, size]: share of each source row in each target row, by its definition."""
    step = size / target
    low, high = np.arange(target)[:, None] * step, np.arange(1, target + 1)[:, None] * step
    row = np.arange(size)
    return np.clip(np.minimum(high, row + 1) - np.maximum(low, row), 0, None)


def brute_force_area(area: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return overlaps(area.shape[0], shape[0]) @ area @ overlaps(area.shape[1], shape[1]).T


@pytest.mark.parametrize("shape", SHAPES)
def test_missing_values_never_bleed_and_half_a_cell_is_enough(shape: tuple[int, int]):
    lat, lon = GRIDS["degrees"]
    area = np.cos(np.radians(lat))
    rng = np.random.default_rng(1)
    field = rng.gamma(1.0, 30.0, lat.shape)
    field[rng.random(lat.shape) < 0.4] = np.nan
    field[:10, :10] = np.nan
    present = np.isfinite(field)
    rows, columns = overlaps(34, shape[0]), overlaps(43, shape[1])
    share = rows @ (present * area) @ columns.T / brute_force_area(area, shape)
    mean = rows @ np.where(present, field * area, 0) @ columns.T
    mean /= np.maximum(rows @ (present * area) @ columns.T, 1e-30)
    expected = np.where(share >= 0.5, mean, np.nan)
    resampler = resample.Resampler("area", lat, lon, shape)
    np.testing.assert_allclose(resampler.mean(field), expected, rtol=1e-6)
    np.testing.assert_array_equal(resampler.mask(present), share >= 0.5)
    assert np.nanmin(resampler.mean(field)) >= np.nanmin(field) * (1 - 1e-6)


def test_exactly_half_is_enough():
    lat, lon = lambert(4, 4)[:2]
    field = np.ones((4, 4))
    field[0, :2] = np.nan  # half of target cell (0, 0)
    field[0, 2] = field[1, 2:] = np.nan  # three quarters of (0, 1)
    found = resample.Resampler("area", lat, lon, (2, 2)).mean(field)
    np.testing.assert_array_equal(found, [[1, np.nan], [1, 1]])


def test_bilinear_reproduces_linear_fields_beside_missing_values():
    lat, lon = GRIDS["lambert"]
    rows, columns = np.indices(lat.shape)
    field = 3.0 + 0.5 * rows - 0.25 * columns
    hole = field.copy()
    hole[10:14, 20:26] = np.nan
    resampler = resample.Resampler("bilinear", lat, lon, (12, 16))
    y, x = (np.arange(12) + 0.5) * 34 / 12 - 0.5, (np.arange(16) + 0.5) * 43 / 16 - 0.5
    expected = 3.0 + 0.5 * y[:, None] - 0.25 * x
    np.testing.assert_allclose(resampler.mean(field), expected, rtol=1e-6)
    found = resampler.mean(hole)
    assert np.isnan(found).any()
    whole = np.isfinite(hole)
    low_y, low_x = np.floor(y).astype(int), np.floor(x).astype(int)
    around = [whole[np.ix_(low_y + a, low_x + b)] for a in (0, 1) for b in (0, 1)]
    clear = np.all(around, axis=0)
    np.testing.assert_allclose(found[clear], expected[clear], rtol=1e-6)
    np.testing.assert_allclose(found[np.isfinite(found)], expected[np.isfinite(found)], atol=0.4)


def test_people_are_added_up_not_averaged():
    lat, lon = GRIDS["lambert"]
    people = np.random.default_rng(2).gamma(0.3, 1000.0, lat.shape)
    for method in ("area", "bilinear"):
        found = resample.Resampler(method, lat, lon, (12, 16)).total(people)  # type: ignore[arg-type]
        assert found.sum(dtype=np.float64) == pytest.approx(people.sum(), rel=1e-6)


@pytest.mark.parametrize("north_first", [False, True])
def test_coordinates_of_a_coarser_lambert_grid_are_those_of_the_projection(north_first: bool):
    lat, lon, _ = lambert(40, 60, 15.0, north_first)
    resampler = resample.Resampler("area", lat, lon, (20, 20))
    coarse_lat, coarse_lon, _ = lambert(20, 20, (30.0, 45.0), north_first)
    np.testing.assert_allclose(resampler.lat, coarse_lat, atol=1e-3)
    np.testing.assert_allclose(resampler.lon, coarse_lon, atol=1e-3)


@pytest.mark.parametrize("north_first", [False, True])
@pytest.mark.parametrize("mirrored", [False, True])
def test_grid_angle_is_that_of_the_lambert_projection(north_first: bool, mirrored: bool):
    lat, lon, angle = lambert(60, 80, 60.0, north_first)
    if mirrored:
        lat, lon, angle = lat[:, ::-1], lon[:, ::-1], angle[:, ::-1]
    found = winds.grid_angle(lat, lon)
    assert abs(angle).max() > 0.2  # 12 degrees at the edges
    np.testing.assert_allclose(found[:, 1:-1], angle[:, 1:-1], atol=2e-4)
    np.testing.assert_allclose(found, angle, atol=1e-3)


def test_a_westerly_wind_stays_one_on_the_earth():
    lat, lon, angle = lambert(60, 80, 60.0)
    # 10 m/s eastward and 3 northward, seen along the grid's axes
    u = (10 * np.cos(angle) + 3 * np.sin(angle)).astype(np.float32)
    v = (-10 * np.sin(angle) + 3 * np.cos(angle)).astype(np.float32)
    east, north = winds.to_earth(u[None], v[None], winds.grid_angle(lat, lon))
    np.testing.assert_allclose(east, 10, atol=0.01)
    np.testing.assert_allclose(north, 3, atol=0.01)
    lat, lon = degrees(5, 6)
    assert abs(winds.grid_angle(lat, lon)).max() == 0


@pytest.mark.parametrize(("height", "width"), [(400, 600), (40, 60)])  # finer and coarser
def test_static_fields_of_a_degree_grid_on_a_lambert_grid(height: int, width: int):
    target_lat, target_lon, _ = lambert(24, 30, 100.0)
    lat, lon = np.meshgrid(np.linspace(12, 60, height), np.linspace(70, 140, width), indexing="ij")
    field = 100 * lat + 10 * lon
    found = conservative.regridded(field, lat, lon, target_lat, target_lon)
    step = 100 * (lat[1, 0] - lat[0, 0]) + 10 * (lon[0, 1] - lon[0, 0])
    np.testing.assert_allclose(found, 100 * target_lat + 10 * target_lon, atol=step + 20)
    people = np.where((abs(lat - 35) < 4) & (abs(lon - 105) < 5), 7.0, 0.0)
    total = conservative.regridded(people, lat, lon, target_lat, target_lon, counts=True)
    assert total.sum() == pytest.approx(people.sum(), rel=1e-9)
    constant = conservative.regridded(np.full(lat.shape, 5.0), lat, lon, target_lat, target_lon)
    np.testing.assert_allclose(constant, 5.0)
    field[lon > 105] = np.nan
    half = conservative.regridded(
        field, lat, lon - 360, target_lat, target_lon
    )  # longitudes -290 to -220
    assert np.isnan(half[:, 20:]).all()
    assert np.isfinite(half[:, :10]).all()


def test_longitudes_may_cross_the_date_line():
    lat, lon = np.meshgrid(np.linspace(-10, 10, 21), np.arange(170, 191.0), indexing="ij")
    wrapped = np.where(lon > 180, lon - 360, lon)
    resampler = resample.Resampler("area", lat, wrapped, (7, 7))
    np.testing.assert_allclose(resampler.lon[0], np.arange(171, 190, 3.0))
    found = conservative.regridded(lon, lat, wrapped, resampler.lat, resampler.lon)
    np.testing.assert_allclose(found[0], np.arange(171, 190, 3.0))
    same = conservative.regridded(lon, lat, wrapped, lat, wrapped)  # the target crosses it as well
    np.testing.assert_allclose(same, lon)
