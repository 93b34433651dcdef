"""The embedded world behaves as its docstring says."""

from pathlib import Path

import numpy as np
import pytest
import zarr

from aqnet.data.synthetic import UNITS, Weather, World, advect, simulate, write_year

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


@pytest.mark.parametrize("season", ["2013-01-05", "2014-07-05"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_moving_pm25_beats_persistence_best_by_a_wind_faster_and_veered_from_the_stored(
    world: World, seed: int, season: str
) -> None:
    start, hours = int(np.datetime64(season, "h").astype(int)), 24 * 10
    fields = list(simulate(world, start, hours, seed))
    turned_back = np.exp(-1j * np.radians(20.0)) / 0.65
    ways = np.array([0.0, 1.0, np.conj(turned_back), turned_back])  # times u + i v
    errors = np.zeros(len(ways))
    for row in range(0, hours - 12, 12):
        now, truth = fields[row], fields[row + 12]["pm25"]
        for number, way in enumerate(ways):
            wind = way * (now["u"] + 1j * now["v"])
            forecast = now["pm25"][None]
            for _ in range(12):  # the wind of the input time: what a forecast can know
                forecast = advect(forecast, wind.real, wind.imag, world, 3600.0)
            errors[number] += ((forecast[0] - truth)[world.mask] ** 2).mean()
    stayed, stored, turned_twice, undone = np.sqrt(errors)
    assert undone < 0.9 * stayed
    assert undone < min(stored, turned_twice)


def test_stored_wind_is_slower_and_left_of_the_mixed_layers_by_terrain_and_hour(
    world: World,
) -> None:
    weather, ratios = Weather(world, seed=0), []
    for hour, stored in enumerate(simulate(world, START, 24), START):
        u, v, _ = weather.at(hour)
        ratios.append((stored["u"] + 1j * stored["v"]) / (u + 1j * v))
    speed, angle = np.abs(ratios), np.degrees(np.angle(ratios))
    for values, usual in ((speed, 0.65), (angle, 20.0)):
        assert 0.79 * usual < values.min() < 0.93 * usual
        assert 1.07 * usual < values.max() < 1.22 * usual
    at_105 = int(np.abs(world.lon - 105).argmin())
    day, night = 7, 19  # UTC, 14 and 2 h local time there
    assert (speed[day] > speed[night])[:, at_105].all()
    assert (angle[day] < angle[night])[:, at_105].all()
    column = world.elevation[:, at_105]
    high, low = column.argmax(), column.argmin()
    assert speed[day, high, at_105] < speed[day, low, at_105]
    assert angle[day, high, at_105] > angle[day, low, at_105]


def test_years_made_apart_fit_together(world: World) -> None:
    new_year = START + 8760
    before = list(simulate(world, START + 8760 - 48, 49))[-1]
    after = next(simulate(world, new_year, 1))
    for name in UNITS:
        one, other = (fields[name][world.mask] for fields in (before, after))
        assert np.sqrt(((one - other) ** 2).mean()) < 0.01 * one.std(), name


def test_terrain_changes_pm25_near_ridges(world: World) -> None:
    on, off = (list(simulate(world, START, 25, terrain=flag))[24]["pm25"] for flag in (True, False))
    slope = np.hypot(*np.gradient(world.elevation))
    ridges = world.mask & (slope > np.quantile(slope[world.mask], 0.75))
    change = np.sqrt(((on - off)[ridges] ** 2).mean()) / np.sqrt((on[ridges] ** 2).mean())
    assert change > 0.1


def test_ranges_are_plausible(world: World, fields: dict[str, np.ndarray]) -> None:
    inside = {name: block[:, world.mask] for name, block in fields.items()}
    assert 10 < inside["pm25"].mean() < 80
    assert inside["pm10"].mean() > inside["pm25"].mean()
    assert np.hypot(inside["u"], inside["v"]).max() < 50
    assert inside["temp"].min() > 220 and inside["temp"].max() < 325
    assert all(np.isfinite(block).all() for block in inside.values())
    cycle = inside["o3"].mean(axis=1).reshape(-1, 24).mean(axis=0)
    assert 12 <= (int(cycle.argmax()) + 7) % 24 <= 18  # local hour near 105 E
