from pathlib import Path

import numpy as np
import pytest
import zarr

from aqnet.config import Data, Source, load
from aqnet.data.inspect import run as inspect
from aqnet.data.sources.files import source_file as source_files
from aqnet.data.sources.several import open_sources
from aqnet.data.sources.view import Rules, SourceView
from aqnet.errors import AqnetError
from tests.data.source_writers import LAT, LON, TARGETS, fields, hours, write_zarr

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("two_d", [False, True])
def test_zarr_stores_read_back_across_years(tmp_path, version, two_d):
    values = {year: fields(30, year) for year in (2013, 2014)}
    for year in values:
        path = tmp_path / f"data_{year}_china_masked.zarr"
        write_zarr(path, hours(year, 30), values[year], version, two_d=two_d)
    view = SourceView(Source(str(tmp_path / "*.zarr")))
    np.testing.assert_array_equal(view.times, np.concatenate([hours(2013, 30), hours(2014, 30)]))
    block = view.read(TARGETS, slice(20, 45))
    expected = np.concatenate([values[2013]["o3"][20:], values[2014]["o3"][:15]])
    np.testing.assert_array_equal(block[:, 1], expected)
    np.testing.assert_array_equal(view.lat[:, 0], LAT)
    assert view.static("elevation").shape == (3, 4)


def test_minus_999_is_missing_and_units_can_be_given(tmp_path):
    values = fields(5)
    values["pm25"][2, 1, 1] = -999
    write_zarr(tmp_path / "a.zarr", hours(2013, 5), values, units=None)
    view = SourceView(Source(str(tmp_path / "*.zarr")), Rules({"pm25": "mg m-3"}))
    block = view.read(("pm25",), slice(0, 5))
    assert np.isnan(block[2, 0, 1, 1])
    np.testing.assert_allclose(block[0, 0, 1, 1], 1000 * values["pm25"][0, 1, 1], rtol=1e-6)


def write_netcdf(path: Path, time: np.ndarray, two_d: bool, axis: str = "time") -> np.ndarray:
    netCDF4 = pytest.importorskip("netCDF4")
    values = fields(len(time))["o3"]
    with netCDF4.Dataset(path, "w") as file:
        for name, size in ((axis, len(time)), ("y", 3), ("x", 4)):
            file.createDimension(name, size)
        variable = file.createVariable(axis, "i4", (axis,))
        variable.units, variable[:] = "hours since 2013-01-01 00:00:0.0", time - hours(2013, 1)[0]
        grid = np.meshgrid(LAT, LON, indexing="ij") if two_d else (LAT, LON)
        for name, data, dim in (("latitude", grid[0], "y"), ("longitude", grid[1], "x")):
            dims = ("y", "x") if two_d else (dim,)
            file.createVariable(name, "f8", dims)[:] = data
        packed = file.createVariable("go3", "i2", (axis, "y", "x"), fill_value=-32767)
        packed.units, packed.scale_factor, packed.add_offset = "ug m**-3", 1e-3, 25.0
        packed[:] = np.ma.masked_array(np.nan_to_num(values), np.isnan(values))
    return values


@pytest.mark.parametrize("axis", ["time", "valid_time"])
@pytest.mark.parametrize("two_d", [False, True])
def test_packed_netcdf_reads_by_name_map(tmp_path, two_d, axis):
    values = write_netcdf(tmp_path / "a.nc", hours(2013, 8, 3), two_d, axis)
    view = SourceView(Source(str(tmp_path / "*.nc"), {"o3": "go3"}))
    np.testing.assert_array_equal(view.times, hours(2013, 8, 3))
    np.testing.assert_allclose(view.read(("o3",), slice(0, 8))[:, 0], values, atol=6e-4)
    np.testing.assert_array_equal(view.lon[0], LON)


@pytest.mark.parametrize(("order", "found"), [([0, 2, 1], "unsorted"), ([0, 1, 1], "duplicated")])
def test_times_out_of_order_are_named(tmp_path, order, found):
    write_zarr(tmp_path / "a.zarr", hours(2013, 3)[order], fields(3))
    with pytest.raises(AqnetError, match=f"{found}.*2013-01-01"):
        SourceView(Source(str(tmp_path / "*.zarr")))


def test_overlapping_files_are_refused(tmp_path):
    for name in "ab":
        write_zarr(tmp_path / f"{name}.zarr", hours(2013, 3), fields(3))
    with pytest.raises(AqnetError, match="duplicated or overlap"):
        SourceView(Source(str(tmp_path / "*.zarr")))


@pytest.mark.parametrize(
    ("lat", "found"),
    [(LAT[::-1], "runs the other way"), (LAT + 1, "other coordinates"), (LAT[:2], "shape")],
)
def test_grid_differing_between_years_is_refused(tmp_path, lat, found):
    write_zarr(tmp_path / "a.zarr", hours(2013, 3), fields(3))
    cut = {name: data[:, : len(lat)] for name, data in fields(3).items()}
    write_zarr(tmp_path / "b.zarr", hours(2014, 3), cut, lat=lat)
    with pytest.raises(AqnetError, match=f"grid differs.*{found}"):
        SourceView(Source(str(tmp_path / "*.zarr")))


@pytest.mark.parametrize(("value", "found"), [(np.inf, "infinite"), (-3.0, "no packing noise")])
def test_impossible_values_are_refused(tmp_path, value, found):
    values = fields(3)
    values["o3"][1, 2, 2] = value
    write_zarr(tmp_path / "a.zarr", hours(2013, 3), values)
    with pytest.raises(AqnetError, match=f"a.zarr: variable 'o3'.*{found}"):
        SourceView(Source(str(tmp_path / "*.zarr"))).read(("o3",), slice(0, 3))


def test_missing_variable_lists_what_there_is(tmp_path):
    write_zarr(tmp_path / "a.zarr", hours(2013, 3), fields(3))
    view = SourceView(Source(str(tmp_path / "*.zarr")))
    with pytest.raises(AqnetError, match=r"lacks no2 \(as 'no2'\), co \(as 'co'\); .*elevation"):
        view.check_variables(("no2", "o3", "co"), slice(0, 3))
    with pytest.raises(AqnetError, match=r"lacks no2"):
        view.read(("no2",), slice(0, 3))


@pytest.mark.parametrize(
    ("attributes", "found"),
    [
        ({"units": "hours since 1-1-1 00:00:0.0"}, "'time' counts from 1-1-1.*Julian"),
        ({"units": "hours since 1970-13-01"}, "'time' has units 'hours since 1970-13-01'"),
        ({"units": 3}, "'time' has units '3'"),
        ({"units": "minutes since 1970-01-01"}, "'time' holds times that are no whole hours"),
    ],
)
def test_times_that_cannot_be_trusted_are_refused(tmp_path, attributes, found):
    path = write_zarr(tmp_path / "a.zarr", hours(2013, 3), fields(3))
    zarr.open_group(path)["time"].attrs.update(attributes)
    with pytest.raises(AqnetError, match=rf"a\.zarr: {found}"):
        SourceView(Source(str(path)))


def test_years_before_1582_count_rightly_where_the_calendar_is_proleptic(tmp_path):
    first = np.datetime64("0001-01-01", "h").astype(np.int64)
    path = write_zarr(tmp_path / "a.zarr", hours(2013, 3) - first, fields(3))
    named = {"units": "hours since 0001-01-01", "calendar": "proleptic_gregorian"}
    zarr.open_group(path)["time"].attrs.update(named)
    np.testing.assert_array_equal(SourceView(Source(str(path))).times, hours(2013, 3))


def test_a_file_of_one_hour_needs_no_time_axis(tmp_path):
    values, group = fields(3)["o3"], write_zarr(tmp_path / "a.zarr", hours(2013, 3), fields(3))
    netCDF4 = pytest.importorskip("netCDF4")
    with netCDF4.Dataset(tmp_path / "a.nc", "w") as file:
        for name, data in (("lat", LAT), ("lon", LON)):
            file.createDimension(name, len(data))
            file.createVariable(name, "f8", (name,))[:] = data
        file.createVariable("time", "i8", ())[...] = hours(2013)[0]
        file["time"].units = "hours since 1970-01-01"
        file.createVariable("o3", "f4", ("lat", "lon"))[:] = values[0]
        file["o3"].units = "ug m-3"
    view = SourceView(Source(str(tmp_path / "a.nc")))
    view.check_variables(("o3",), slice(0, 1))
    np.testing.assert_array_equal(view.read(("o3",), slice(0, 1))[0, 0], values[0])
    found = inspect.inspect(tmp_path / "a.nc")
    assert found.problems == []
    assert found.variables["o3"].high == np.nanmax(values[0])
    with pytest.raises(AqnetError, match=r"'elevation' has dimensions \('lat', 'lon'\)"):
        SourceView(Source(str(group))).check_variables(("elevation",), slice(0, 3))


def test_netcdf_units_that_are_a_number_are_read_as_text(tmp_path):
    netCDF4 = pytest.importorskip("netCDF4")
    write_netcdf(tmp_path / "a.nc", hours(2013, 8, 3), two_d=False)
    with netCDF4.Dataset(tmp_path / "a.nc", "a") as file:
        file["go3"].units, file["go3"].scale_factor = np.int32(1), 1e-5
        file["go3"].add_offset = 0.5
    view = SourceView(Source(str(tmp_path / "*.nc"), {"rh": "go3"}))
    assert np.nanmean(view.read(("rh",), slice(0, 8))) > 20  # a share, so per cent


def test_unreadable_files_are_named(tmp_path):
    pytest.importorskip("netCDF4")
    (tmp_path / "a.nc").write_bytes(b"no NetCDF")
    with pytest.raises(AqnetError, match=r"a.nc: cannot read"):
        SourceView(Source(str(tmp_path / "*.nc")))
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(AqnetError, match=r"a.zarr: cannot read"):
        SourceView(Source(str(tmp_path / "*.zarr")))
    with pytest.raises(AqnetError, match="no file matches"):
        SourceView(Source(str(tmp_path / "*.h5")))


def test_a_config_without_sources_is_refused():
    data = load(ROOT / "configs/eac4.yaml").data
    none = Data(data.stores, data.variables, data.targets, data.split)
    with pytest.raises(AqnetError, match="lists no source"):
        open_sources(none)


@pytest.mark.parametrize(("name", "count"), [("eac4", 14608), ("beijing", 24872)])
def test_real_data_read_in_physical_units(name, count, monkeypatch):
    monkeypatch.chdir(ROOT)
    pytest.importorskip("netCDF4")
    data = load(f"configs/{name}.yaml").data
    if not Path(data.sources[0].path).parent.exists():
        pytest.skip(f"{data.sources[0].path} is not on this machine")
    view = open_sources(data)
    assert len(view.times) == count
    names = data.stored
    block = view.read(names, slice(2000, 2240))
    co = block[:, names.index("co")]
    assert 100 < np.nanmean(co) < 5000
    if "temp" in names:
        assert 270 < np.nanmean(block[:, names.index("temp")]) < 310
        assert 9e4 < np.nanmean(block[:, names.index("psfc")]) < 1.1e5


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    "encoding",
    [
        {"_FillValue": np.float32(9.96921e36)},
        {"_FillValue": np.float32(-9999)},
        {"_FillValue": np.nan},
        {"_FillValue": None, "missing_value": np.float32(1e20)},
        {"dtype": "int16", "scale_factor": 0.1, "add_offset": 5.0, "_FillValue": -32767},
    ],
)
def test_fill_values_of_stores_written_by_xarray_are_missing(tmp_path, version, encoding):
    xarray = pytest.importorskip("xarray")
    path = tmp_path / "a.zarr"
    write_zarr(path, hours(2013, 2), fields(2), version)
    values = np.full((2, 3, 4), 5.0, np.float32)
    values[:, 1, 2], values[:, 2, 2] = np.nan, 0.0
    field = xarray.DataArray(values, dims=("time", "lat", "lon"), attrs={"units": "ug m-3"})
    field.to_dataset(name="so2").to_zarr(
        path, mode="a", zarr_format=version, encoding={"so2": encoding}, consolidated=False
    )
    found = SourceView(Source(str(path))).read(("so2",), slice(0, 2))[:, 0]
    np.testing.assert_allclose(found, values, atol=1e-6)


@pytest.mark.parametrize("version", [2, 3])
def test_chunks_never_written_are_missing_whatever_they_are_filled_with(tmp_path, version):
    path = write_zarr(tmp_path / "a.zarr", hours(2013, 3), fields(3), version)
    group = zarr.open_group(path)
    dims = ["time", "lat", "lon"]
    named = [{"dimension_names": dims}, {"dimension_names": dims[1:]}] if version == 3 else [{}] * 2
    array = group.create_array(
        "so2", shape=(3, 3, 4), dtype="f4", chunks=(3, 3, 2), fill_value=9.96921e36, **named[0]
    )
    array.attrs.update({"units": "ug m-3", "_ARRAY_DIMENSIONS": dims})
    array[:, :, 2:] = 5.0
    inside = group.create_array("mask", data=np.eye(3, 4, dtype=bool), fill_value=True, **named[1])
    inside.attrs["_ARRAY_DIMENSIONS"] = dims[1:]
    with source_files.open_file(path) as file:
        np.testing.assert_array_equal(file.values("mask"), np.asarray(inside))
    found = SourceView(Source(str(path))).read(("so2",), slice(0, 3))[:, 0]
    np.testing.assert_array_equal(found[:, :, 2:], 5.0)
    assert np.isnan(found[:, :, :2]).all()


def test_values_beyond_float32_are_refused(tmp_path):
    values = {name: field.astype(np.float64) for name, field in fields(2).items()}
    values["o3"][1, 1, 1] = 1e39
    view = SourceView(Source(str(write_zarr(tmp_path / "a.zarr", hours(2013, 2), values))))
    with pytest.raises(AqnetError, match=r"'o3' holds 1e\+39 ug m-3"):
        view.read(("o3",), slice(0, 2))
