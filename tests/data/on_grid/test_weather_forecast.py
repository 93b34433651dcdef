"""Weather forecasts from files: which values reach which channel and hour of an item."""

import pickle
from dataclasses import replace
from pathlib import Path

import netCDF4
import numpy as np
import pytest

from aqnet.config import Config
from aqnet.data.dataset import ForecastDataset
from aqnet.data.on_grid.weather_forecast import WeatherForecast
from aqnet.data.sources.units import relative_humidity
from aqnet.data.stores.layout import Layout
from aqnet.data.stores.record import open_stores
from aqnet.data.stores.store import open_store
from aqnet.errors import AqnetError
from tests.data.source_writers import lambert
from tests.data.sources.test_forecast_files import write as write_file
from tests.data.test_weather import STATISTICS
from tests.data.worlds import config, grid, hour, write_both

START = hour("2016-01-03")
LAT, LON = np.linspace(55, 10, 19), np.linspace(70, 140, 29)  # 2.5 degrees, from north to south


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores")
    write_both(path)
    return path


def settings(folder: Path, *weather: str, **data: object) -> Config:
    return config(folder, weather=list(weather), weather_hours=[3, 6, 24], **data)


def cams(path: Path, base: int, periods: list[int], fields: dict[str, np.ndarray], unit: str = "K"):
    """A file of one base time; each field has a value for each of the periods."""
    dims = {
        "forecast_period": np.array(periods, float),
        "forecast_reference_time": np.array([float(base)]),
        "latitude": LAT,
        "longitude": LON,
    }
    shape = len(periods), 1, len(LAT), len(LON)
    whole = {
        name: np.broadcast_to(values.reshape(len(periods), 1, *values.shape[1:]), shape)
        for name, values in fields.items()
    }
    units = dict.fromkeys(fields, unit)
    return write_file(path, dims, whole, forecast_period="hours", **units)


def constant(*values: float) -> np.ndarray:
    return np.array(values).reshape(-1, 1, 1)


def forecast(paths: list[str], config: Config) -> WeatherForecast:
    layout = Layout.of(open_store(Path(config.data.stores) / "2016.zarr"))
    return WeatherForecast(paths, config, layout)


def test_values_of_the_newest_forecast_reach_their_channels_and_hours(folder, tmp_path):
    """Bases of 00 and 12 UTC; input times of 5 and 14 UTC; the older base would have the hours."""
    with_weather = settings(folder, "temp")
    leads = list(range(1, 50))
    paths = [
        cams(
            tmp_path / f"{base}.nc",
            START + base,
            leads,
            {"t2m": constant(*(270 + 0.1 * base + 0.2 * lead for lead in leads))},
        )
        for base in (0, 12)
    ]
    given = forecast(paths, with_weather)
    stores = open_stores(with_weather)
    data = ForecastDataset(with_weather, "test", STATISTICS, stores, given)
    plain = ForecastDataset(with_weather, "test", STATISTICS, stores, "none")
    for time, base in ((START + 5, 0), (START + 14, 12)):
        found, without = data.reader.item(time), plain.reader.item(time)
        for row, after in zip((5, 6, 7), (3, 6, 24), strict=True):
            assert with_weather.input_variables[row] == f"temp@+{after}h"
            lead = time + after - START - base
            expected = (270 + 0.1 * base + 0.2 * lead - 280.0) / 5.0
            np.testing.assert_allclose(found.fields[row], expected, rtol=1e-4)
            assert without.fields[row].isnan().all()
        np.testing.assert_array_equal(found.fields[:5], without.fields[:5])
        np.testing.assert_array_equal(found.targets, without.targets)
    assert given.weather_at(START - 1, START + 2) is None  # none had begun


def test_what_is_missing_is_counted_and_never_taken_from_an_older_forecast(folder, tmp_path):
    paths = [
        cams(tmp_path / "a.nc", START, [3, 6, 24, 27, 30], {"t2m": constant(*range(250, 255))}),
        cams(tmp_path / "b.nc", START + 6, [3, 24], {"t2m": constant(280, 281)}),
    ]
    given = forecast(paths, settings(folder, "temp"))
    assert given.weather_at(START + 6, START + 12) is None
    report = given.report(np.array([START, START + 6, START + 9]))
    assert "temp at 5 of 9 input times x hours, 100% of the domain" in report
    assert "up to 0 h before" in report
    with pytest.raises(AqnetError, match="has forecasts from 2016-01-03T00 to 2016-01-03T06, none"):
        given.report(np.array([START - 48]))


def test_variables_may_lie_in_files_of_their_own_and_one_may_be_lacking(folder, tmp_path):
    paths = [
        cams(tmp_path / "t.nc", START, [3, 6], {"t2m": constant(281, 282)}),
        cams(tmp_path / "u.nc", START, [3], {"u10": constant(7)}, "m s**-1"),
    ]
    given = forecast([str(tmp_path / "*.nc")], settings(folder, "u", "temp", "v"))
    first, second = given.weather_at(START, START + 3), given.weather_at(START, START + 6)
    assert (first[:2] == np.array([7, 281]).reshape(2, 1, 1)).all()
    assert np.isnan(first[2]).all() and np.isnan(second[[0, 2]]).all() and (second[1] == 282).all()
    report = given.report(np.array([START]))
    assert "temp at 2; u at 1; v at 0 of 3 input times x hours" in report
    with pytest.raises(AqnetError, match=r"t\.nc is in|is in .*as well"):
        copied = tmp_path / "u2.nc"
        copied.write_bytes(Path(paths[1]).read_bytes())
        forecast([str(tmp_path / "*.nc")], settings(folder, "u", "temp", "v"))


def test_forecasts_of_the_models_own_grid_stay_as_they_are_and_can_be_sent_to_other_ranks(
    folder, tmp_path
):
    where = grid()
    dims = {
        "time": np.array(float(START)),
        "step": np.array([3.0]),
        "latitude": where.lat[:, 0].numpy(),
        "longitude": where.lon[0].numpy(),
    }
    values = np.random.default_rng(0).uniform(250, 300, (1, *where.shape)).astype(np.float32)
    path = write_file(tmp_path / "a.nc", dims, {"t2m": values}, t2m="K", step="hours")
    given = pickle.loads(pickle.dumps(forecast([path], settings(folder, "temp"))))
    np.testing.assert_array_equal(given.weather_at(START, START + 3), values)


def test_humidity_comes_from_temperature_and_dew_point(folder, tmp_path):
    fields = {"2t": constant(293.15), "2d": constant(283.15)}
    path = cams(tmp_path / "a.nc", START, [3], fields)
    (found,) = forecast([path], settings(folder, "rh")).weather_at(START, START + 3)
    # saturation over water: 12.27 hPa at 10, 23.37 hPa at 20 degrees (WMO-No. 8, annex 4.B)
    np.testing.assert_allclose(found, 100 * 12.27 / 23.37, rtol=2e-3)
    assert relative_humidity(np.array(280.0), np.array(280.0)) == 100.0


def test_data_units_holds_for_files_without_units_and_for_the_dew_point(folder, tmp_path):
    fields = {"t2m": constant(20), "d2m": constant(10)}
    path = cams(tmp_path / "a.nc", START, [3], fields, "")
    with pytest.raises(AqnetError, match=r"'t2m' has no units.*set data\.units\.temp"):
        forecast([path], settings(folder, "rh"))
    known = settings(folder, "rh", "temp", units={"temp": "degC", "dewpoint": "degC"})
    humidity, temperature = forecast([path], known).weather_at(START, START + 3)
    np.testing.assert_allclose(humidity, 100 * 12.27 / 23.37, rtol=2e-3)
    np.testing.assert_allclose(temperature, 293.15)


def test_fields_are_averaged_over_the_models_cells_and_keep_their_place(folder, tmp_path):
    """The model's cells are 15 x 16.7 degrees; the files run from north to south."""
    plane = LAT[:, None] + 0.5 * LON + np.zeros((len(LAT), len(LON))) + 200
    path = cams(tmp_path / "a.nc", START, [3], {"t2m": plane[None]})
    (found,) = forecast([path], settings(folder, "temp")).weather_at(START, START + 3)
    where = grid()
    inner = (where.lat == 35) & (where.lon > 90) & (where.lon < 130)
    expected = where.lat + 0.5 * where.lon + 200
    assert inner.sum() == 2
    np.testing.assert_allclose(found[inner], expected[inner], atol=1.0)


def test_winds_along_a_projected_grid_are_turned_where_the_config_says_so(folder, tmp_path):
    lat, lon, _ = lambert(12, 16, 500.0)
    path = tmp_path / "wrf.nc"
    with netCDF4.Dataset(path, "w") as file:
        for name, size in (("step", 1), ("y", 12), ("x", 16)):
            file.createDimension(name, size)
        for name, dims, values, unit in (
            ("time", (), START, "hours since 1970-01-01"),
            ("step", ("step",), [3], "hours"),
            ("lat", ("y", "x"), lat, "degrees_north"),
            ("lon", ("y", "x"), lon, "degrees_east"),
            ("u", ("step", "y", "x"), 10.0, "m s-1"),
            ("v", ("step", "y", "x"), 0.0, "m s-1"),
        ):
            variable = file.createVariable(name, "f8", dims)
            variable.units, variable[...] = unit, values
    known = {}
    for winds in ("earth", "grid"):
        data = settings(folder, "u", "v")
        data = replace(data, data=replace(data.data, winds=winds))
        known[winds] = forecast([str(path)], data).weather_at(START, START + 3)
    np.testing.assert_allclose(known["earth"][0], 10.0, rtol=1e-6)
    u, v = known["grid"]
    np.testing.assert_allclose(np.hypot(u, v)[1], 10.0, rtol=0.02)
    assert v[1, 0] > 0 > v[1, 3] and abs(v[1, 0]) > 1.0  # x points north of east in the west


def test_files_that_are_no_forecasts_or_lie_elsewhere_are_refused(folder, tmp_path):
    dims = {"time": START + np.arange(3.0), "latitude": LAT, "longitude": LON}
    path = write_file(tmp_path / "era5.nc", dims, {"t2m": np.full((3, 19, 29), 280.0)}, t2m="K")
    with pytest.raises(AqnetError, match=r"era5\.nc has no base time"):
        forecast([path], settings(folder, "temp"))
    dims = {
        "time": np.array(float(START)),
        "step": np.array([3.0]),
        "latitude": -LAT,
        "longitude": LON,
    }
    path = write_file(
        tmp_path / "south.nc", dims, {"t2m": np.full((1, 19, 29), 280.0)}, t2m="K", step="hours"
    )
    with pytest.raises(AqnetError, match="covers no cell of the domain"):
        forecast([path], settings(folder, "temp"))
    with pytest.raises(AqnetError, match="--weather: nothing matches"):
        forecast([str(tmp_path / "none*.nc")], settings(folder, "temp"))
