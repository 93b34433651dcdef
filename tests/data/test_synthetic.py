"""The embedded world behaves as its docstring says."""

from pathlib import Path

import numpy as np
import pytest
import zarr

from aqnet.data.synthetic import UNITS, World, advect, simulate, write_year

START = 376944  # 2013-01-01 00 UTC
HOURS = 24 * 21


@pytest.fixture(scope="module")
def world() -> World:
    return World(32, 64)


@pytest.fixture(scope="module")
def fields(world: World) -> dict[str, np.ndarray]:
    hours = list(simulate(world, START, HOURS))
    return {name: np.stack([hour[name] for hour in hours]) for name in UNITS}


def test_a_seed_gives_the_same_world_and_another_seed_another(world: World) -> None:
    first, again, other = (list(simulate(world, START, 5, seed)) for seed in (3, 3, 4))
    assert all(np.array_equal(first[-1][name], again[-1][name]) for name in UNITS)
    assert not np.array_equal(first[-1]["pm25"], other[-1]["pm25"])


def test_nan_lies_exactly_outside_one_mask_and_xarray_opens_the_store(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    world = World(16, 24)
    path = write_year(tmp_path, world, 2016, 0, hours=30)
    arrays = dict(zarr.open_group(path, mode="r").arrays())
    for name in UNITS:
        values = np.asarray(arrays[name][:])
        assert (np.isfinite(values) == world.mask).all()
    with xarray.open_zarr(path, consolidated=False) as data:
        assert str(data.time.values[0]).startswith("2016-01-01T00")
        assert data.pm25.dims == ("time", "lat", "lon")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_moving_pm25_along_its_wind_beats_persistence(
    world: World, fields: dict[str, np.ndarray]
) -> None:
    pm25, moved, stayed = fields["pm25"], 0.0, 0.0
    for row in range(0, HOURS - 12, 12):
        forecast = pm25[row][None]
        for _ in range(12):
            forecast = advect(forecast, fields["u"][row], fields["v"][row], world, 3600.0)
        truth = pm25[row + 12]
        moved += float(((forecast[0] - truth)[world.mask] ** 2).mean())
        stayed += float(((pm25[row] - truth)[world.mask] ** 2).mean())
    assert np.sqrt(moved / stayed) < 0.9


def test_terrain_changes_pm25_near_ridges(world: World) -> None:
    on, off = (list(simulate(world, START, 25, terrain=flag))[24]["pm25"] for flag in (True, False))
    slope = np.hypot(*np.gradient(world.elevation))
    ridges = world.mask & (slope > np.quantile(slope[world.mask], 0.75))
    change = np.sqrt(((on - off)[ridges] ** 2).mean()) / np.sqrt((on[ridges] ** 2).mean())
    assert change > 0.1


def test_ranges_are_plausible(world: World, fields: dict[str, np.ndarray]) -> None:
    inside = {name: block[:, world.mask] for name, block in fields.items()}
    assert 10 < inside["pm25"].mean() < 80
    assert np.hypot(inside["u"], inside["v"]).max() < 50
    assert inside["temp"].min() > 220 and inside["temp"].max() < 325
    assert all(np.isfinite(block).all() for block in inside.values())
    cycle = inside["o3"].mean(axis=1).reshape(-1, 24).mean(axis=0)
    assert 12 <= (int(cycle.argmax()) + 7) % 24 <= 18  # local hour near 105 E
