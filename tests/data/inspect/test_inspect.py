import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from aqnet.data.inspect import run as inspect
from aqnet.data.prepare import store_writer
from aqnet.errors import AqnetError
from tests.data import worlds
from tests.data.source_writers import LAT, LON, fields, hours, write_caqra, write_zarr


def status(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["inspect", *(str(argument) for argument in arguments)])
    return inspect.main()


def problems(path: Path) -> str:
    return "\n".join(inspect.inspect(path).problems)


@pytest.fixture
def training(tmp_path: Path) -> Path:
    worlds.write_both(tmp_path)
    return tmp_path / "2015.zarr"


@pytest.mark.parametrize("version", [2, 3])
def test_a_sound_source_has_facts_and_no_problem(
    tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    values, times = fields(300), hours(2015)
    values["pm25"][5, 1, 1] = -999
    values["o3"][7] = np.nan
    keep = np.delete(np.arange(300), [50, 51])
    kept = {name: field[keep] for name, field in values.items()}
    path = write_zarr(tmp_path / "any.zarr", times[keep], kept, version, units="ng m-3")
    assert status(monkeypatch, path) == 0
    text = capsys.readouterr().out
    assert "no problem found" in text
    assert "298, every 1 h, 2015-01-01 00:00 to 2015-01-13 11:00 UTC" in text
    assert "2015 (298 of 8,760 times)" in text
    assert "1 with 2 times: 2 after 2015-01-03 01:00" in text
    assert "3 x 4, rows run north to south" in text
    assert "24 x 3 x 4" in text
    row = next(line for line in text.splitlines() if line.startswith("  pm25"))
    present = kept["pm25"][np.isfinite(kept["pm25"]) & (kept["pm25"] != -999)] * 1e-3
    missing = 1 - present.size / kept["pm25"].size
    expected = [present.min(), present.mean(), present.max()]
    assert row.split()[1:3] == ["ug", "m-3"]
    assert row.split()[3] == f"{missing:.1%}"
    assert [float(word.replace(",", "")) for word in row.split()[4:7]] == pytest.approx(
        expected, rel=1e-3
    )
    assert "1 values are -999" in row


def test_netcdf_files_are_read_too(tmp_path: Path):
    netcdf = pytest.importorskip("netCDF4")
    with netcdf.Dataset(tmp_path / "a.nc", "w") as file:
        for name, size in (("time", 4), ("lat", 3), ("lon", 4)):
            file.createDimension(name, size)
        for name, data in (("time", hours(2016, 4, 3)), ("lat", LAT), ("lon", LON)):
            file.createVariable(name, "f8", (name,))[:] = data
        file["time"].units = "hours since 1970-01-01"
        for name, unit in (("pm25", "ug m**-3"), ("rain", "mm")):
            variable = file.createVariable(name, "f4", ("time", "lat", "lon"), fill_value=-1.0)
            variable.units, variable[:] = unit, np.ma.masked_less(fields(4)["pm25"], 10)
    found = inspect.inspect(tmp_path / "a.nc")
    assert found.problems == []
    assert "every 3 h" in found.facts["times"]
    assert "mm" in found.variables["rain"].row()  # aqnet has no such variable: no problem
    assert found.variables["pm25"].low >= 10


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 1, 1, 2], "duplicated times: 1 (2015-01-01 01:00)"),
        ([0, 2, 1, 3], "times out of order: 1 (2015-01-01 01:00)"),
    ],
)
def test_wrong_times_are_problems(tmp_path: Path, rows: list[int], message: str):
    path = write_zarr(tmp_path / "a.zarr", hours(2015)[rows], fields(4))
    assert message in problems(path)


def test_each_wrong_value_is_a_problem_with_its_time(tmp_path: Path):
    values = fields(30)
    values["pm25"][3, 1, 1] = np.inf
    values["o3"][[4, 5, 6, 7, 8, 9], 1, 1] = -0.5
    values["o3"][10, 1, 1] = -0.005  # packing noise
    for field in values.values():
        field[20] = np.nan
    found = problems(write_zarr(tmp_path / "a.zarr", hours(2015, 30), values))
    assert "'pm25' holds inf (1 values) ug m-3 in 1 (2015-01-01 03:00); possible are" in found
    assert "'o3' holds -0.5 (6 values) ug m-3 in 6 (2015-01-01 04:00, " in found
    assert "hours in which every field is missing everywhere: 1 (2015-01-01 20:00)" in found
    assert len(found.splitlines()) == 3


def test_wrong_units_dimensions_and_empty_fields_are_problems(tmp_path: Path):
    path = write_zarr(tmp_path / "a.zarr", hours(2015, 30), fields(30), units="furlong")
    assert "'pm25' has unknown units 'furlong'" in problems(path)
    assert "'o3' has unknown units" in problems(path)
    moving = fields(30) | {"population": fields(30)["o3"]}
    path = write_zarr(tmp_path / "b.zarr", hours(2015, 30), moving)
    assert "variable 'population' has dimensions ('time', 'lat', 'lon')" in problems(path)
    empty = {name: np.full_like(field, np.nan) for name, field in fields(30).items()}
    path = write_zarr(tmp_path / "c.zarr", hours(2015, 30), empty)
    assert "no valid cell" in problems(path)


@pytest.mark.parametrize("version", [2, 3])
def test_damaged_chunks_of_a_source_are_named_and_the_rest_is_read(tmp_path: Path, version: int):
    path = write_zarr(tmp_path / "a.zarr", hours(2015), fields(300), version)
    chunk = path / ("o3/c/1/0/0" if version == 3 else "o3/1.0.0")
    chunk.write_bytes(chunk.read_bytes()[:-9])
    found = inspect.inspect(path)
    assert "variable 'o3' cannot be read" in "\n".join(found.problems)
    assert found.variables["pm25"].values == 300 * 12


@pytest.mark.parametrize("version", [2, 3])
def test_chunks_never_written_are_told_where_they_count_as_values(tmp_path: Path, version: int):
    path = write_zarr(tmp_path / "a.zarr", hours(2015), fields(300), version)
    (path / ("o3/c/1/0/0" if version == 3 else "o3/1.0.0")).unlink()
    found = inspect.inspect(path)
    assert found.problems == []  # a writer leaves out what holds the fill value alone
    assert found.facts["chunks: o3"].startswith("1 of 13 chunks were never written; they read as 0")


def test_an_hour_of_caqra_is_read_though_it_has_no_time_axis(tmp_path: Path):
    pytest.importorskip("netCDF4")
    written = write_caqra(tmp_path, hours(2013, 1))[int(hours(2013)[0])]
    found = inspect.inspect(tmp_path / "CN-Reanalysis2013010100.nc")
    assert found.problems == []
    assert "2013-01-01 00:00 to 2013-01-01 00:00" in found.facts["times"]
    assert found.variables["co"].high == pytest.approx(1000 * written["co"].max(), rel=1e-6)


def test_a_sound_training_store_has_no_problem(training: Path):
    found = inspect.inspect(training)
    assert found.problems == []
    text = found.text()
    assert "training store, format" in text
    assert "9 of 12 cells" in text
    assert found.variables["pm25"].values == 69 * 9


def test_every_damage_of_a_training_store_is_found(training: Path):
    shards = sorted(file for file in (training / "air/c").rglob("*") if file.is_file())
    data = bytearray(shards[0].read_bytes())
    data[20] ^= 1
    shards[0].write_bytes(data)
    shards[1].unlink()
    found = problems(training)
    assert "fields of 2015-12-29T00 cannot be read" in found
    assert "fields of 2015-12-31T03 cannot be read" in found
    assert "and 17 more pieces like these" in found


def test_a_training_store_with_exchanged_files_is_a_problem(training: Path):
    (training / "static/zarr.json").write_text((training / "static/zarr.json").read_text() + " ")
    assert "not those it was finished with" in problems(training)
    text = inspect.inspect(training).text()
    assert "\n1 problem:\n" in text


def test_unfinished_and_strange_folders_are_problems_and_nothing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    where = worlds.grid()
    store_writer.create(
        tmp_path / "2015.zarr",
        weather=(),
        air=("pm25",),
        units={},
        time=np.arange(5),
        grid=where,
        static={},
        source={},
    )
    assert "not a finished training store" in problems(tmp_path / "2015.zarr.partial")
    (tmp_path / "empty").mkdir()
    assert status(monkeypatch, tmp_path / "empty") == 1
    (tmp_path / "text.nc").write_text("no NetCDF")
    assert status(monkeypatch, tmp_path / "text.nc") == 1
    with pytest.raises(AqnetError, match="no such file"):
        status(monkeypatch, tmp_path / "nowhere")


def test_mean_maps_are_drawn(training: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("matplotlib")
    assert status(monkeypatch, training, "--png", tmp_path / "maps") == 0
    assert (tmp_path / "maps/2015.png").stat().st_size > 10_000
    assert status(monkeypatch, training, "--png", tmp_path / "one.png") == 0
    assert (tmp_path / "one.png").read_bytes()[:4] == b"\x89PNG"


def test_mean_maps_hold_the_means_over_time(tmp_path: Path):
    values = fields(40)
    values["pm25"][:13, 2, 2] = np.nan
    found = inspect.inspect(write_zarr(tmp_path / "a.zarr", hours(2015, 40), values))
    expected = np.full((3, 4), np.nan)
    for y, x in np.ndindex(3, 4):
        cell = values["pm25"][:, y, x]
        if np.isfinite(cell).any():
            expected[y, x] = cell[np.isfinite(cell)].mean()
    np.testing.assert_allclose(found.variables["pm25"].mean_map(), expected, rtol=1e-6)
    assert zarr.open_group(found.path, mode="r")["pm25"].chunks == (24, 3, 4)


def test_an_empty_domain_and_an_empty_hour_of_a_training_store_are_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    times = list(range(worlds.FIRST, worlds.FIRST + 30))
    nowhere = worlds.grid(mask=torch.zeros(3, 4, dtype=torch.bool))
    worlds.write(tmp_path / "a", 2015, times, grid=nowhere)
    assert problems(tmp_path / "a/2015.zarr") == "no valid cell: every field is missing everywhere"
    value = worlds.value
    monkeypatch.setattr(
        worlds, "value", lambda time: value(time) * (np.nan if time == times[7] else 1)
    )
    worlds.write(tmp_path / "b", 2015, times)
    assert problems(tmp_path / "b/2015.zarr") == (
        "hours in which every field is missing everywhere: 1 (2015-12-29 07:00)"
    )


def test_bounds_are_no_fields_and_a_field_off_the_grid_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    path = write_zarr(tmp_path / "a.zarr", hours(2015, 5), fields(5))
    group = zarr.open_group(path)
    for name, shape in (("time_bnds", (5, 2)), ("lat_bnds", (3, 2)), ("lon2d_bnds", (3, 4, 4))):
        group.create_array(
            name, data=np.zeros(shape), dimension_names=["a", "b", "c"][: len(shape)]
        )
    assert status(monkeypatch, path, "--png", tmp_path) == 0
    text = capsys.readouterr().out
    for name in ("time_bnds", "lat_bnds", "lon2d_bnds"):
        assert f"not used: {name}" in text
    names = ["time", "lon", "lat"]
    units = {"units": "ug m-3"}
    group.create_array("co", data=np.ones((5, 4, 3)), dimension_names=names, attributes=units)
    found = inspect.inspect(path)
    assert found.problems == []
    assert found.facts["turned: co"] == "from time, lon, lat"
    assert found.variables["co"].mean_map().shape == (3, 4)
    group.create_array("no2", data=np.ones((5, 3, 2)), dimension_names=["time", "lat", "lon2"])
    assert "'no2' has dimensions ('time', 'lat', 'lon2') of sizes (5, 3, 2)" in problems(path)
    assert "lacks lon" in problems(path)


def test_a_field_that_cannot_be_used_is_not_called_missing(tmp_path: Path):
    path = write_zarr(tmp_path / "a.zarr", hours(2015, 5), {"pm25": fields(5)["pm25"]})
    group = zarr.open_group(path)
    del group["pm25"]
    dims = ["time", "level", "lat", "lon"]
    group.create_array("pm25", data=np.ones((5, 2, 3, 4)), dimension_names=dims)
    assert len(problems(path).splitlines()) == 1
    assert "has 2 of 'level': cut one out" in problems(path)
    group["time"].attrs["units"] = "hours"  # type: ignore[union-attr]
    assert "'time' has units 'hours'" in problems(path)
    assert "missing everywhere" not in problems(path)


def test_folders_and_archives_are_refused_and_a_file_in_one_is_inspected(tmp_path: Path):
    pytest.importorskip("netCDF4")
    write_zarr(tmp_path / "data_2015.zarr", hours(2015, 3), fields(3))
    write_caqra(tmp_path, hours(2013, 2))
    archive = tmp_path / "day.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for file in sorted(tmp_path.glob("*.nc")):
            tar.add(file, f"day/{file.name}")
    with pytest.raises(AqnetError, match=r"holds 4 stores or files; inspect one at a time"):
        inspect.inspect(tmp_path)
    with pytest.raises(
        AqnetError, match=r"holds 2 .*day\.tar\.gz/CN-Reanalysis2013010100\.nc for one"
    ):
        inspect.inspect(archive)
    inside, alone = (
        inspect.inspect(folder / "CN-Reanalysis2013010101.nc") for folder in (archive, tmp_path)
    )
    assert inside.problems == []
    assert [v.row() for v in inside.variables.values()] == [
        v.row() for v in alone.variables.values()
    ]
    with pytest.raises(AqnetError, match=r"holds no other\.nc"):
        inspect.inspect(archive / "other.nc")
