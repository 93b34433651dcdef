"""Forecasts of others: CAMS NetCDF as the two data stores give it, reanalyses, what is refused."""

from pathlib import Path

import netCDF4
import numpy as np
import pytest

from aqnet.data.sources.forecast_files import ForecastFiles
from aqnet.errors import AqnetError
from tests.data.worlds import config, hour

LAT, LON = np.array([50.0, 45.0, 40.0]), np.array([358.0, 359.0])
START = hour("2016-01-03")


def write(path: Path, dims: dict[str, np.ndarray], fields: dict[str, np.ndarray], **units: str):
    """A NetCDF file of coordinates (each along its own dimension) and fields along all of them."""
    defaults = {"latitude": "degrees_north", "longitude": "degrees_east"}
    with netCDF4.Dataset(path, "w") as file:
        for name, values in dims.items():
            if values.ndim:
                file.createDimension(name, len(values))
            variable = file.createVariable(name, "f8", (name,) if values.ndim else ())
            variable.units = units.get(name, defaults.get(name, "hours since 1970-01-01"))
            variable[...] = values
        order = tuple(name for name, values in dims.items() if values.ndim)
        for name, values in fields.items():
            variable = file.createVariable(name, "f4", order, fill_value=-1e9)
            variable.units = units.get(name, "ug m**-3")
            variable[...] = values
    return str(path)


def test_global_cams_by_period_and_reference_time(tmp_path: Path):
    periods, starts = np.array([0.0, 3.0, 24.0]), START + np.array([0.0, 12.0])
    values = np.random.default_rng(0).uniform(1e-9, 1e-8, (3, 2, 3, 2))
    dims = {
        "forecast_period": periods,
        "forecast_reference_time": starts,
        "latitude": LAT,
        "longitude": LON,
    }
    path = write(
        tmp_path / "cams.nc", dims, {"pm2p5": values}, pm2p5="kg m**-3", forecast_period="hours"
    )
    files = ForecastFiles(path, config(tmp_path))
    assert files.names == {"pm25": "pm2p5"}
    assert files.times.tolist() == [START, START + 12]
    found = files.read(START + 12, (3, 24))
    np.testing.assert_allclose(found[:, 1], values[1:, 1] * 1e9, rtol=1e-6)  # targets are o3, pm25
    assert np.isnan(found[:, 0]).all()
    assert np.isnan(files.read(START + 6, (3, 24))).all()
    assert files.count(np.array([START, START + 1]), (3, 24)).startswith("2 of 4")


def test_regional_cams_with_one_start_and_a_level_a_file(tmp_path: Path):
    for day in range(2):
        dims = {
            "time": np.array(float(START + 24 * day)),
            "step": np.array([180.0, 1440.0]),
            "level": np.array([0.0]),
            "latitude": LAT,
            "longitude": LON,
        }
        fields = {"o3_conc": np.full((2, 1, 3, 2), 40.0 + day)}
        write(tmp_path / f"{day}.nc", dims, fields, step="minutes", level="m")
    files = ForecastFiles(str(tmp_path / "*.nc"), config(tmp_path))
    assert files.times.tolist() == [START, START + 24]
    assert (files.read(START + 24, (3, 24))[:, 0] == 41.0).all()


def test_files_without_lead_times_are_taken_by_valid_time(tmp_path: Path):
    dims = {"time": START + np.arange(30.0), "latitude": LAT, "longitude": LON}
    fields = {"go3": np.arange(30.0)[:, None, None] + np.zeros((30, 3, 2))}
    files = ForecastFiles(write(tmp_path / "eac4.nc", dims, fields), config(tmp_path))
    found = files.read(START + 2, (3, 24))
    assert (found[0, 0] == 5.0).all() and (found[1, 0] == 26.0).all()
    assert np.isnan(files.read(START + 10, (3, 24))[1]).all()


@pytest.mark.parametrize(
    ("name", "unit", "levels", "said"),
    [
        ("pm2p5", "kg kg**-1", 1, "mixing ratio"),
        ("dust", "ug m-3", 1, "holds none of o3, pm25"),
        ("pm2p5", "ug m-3", 2, "has 2 of 'level': cut one out"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    tmp_path: Path, name: str, unit: str, levels: int, said: str
):
    dims = {
        "time": np.array([float(START)]),
        "level": np.arange(float(levels)),
        "latitude": LAT,
        "longitude": LON,
    }
    fields = {name: np.ones((1, levels, 3, 2))}
    path = write(tmp_path / "file.nc", dims, fields, **{name: unit, "level": "1"})
    with pytest.raises(AqnetError, match=said):
        ForecastFiles(path, config(tmp_path))


@pytest.mark.parametrize(
    ("own", "factor"),
    [
        ("", 1e3),  # data.units says it
        ("what", 1e3),
        ("kg m-3", 1e9),  # another system than the sources, for which data.units speaks
    ],
)
def test_data_units_says_the_unit_of_files_that_give_none_that_can_be_read(
    tmp_path: Path, own: str, factor: float
):
    dims = {"time": np.array([float(START)]), "latitude": LAT, "longitude": LON}
    path = write(tmp_path / "f.nc", dims, {"pm2p5": np.full((1, 3, 2), 2e-8)}, pm2p5=own)
    files = ForecastFiles(path, config(tmp_path, units={"pm25": "mg m-3"}))
    np.testing.assert_allclose(files.read(START - 3, (3,))[0, 1], 2e-8 * factor, rtol=1e-6)
    if own != "kg m-3":
        with pytest.raises(AqnetError, match=r"set data\.units\.pm25"):
            ForecastFiles(path, config(tmp_path))


def test_a_time_in_two_files_is_refused(tmp_path: Path):
    dims = {"time": np.array([float(START)]), "latitude": LAT, "longitude": LON}
    for name in "ab":
        write(tmp_path / f"{name}.nc", dims, {"pm2p5": np.ones((1, 3, 2))})
    with pytest.raises(AqnetError, match=r"b\.nc: 2016-01-03T00 is in .*a\.nc"):
        ForecastFiles(str(tmp_path / "*.nc"), config(tmp_path))


def test_other_times_and_other_units_of_time_are_named(tmp_path: Path):
    dims = {"time": np.array([0.0, 1.0]), "latitude": LAT, "longitude": LON}
    fields = {"pm2p5": np.ones((2, 3, 2))}
    path = write(tmp_path / "old.nc", dims, fields)
    with pytest.raises(AqnetError, match="none of the input times"):
        ForecastFiles(path, config(tmp_path)).count(np.array([START]), (3, 24))
    path = write(tmp_path / "bare.nc", dims, fields, time="hours")
    with pytest.raises(AqnetError, match="'time' has units 'hours'"):
        ForecastFiles(path, config(tmp_path))
    with pytest.raises(AqnetError, match="nothing matches"):
        ForecastFiles(str(tmp_path / "no*.nc"), config(tmp_path))


def test_lead_times_between_hours_are_refused_and_never_rounded(tmp_path: Path):
    dims = {
        "time": np.array([float(START)]),
        "step": np.array([2.75, 3.0]),  # the first would be taken for 3 h
        "latitude": LAT,
        "longitude": LON,
    }
    path = write(tmp_path / "f.nc", dims, {"pm2p5": np.ones((1, 2, 3, 2))}, step="hours")
    with pytest.raises(AqnetError, match=r"f\.nc: 'step' holds times that are no whole hours"):
        ForecastFiles(path, config(tmp_path))
