"""What files say, read as they mean it: each kind by at least three files of different make, judged
by the values, hours and orientation that come out."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr

from aqnet.config import Data, Source, Split
from aqnet.data.inspect import run as inspect
from aqnet.data.sources.files.source_file import open_file
from aqnet.data.sources.forecast_files import ForecastFiles
from aqnet.data.sources.several import Sources, open_sources
from aqnet.data.sources.view import Rules, SourceView
from aqnet.errors import AqnetError
from tests.data.worlds import config

LAT, LON = np.array([40.0, 35.0, 30.0]), np.array([100.0, 105.0, 110.0, 115.0])
START = int(np.datetime64("2013-01-01", "h").astype(int))
SINCE = "hours since 1970-01-01"
FIELD = np.arange(60.0).reshape(5, 3, 4)  # [time, y, x]
SQUARE = np.arange(45.0).reshape(5, 3, 3)


def dataset(values: np.ndarray = FIELD, **other: Any) -> xarray.Dataset:
    """Ozone on (time, lat, lon) as CF has it; `other` are further variables."""
    height, width = values.shape[1:]
    coordinates = {
        "time": ("time", START + np.arange(len(values)), {"units": SINCE, "standard_name": "time"}),
        "lat": ("lat", LAT[:height], {"units": "degrees_north"}),
        "lon": ("lon", LON[:width], {"units": "degrees_east"}),
    }
    field = (("time", "lat", "lon"), values.astype("f4"), {"units": "ug m-3"})
    return xarray.Dataset({"o3": field, **other}, coordinates)


def save(found: xarray.Dataset, path: Path, kind: str = "nc") -> Path:
    """Without encoding, so that attributes stay as they are."""
    target = path.with_suffix(f".{kind}" if kind == "nc" else ".zarr")
    if kind == "nc":
        found.to_netcdf(target)
    else:
        version = 2 if kind == "zarr2" else 3
        found.to_zarr(target, zarr_format=version, consolidated=False, mode="w")
    return target


def ozone(path: Path, rules: Rules | None = None) -> np.ndarray:
    view = SourceView(Source(str(path)), rules)
    view.check_variables(("o3",), slice(0, len(view.times)))
    return view.read(("o3",), slice(0, len(view.times)))[:, 0]


# Axes by meaning


@pytest.mark.parametrize("kind", ["nc", "zarr2", "zarr3"])
@pytest.mark.parametrize("values", [FIELD, SQUARE])
@pytest.mark.parametrize(
    "order",
    [
        ("time", "lon", "lat"),
        ("lon", "lat", "time"),
        ("lat", "time", "lon"),
        ("lat", "lon", "time"),
    ],
)
def test_dimensions_in_any_order_are_turned(tmp_path, kind, values, order):
    path = save(dataset(values).transpose(*order), tmp_path / "a", kind)
    np.testing.assert_array_equal(ozone(path), values)
    found = inspect.inspect(path)
    assert found.problems == []
    np.testing.assert_allclose(found.variables["o3"].mean_map(), values.mean(0))


@pytest.mark.parametrize(
    ("names", "attributes"),
    [
        (("west_east", "south_north"), {}),
        (("nx", "ny"), {}),
        (("i1", "i2"), {"i1": {"axis": "X"}, "i2": {"axis": "Y"}}),
        (("a", "b"), {"a": {"standard_name": "projection_x_coordinate"}}),
        (("rlon", "rlat"), {"rlat": {"standard_name": "grid_latitude"}}),
    ],
)
def test_grids_of_two_dimensions_are_turned_where_they_lie_x_first(tmp_path, names, attributes):
    lat, lon = np.meshgrid(LAT, LON[:3], indexing="ij")
    x, y = names
    coordinates = {
        "time": ("time", START + np.arange(5), {"units": SINCE}),
        "latitude": ((x, y), lat.T, {"units": "degrees_north"}),
        "longitude": ((x, y), lon.T, {"units": "degrees_east"}),
        **{name: (name, np.arange(3.0) * 1e4, found) for name, found in attributes.items()},
    }
    field = (("time", x, y), SQUARE.swapaxes(1, 2), {"units": "ug m-3"})
    path = save(xarray.Dataset({"o3": field}, coordinates), tmp_path / "a")
    view = SourceView(Source(str(path)))
    np.testing.assert_array_equal(view.lat, lat)
    np.testing.assert_array_equal(view.lon, lon)
    np.testing.assert_array_equal(ozone(path), SQUARE)


@pytest.mark.parametrize("extra", ["level", "number", "expver"])
def test_a_dimension_of_one_is_dropped_with_a_line_and_of_more_refused(tmp_path, extra, capsys):
    path = save(dataset().expand_dims({extra: [1]}, axis=1), tmp_path / "a")
    np.testing.assert_array_equal(ozone(path), FIELD)
    assert f"'o3': its only '{extra}' is taken" in capsys.readouterr().out
    path = save(dataset().expand_dims({extra: [1, 5]}, axis=1), tmp_path / "b")
    with pytest.raises(AqnetError, match=rf"b\.nc: variable 'o3'.*has 2 of '{extra}': cut one out"):
        ozone(path)


@pytest.mark.parametrize("unit", ["radians", "radian", "rad"])
def test_coordinates_in_radians_are_converted(tmp_path, unit):
    found = dataset()
    for name, values in (("lat", LAT), ("lon", LON)):
        found = found.assign_coords({name: (name, np.radians(values), {"units": unit})})
    view = SourceView(Source(str(save(found, tmp_path / "a"))))
    np.testing.assert_allclose(view.lat[:, 0], LAT)
    np.testing.assert_allclose(view.lon[0], LON)


@pytest.mark.parametrize("attributes", [{"units": "m"}, {"units": "km"}, {}])
def test_coordinates_in_metres_are_refused_with_or_without_a_unit(tmp_path, attributes):
    found = dataset().assign_coords(lat=("lat", LAT * 1e5, attributes))
    with pytest.raises(AqnetError, match=r"'lat' (is in '(m|km)'|holds 4e\+06).*degrees"):
        ozone(save(found, tmp_path / "a"))


@pytest.mark.parametrize("shift", [-360, 360, np.array([0, 0, -360, -360])])
def test_longitudes_a_turn_apart_are_one_grid(tmp_path, shift):
    save(dataset(), tmp_path / "a")
    later = dataset().assign_coords(time=("time", START + 5 + np.arange(5), {"units": SINCE}))
    save(later.assign_coords(lon=("lon", LON + shift)), tmp_path / "b")
    np.testing.assert_array_equal(ozone(tmp_path / "*.nc"), np.concatenate([FIELD, FIELD]))


def wrf(moving: bool = False) -> xarray.Dataset:
    """The axes of a wrfout file: coordinates repeat with time, dimensions have no variables."""
    lat, lon = np.meshgrid(LAT, LON, indexing="ij")
    dims = ("Time", "south_north", "west_east")
    times = xarray.Variable("Time", 60 * np.arange(5), {"units": "minutes since 2013-01-01"})
    repeated = [np.repeat(values[None], 5, 0) for values in (lat, lon)]
    repeated[0][3] += moving
    field = (dims, FIELD.astype("f4"), {"units": "ug m-3", "coordinates": "XLONG XLAT XTIME"})
    return xarray.Dataset(
        {
            "o3": field,
            "XTIME": times,
            "XLAT": (dims, repeated[0], {"units": "degree_north"}),
            "XLONG": (dims, repeated[1], {"units": "degree_east"}),
        }
    )


def test_coordinates_that_repeat_with_time_are_taken_once(tmp_path):
    path = save(wrf(), tmp_path / "a")
    np.testing.assert_array_equal(ozone(path), FIELD)
    view = SourceView(Source(str(path)))
    np.testing.assert_array_equal(view.times, START + np.arange(5))
    np.testing.assert_array_equal(view.lat[:, 0], LAT)
    with pytest.raises(AqnetError, match="'XLAT' changes along 'Time'"):
        ozone(save(wrf(moving=True), tmp_path / "b"))


def test_a_list_of_cells_is_no_grid(tmp_path):
    found = xarray.Dataset(
        {"o3": (("time", "station"), FIELD[:, 0], {"units": "ug m-3"})},
        {
            "time": ("time", START + np.arange(5), {"units": SINCE}),
            "lat": ("station", LON / 4),
            "lon": ("station", LON),
        },
    )
    with pytest.raises(AqnetError, match=r"latitude has dimensions \('station',\) and longitude"):
        ozone(save(found, tmp_path / "a"))


# Time is validity


def steps(starts: int, leads: list[int], gap: int) -> dict[str, Any]:
    """Coordinates of forecasts that begin every `gap` hours, and their field counted through."""
    begins, after = START + gap * np.arange(starts), np.array(leads)
    values = np.arange(starts * len(leads) * 12.0).reshape(starts, len(leads), 3, 4)
    return {"begins": begins, "after": after, "values": values}


def cams(found: dict[str, Any]) -> xarray.Dataset:
    """As the Atmosphere Data Store has written it since 2024."""
    valid = found["begins"][:, None] + found["after"]
    return _forecast(
        found,
        ("forecast_reference_time", {"standard_name": "forecast_reference_time"}),
        ("forecast_period", {"standard_name": "forecast_period"}),
        valid_time=valid,
    )


def cfgrib(found: dict[str, Any]) -> xarray.Dataset:
    """As cfgrib decodes GRIB: the standard_name of when a forecast begins is `time`, too."""
    valid = found["begins"][:, None] + found["after"]
    names = {"standard_name": "time", "long_name": "initial time of forecast"}
    return _forecast(found, ("time", names), ("step", {}), valid_time=valid)


def regional(found: dict[str, Any]) -> xarray.Dataset:
    """Time and steps alone."""
    return _forecast(found, ("time", {}), ("leadtime", {}))


def ours(found: dict[str, Any]) -> xarray.Dataset:
    """As `evaluate.py` writes it."""
    return _forecast(
        found, ("time", {"standard_name": "forecast_reference_time"}), ("lead_time", {})
    )


def _forecast(
    found: dict[str, Any],
    begin: tuple[str, dict[str, str]],
    step: tuple[str, dict[str, str]],
    valid_time: np.ndarray | None = None,
) -> xarray.Dataset:
    dims = (begin[0], step[0])
    coordinates: dict[str, Any] = {
        begin[0]: (begin[0], found["begins"], {"units": SINCE, **begin[1]}),
        step[0]: (step[0], found["after"], {"units": "hours", **step[1]}),
        "lat": ("lat", LAT),
        "lon": ("lon", LON),
    }
    if valid_time is not None:
        coordinates["valid_time"] = (dims, valid_time, {"units": SINCE, "standard_name": "time"})
    field = ((*dims, "lat", "lon"), found["values"].astype("f4"), {"units": "ug m-3"})
    return xarray.Dataset({"o3": field}, coordinates)


MAKES = [cams, cfgrib, regional, ours]


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("turned", [False, True])
def test_forecasts_that_follow_each_other_are_hours_of_a_source(tmp_path, make, turned):
    parts = steps(3, [1, 2, 3], 3)
    found = make(parts)
    if turned:
        found = found.transpose(*reversed(found["o3"].dims))
    path = save(found, tmp_path / "a")
    view = SourceView(Source(str(path)))
    np.testing.assert_array_equal(view.times, START + 1 + np.arange(9))
    np.testing.assert_array_equal(
        view.read(("o3",), slice(2, 7))[:, 0], parts["values"].reshape(9, 3, 4)[2:7]
    )


@pytest.mark.parametrize("make", MAKES)
def test_several_lead_times_for_one_valid_time_are_refused_with_both_names(tmp_path, make):
    found = make(steps(2, [0, 6, 12], 6))
    with pytest.raises(AqnetError, match="several lead times for one valid time") as caught:
        ozone(save(found, tmp_path / "a"))
    begin, step = found["o3"].dims[:2]
    assert f"'{begin}'" in str(caught.value) and f"'{step}'" in str(caught.value)


@pytest.mark.parametrize("make", MAKES)
def test_one_step_a_time_gives_the_time_for_which_fields_hold(tmp_path, make):
    path = save(make(steps(4, [12], 1)), tmp_path / "a")
    np.testing.assert_array_equal(SourceView(Source(str(path))).times, START + 12 + np.arange(4))


@pytest.mark.parametrize("make", MAKES)
def test_forecast_files_are_scored_at_their_own_lead_times(tmp_path, make):
    parts = steps(2, [3, 24], 6)
    path = save(make(parts), tmp_path / "a")
    files = ForecastFiles(str(path), config(tmp_path))
    assert files.times.tolist() == [START, START + 6]
    assert files.lead_times is not None and files.lead_times.tolist() == [3, 24]
    found = files.read(START + 6, (3, 24))
    np.testing.assert_array_equal(found[:, 0], parts["values"][1])  # targets are o3, pm25


def test_a_reference_time_alone_is_refused(tmp_path):
    found = dataset()
    found["time"].attrs["standard_name"] = "forecast_reference_time"
    for read in (ozone, lambda path: ForecastFiles(str(path), config(tmp_path))):
        with pytest.raises(AqnetError, match="'time' is when a forecast began, and neither"):
            read(save(found, tmp_path / "a"))


@pytest.mark.parametrize("where", [(), ("time",)])
def test_a_time_that_may_be_either_is_refused_until_its_standard_name_says_it(tmp_path, where):
    lead = np.full(5 if where else (), 12)
    found = dataset().assign_coords(step=(where, lead, {"units": "hours"}))
    valid = SourceView(Source(str(save(found, tmp_path / "a"))))
    np.testing.assert_array_equal(valid.times, START + np.arange(5))
    del found["time"].attrs["standard_name"]
    with pytest.raises(AqnetError, match=r"'time' may be.*'step'.*forecast_reference_time"):
        ozone(save(found, tmp_path / "b"))
    found["time"].attrs["standard_name"] = "forecast_reference_time"
    later = SourceView(Source(str(save(found, tmp_path / "c"))))
    np.testing.assert_array_equal(later.times, START + 12 + np.arange(5))


def test_hours_of_one_run_are_scored_from_when_it_began(tmp_path):
    found = dataset().assign_coords(
        forecast_reference_time=(
            (),
            START - 2,
            {"units": SINCE, "standard_name": "forecast_reference_time"},
        )
    )
    files = ForecastFiles(str(save(found, tmp_path / "a")), config(tmp_path))
    assert files.times.tolist() == [START - 2]
    assert files.lead_times is not None and files.lead_times.tolist() == [2, 3, 4, 5, 6]
    np.testing.assert_array_equal(files.read(START - 2, (3, 24))[0, 0], FIELD[1])


@pytest.mark.parametrize("kind", ["nc", "zarr2", "zarr3"])
def test_local_times_are_told_by_the_config(tmp_path, kind):
    path = save(dataset(), tmp_path / "a", kind)
    view = SourceView(Source(str(path)), Rules(utc_offset=8))
    np.testing.assert_array_equal(view.times, START - 8 + np.arange(5))


# Values that cannot be


@pytest.mark.parametrize("kind", ["nc", "zarr2", "zarr3"])
@pytest.mark.parametrize("code", [-9999.0, 1e20, 99999.0])
def test_undeclared_codes_are_named_with_count_and_place_and_can_be_told(tmp_path, kind, code):
    values = FIELD.copy()
    values[2:4, 1, 2] = code
    path = save(dataset(values), tmp_path / "a", kind)
    with pytest.raises(AqnetError, match=r"'o3' holds .* ug m-3 in 2 values") as caught:
        ozone(path)
    assert "the first at 2013-01-01 02:00, row 1, column 2" in str(caught.value)
    assert "set data.missing_values: [" in str(caught.value)
    assert "'o3' holds" in "".join(inspect.inspect(path).problems)
    found = ozone(path, Rules(missing_values=(code,)))
    assert np.isnan(found[2:4, 1, 2]).all() and np.isnan(found).sum() == 2


@pytest.mark.parametrize("kind", ["nc", "zarr2", "zarr3"])
def test_infinite_values_are_refused_everywhere(tmp_path, kind):
    values = FIELD.copy()
    values[4, 0, 0] = -np.inf
    other = {"cloud": (("time", "lat", "lon"), values, {"units": "1"})}
    view = SourceView(Source(str(save(dataset(**other), tmp_path / "a", kind))))
    with pytest.raises(
        AqnetError, match=r"'cloud' holds infinite values \(1, the first at .*04:00"
    ):
        view.read(("cloud",), slice(0, 5))


# Attributes, the same for both formats

_ATTRIBUTES = [
    # attributes, stored values, and what they mean
    ({"scale_factor": [0.5], "add_offset": [10.0]}, np.int16([0, 2]), [10, 11]),
    ({"scale_factor": "0.5"}, np.int16([0, 2]), [0, 1]),
    ({"_Unsigned": "true", "scale_factor": 0.5}, np.int8([-1, 2]), [127.5, 1]),
    ({"_Unsigned": "true", "_FillValue": np.int8(-1)}, np.int8([-1, -2]), [np.nan, 254]),
    ({"missing_value": [-9.0]}, np.float32([-9, 3]), [np.nan, 3]),
    ({"missing_value": "-9"}, np.float32([-9, 3]), [np.nan, 3]),
    ({"missing_value": 1e20}, np.float32([1e20, 3]), [np.nan, 3]),
    ({"valid_range": np.int16([1, 5]), "scale_factor": 0.1}, np.int16([1, 6]), [0.1, np.nan]),
    ({"valid_min": 0.5}, np.float32([0, 3]), [np.nan, 3]),
    ({"valid_max": [2.0]}, np.float32([0, 3]), [0, np.nan]),
    ({"valid_range": [0.5, 2.0]}, np.float64([0, 1]), [np.nan, 1]),
    ({"_FillValue": np.int32(7)}, np.int32([7, 8]), [np.nan, 8]),
]


@pytest.mark.parametrize("kind", ["nc", "zarr2", "zarr3"])
@pytest.mark.parametrize(("attributes", "stored", "meant"), _ATTRIBUTES)
def test_attributes_mean_the_same_in_both_formats(tmp_path, kind, attributes, stored, meant):
    values = np.broadcast_to(stored[:, None, None], (2, 3, 4))
    path = save(dataset(FIELD[:2]).drop_vars("o3"), tmp_path / "a", kind)
    told = {"units": "ug m-3", **attributes}
    if kind == "nc":
        import netCDF4

        with netCDF4.Dataset(path, "a") as file:
            fill = told.pop("_FillValue", None)
            variable = file.createVariable(
                "o3", stored.dtype, ("time", "lat", "lon"), fill_value=fill
            )
            variable.set_auto_maskandscale(False)
            variable.setncatts(told)
            variable[:] = values
    else:
        dims = ["time", "lat", "lon"]
        plain = {key: np.asarray(value).tolist() for key, value in told.items()}
        named = {"dimension_names": dims} if kind == "zarr3" else {}
        plain |= {} if named else {"_ARRAY_DIMENSIONS": dims}
        group = zarr.open_group(path)
        group.create_array("o3", data=values, **named, attributes=plain)
    np.testing.assert_allclose(ozone(path)[:, 0, 0], meant, rtol=1e-6)


@pytest.mark.parametrize("version", [2, 3])
def test_a_fill_value_of_0_marks_nothing_and_an_attribute_does(tmp_path, version):
    path = save(dataset(FIELD[:2]).drop_vars("o3"), tmp_path / "a", f"zarr{version}")
    dims = ["time", "lat", "lon"]
    named = {"dimension_names": dims} if version == 3 else {}
    values = np.array([0, 5], np.uint8)[:, None, None] * np.ones((1, 3, 4), np.uint8)
    array = zarr.open_group(path).create_array("o3", data=values, fill_value=0, **named)
    array.attrs.update({"units": "ug m-3", "_ARRAY_DIMENSIONS": dims})
    np.testing.assert_array_equal(ozone(path)[:, 0, 0], [0, 5])
    array.attrs["missing_value"] = 0
    np.testing.assert_array_equal(ozone(path)[:, 0, 0], [np.nan, 5])


def test_values_never_written_to_netcdf_are_missing(tmp_path):
    import netCDF4

    path = save(dataset().drop_vars("o3"), tmp_path / "a")
    for kind in ("f4", "f8", "i2"):
        with netCDF4.Dataset(path, "a") as file:
            variable = file.createVariable(f"o3_{kind}", kind, ("time", "lat", "lon"))
            variable.units = "ug m-3"
            variable[:3] = FIELD[:3]
        view = SourceView(Source(str(path), {"o3": f"o3_{kind}"}))
        found = view.read(("o3",), slice(0, 5))[:, 0]
        np.testing.assert_array_equal(found[:3], FIELD[:3])
        assert np.isnan(found[3:]).all()


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("version", [2, 3])
def test_a_stale_copy_of_the_metadata_is_not_read(tmp_path, version):
    path = save(dataset(), tmp_path / "a", f"zarr{version}")
    zarr.consolidate_metadata(path)
    later = dataset().assign_coords(time=("time", START + 5 + np.arange(5)))
    later = later.drop_vars(["lat", "lon"]).drop_attrs()
    later.to_zarr(path, append_dim="time", consolidated=False)
    zarr.open_group(path, use_consolidated=False)["o3"].attrs["units"] = "ng m-3"
    found = ozone(path)
    np.testing.assert_allclose(found, 1e-3 * np.concatenate([FIELD, FIELD]), rtol=1e-6)


# Refusals that name the cause


def test_one_variable_a_file_is_named_and_can_be_listed(tmp_path):
    for name in ("o3", "pm25", "no2"):
        save(dataset().rename(o3=name), tmp_path / name)
    with pytest.raises(AqnetError, match=r"hold one variable each .*entries of data\.sources"):
        SourceView(Source(str(tmp_path / "*.nc")))
    names = ("o3", "pm25", "no2")
    sources = several(tmp_path, *(Source(str(tmp_path / f"{name}.nc")) for name in names))
    found = sources.read(names, slice(1, 3))
    for channel in range(3):
        np.testing.assert_array_equal(found[:, channel], FIELD[1:3])


@pytest.mark.parametrize("version", ["NETCDF4", "NETCDF3_CLASSIC", "NETCDF4_CLASSIC"])
def test_members_of_a_zip_are_read_as_files(tmp_path, version):
    path = save(dataset(), tmp_path / "a")
    dataset().to_netcdf(path, format=version)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.write(path, "data/a.nc")
        packed.writestr("readme.txt", "no data")
    np.testing.assert_array_equal(ozone(tmp_path / "a.zip"), FIELD)
    assert inspect.inspect(tmp_path / "a.zip/a.nc").problems == []
    (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:-30])
    with pytest.raises(AqnetError, match=r"a\.zip: cannot read this archive"):
        ozone(tmp_path / "a.zip")


# Data from more than one place


def several(folder: Path, *sources: Source, **other: Any) -> Sources:
    data = Data(
        stores=str(folder / "stores"),
        variables=("u", "v", "temp", "psfc", "o3"),
        targets=("o3",),
        split=Split(("2013",), ("2014",), ("2015",)),
        sources=sources,
        **other,
    )
    return open_sources(data, write=False)


def weather(
    step: int, fine: int = 4, count: int = 20, ratio: float | None = None
) -> xarray.Dataset:
    """Fields that are linear in space and count the hours, on a finer grid, every `step` hours."""
    lat = np.linspace(LAT[0] + 5, LAT[-1] - 5, 4 * fine + 1)
    lon = np.linspace(LON[0] - 5, LON[-1] + 5, 5 * fine + 1)
    hours = np.arange(0, count, step)
    plane = lat[:, None] + 0 * lon
    fields = {
        "t2m": (250 + plane[None] + hours[:, None, None], "K"),
        "sp": (np.full((len(hours), *plane.shape), 1e5), "Pa"),
        "u10": (hours[:, None, None] + 0 * plane, "m s-1"),
        "v10": (0 * hours[:, None, None] + 0 * plane, "m s-1"),
    }
    found = {
        name: (("time", "lat", "lon"), values.astype("f4"), {"units": unit})
        for name, (values, unit) in fields.items()
    }
    coordinates = {"time": ("time", START + hours, {"units": SINCE}), "lat": lat, "lon": lon}
    return xarray.Dataset(found, coordinates)


NAMES = {"temp": "t2m", "psfc": "sp", "u": "u10", "v": "v10"}


@pytest.mark.parametrize("step", [1, 2, 3])
def test_weather_of_another_grid_and_step_joins_the_hours_of_the_first(tmp_path, step, capsys):
    air = save(dataset(), tmp_path / "air")
    other = save(weather(step), tmp_path / "weather")
    sources = several(tmp_path, Source(str(air)), Source(str(other), NAMES))
    names = ("u", "v", "temp", "psfc", "o3")
    sources.check_variables(names, slice(0, 5))
    found = sources.read(names, slice(0, 5))
    np.testing.assert_array_equal(found[:, 4], FIELD)
    there = np.arange(5) % step == 0
    np.testing.assert_allclose(found[there, 0], np.arange(5.0)[there][:, None, None] + 0 * FIELD[0])
    np.testing.assert_allclose(
        found[there][:, 2, :, 0], 250 + LAT + np.arange(5)[there][:, None], atol=0.5
    )
    assert np.isnan(found[~there][:, :4]).all()
    said = capsys.readouterr().out
    lacking = int((~there).sum())
    assert (f"missing at {lacking} of 5 hours" in said) == (lacking > 0)


@pytest.mark.parametrize(
    ("unit", "amount", "expected"),
    [
        ("kg kg-1", 1e-7, 1e-7 * 1e9 * 1e5 / (287.05 * 290)),
        ("ppb", 50, 50e-9 * 47.9982 / 28.9647 * 1e9 * 1e5 / (287.05 * 290)),
        ("mol mol-1", 5e-8, 50e-9 * 47.9982 / 28.9647 * 1e9 * 1e5 / (287.05 * 290)),
    ],
)
def test_mixing_ratios_become_concentrations_with_the_air_of_another_entry(
    tmp_path, unit, amount, expected
):
    found = dataset(np.full_like(FIELD, amount))
    found["o3"].attrs["units"] = unit
    air = save(found, tmp_path / "air")
    other = weather(1)
    other["t2m"] = other["t2m"] * 0 + 290
    other["t2m"].attrs["units"] = "K"
    path = save(other, tmp_path / "weather")
    sources = several(tmp_path, Source(str(air)), Source(str(path), NAMES))
    sources.check_variables(("o3",), slice(0, 5))
    np.testing.assert_allclose(sources.read(("o3",), slice(0, 5)), expected, rtol=1e-5)
    alone = several(tmp_path, Source(str(air)))
    with pytest.raises(AqnetError, match=r"'o3' has units of a mixing ratio.*density of the air"):
        alone.check_variables(("o3",), slice(0, 5))


def test_an_entry_elsewhere_is_refused(tmp_path):
    air = save(dataset(), tmp_path / "air")
    far = save(weather(1).assign_coords(lat=np.linspace(-60, -40, 17)), tmp_path / "far")
    with pytest.raises(AqnetError, match=r"far\.nc: covers no cell of the grid of .*air\.nc"):
        several(tmp_path, Source(str(air)), Source(str(far), NAMES))


def test_winds_are_turned_by_the_grid_of_their_own_entry(tmp_path):
    from aqnet.data.regridding.winds import grid_angle
    from tests.data.source_writers import lambert

    lat, lon, _ = lambert(30, 40, 150.0)
    air = save(dataset(), tmp_path / "air")
    coordinates = {
        "time": ("time", START + np.arange(5), {"units": SINCE}),
        "lat2d": (("y", "x"), lat),
        "lon2d": (("y", "x"), lon),
    }
    angle = grid_angle(lat, lon)
    dims = ("time", "y", "x")
    # 10 m/s to the east everywhere, told along the grid
    along = {"u": 10 * np.cos(angle), "v": -10 * np.sin(angle)}
    fields = {
        name: (dims, np.repeat(values[None], 5, 0), {"units": "m s-1"})
        for name, values in along.items()
    }
    path = save(xarray.Dataset(fields, coordinates), tmp_path / "wrf")
    sources = several(tmp_path, Source(str(air)), Source(str(path)), winds="grid")
    found = sources.read(("u", "v"), slice(0, 2))
    np.testing.assert_allclose(found[:, 0], 10, rtol=1e-3)
    np.testing.assert_allclose(found[:, 1], 0, atol=1e-2)


# Other formats, where what reads them is installed


def test_a_format_that_nothing_installed_reads_is_named(tmp_path):
    for name, module in (("a.grib", "cfgrib"), ("a.tif", "rioxarray")):
        (tmp_path / name).write_bytes(b"GRIB")
        words = rf"{name}: (reading .* files needs {module}|cannot read this file as)"
        with pytest.raises(AqnetError, match=words), open_file(tmp_path / name):
            pass


def test_without_xarray_one_line_says_what_to_install(tmp_path, monkeypatch):
    path = save(dataset(), tmp_path / "a")
    monkeypatch.setitem(__import__("sys").modules, "cf_xarray", None)
    with pytest.raises(AqnetError, match=r"pip install 'aqnet\[convert\]'"):
        SourceView(Source(str(path)))


def geotiff(path: Path, crs: str = "EPSG:4326", nodata: float | None = None) -> Path:
    rasterio = pytest.importorskip("rasterio")
    pytest.importorskip("rioxarray")
    corner = rasterio.transform.from_origin(LON[0] - 2.5, LAT[0] + 2.5, 5, 5)
    shape = {"height": 3, "width": 4, "count": 1, "dtype": "float32"}
    with rasterio.open(
        path, "w", "GTiff", crs=crs, transform=corner, nodata=nodata, **shape
    ) as file:
        file.write(FIELD[1].astype("f4"), 1)
    return path


@pytest.mark.parametrize("nodata", [None, 15.0, -99999.0])
def test_geotiffs_in_degrees_are_read_north_up(tmp_path, nodata):
    with open_file(geotiff(tmp_path / "a.tif", nodata=nodata)) as file:
        np.testing.assert_allclose(file.cells.lat[:, 0], LAT)
        np.testing.assert_allclose(file.cells.lon[0], LON)
        expected = np.where(FIELD[1] == nodata, np.nan, FIELD[1])
        np.testing.assert_array_equal(file.read("band_data"), expected)


def test_a_projected_geotiff_is_refused(tmp_path):
    path = geotiff(tmp_path / "a.tif", "EPSG:32650")
    with pytest.raises(AqnetError, match=r"EPSG:32650; expected degrees"), open_file(path):
        pass


@pytest.mark.parametrize(
    ("runs", "steps", "hours"),
    [([0, 1, 2], [0], [0, 1, 2]), ([0], [1, 2, 3], [1, 2, 3]), ([0, 2], [1, 2], [1, 2, 3, 4])],
)
def test_grib_gives_the_hours_for_which_its_messages_hold(tmp_path, runs, steps, hours):
    pytest.importorskip("cfgrib")
    import eccodes

    edges = {"latitudeOfFirstGridPoint": LAT[0], "latitudeOfLastGridPoint": LAT[-1]}
    edges |= {"longitudeOfFirstGridPoint": LON[0], "longitudeOfLastGridPoint": LON[-1]}
    edges |= {"iDirectionIncrement": 5.0, "jDirectionIncrement": 5.0}
    keys = {"Ni": 4, "Nj": 3, **{f"{key}InDegrees": value for key, value in edges.items()}}
    keys |= {"dataDate": 20130101, "shortName": "2t", "level": 2}
    with (tmp_path / "a.grib").open("wb") as file:
        for run in runs:
            for step in steps:
                message = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
                for key, value in {**keys, "dataTime": 100 * run, "stepRange": step}.items():
                    eccodes.codes_set(message, key, value)
                eccodes.codes_set_values(message, 280 + 10 * (run + step) + FIELD[0].ravel())
                eccodes.codes_write(message, file)
                eccodes.codes_release(message)
    view = SourceView(Source(str(tmp_path / "a.grib"), {"temp": "t2m"}))
    np.testing.assert_array_equal(view.times, START + np.array(hours))
    expected = 280 + 10 * np.array(hours)[:, None, None] + FIELD[0]
    found = view.read(("temp",), slice(0, len(hours)))[:, 0]
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["a.grib"]
