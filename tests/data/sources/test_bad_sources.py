"""Damaged and wrong source files through prepare: one clear line, or a counted exclusion."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr
from zarr.codecs import Crc32cCodec

from aqnet.data.prepare.run import prepare
from aqnet.data.stores import store
from aqnet.errors import AqnetError
from tests.conftest import run
from tests.data.on_grid.test_model_grid import load as load_caqra
from tests.data.prepare.test_prepare_faults import load, tree, write_years
from tests.data.source_writers import LAT, fields, hours, write_caqra, write_zarr


def chunk(folder: Path, year: int, name: str, at: int, version: int) -> Path:
    """The file of the at-th chunk in time."""
    inside = f"{at}.0.0" if version == 2 else f"c/{at}/0/0"
    return folder / f"{year}.zarr/{name}/{inside}"


def rewritten(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    values = fields(60, 2014)
    change(values)
    write_zarr(folder / "2014.zarr", hours(2014, 60), values)


def refused(folder: Path, words: str, **data: Any) -> str:
    """The one line with which prepare refuses; no store of 2014 comes to be."""
    with pytest.raises(AqnetError, match=words) as caught:
        prepare(load(folder, **data))
    assert "\n" not in str(caught.value)
    assert not (folder / "stores/2014.zarr").exists()
    return str(caught.value)


@pytest.mark.parametrize("version", [2, 3])
def test_a_truncated_chunk_is_named(tmp_path: Path, version: int):
    write_years(tmp_path, version=version)
    file = chunk(tmp_path, 2014, "o3", 1, version)
    file.write_bytes(file.read_bytes()[:-20])
    assert "get it again" in refused(tmp_path, r"2014\.zarr: variable 'o3' cannot be read")


@pytest.mark.parametrize("version", [2, 3])
def test_a_chunk_never_written_is_the_fill_value_which_is_told_where_it_is_a_value(
    tmp_path: Path, version: int, capsys: pytest.CaptureFixture[str]
):
    write_years(tmp_path, version=version)
    chunk(tmp_path, 2014, "o3", 1, version).unlink()
    prepare(load(tmp_path))
    made = store.open_store(tmp_path / "stores/2014.zarr")
    assert (made.read(30)[1] == 0).all()  # hours 24 to 47 lay in it
    assert made.read(50)[1, 1, 1] > 0
    said = capsys.readouterr().out
    assert "2014.zarr: 'o3': 1 of 3 chunks were never written; they read as 0" in said
    assert "2013.zarr" not in said.split("prepare:")[0]


def test_chunks_missing_at_all_times_are_missing_values(tmp_path: Path):
    write_years(tmp_path)
    shutil.rmtree(tmp_path / "2014.zarr/o3/c")  # as writers that keep no empty chunks leave it
    array = zarr.open_group(tmp_path / "2014.zarr")["o3"]
    array.update_attributes({"_FillValue": 0.0})  # type: ignore[union-attr]
    prepare(load(tmp_path))
    assert np.isnan(store.open_store(tmp_path / "stores/2014.zarr").read(3)[1]).all()


def test_a_flipped_bit_is_found_where_the_format_has_checksums(tmp_path: Path):
    write_years(tmp_path)
    group = zarr.open_group(tmp_path / "2014.zarr", mode="a")
    values = np.asarray(group["o3"][...])  # type: ignore[index]
    array = group.create_array(
        "o3",
        data=values,
        chunks=(24, 3, 4),
        dimension_names=("time", "lat", "lon"),
        compressors=[Crc32cCodec()],
        attributes={"units": "ug m-3"},
        overwrite=True,
    )
    assert array.shape == (60, 3, 4)
    file = chunk(tmp_path, 2014, "o3", 0, 3)
    data = bytearray(file.read_bytes())
    data[500] ^= 1
    file.write_bytes(data)
    refused(tmp_path, r"2014\.zarr: variable 'o3' cannot be read.*checksum")


def test_damaged_netcdf_is_named(tmp_path: Path):
    pytest.importorskip("netCDF4")
    times = np.concatenate([hours(year, 2) for year in (2013, 2014, 2015)])
    write_caqra(tmp_path, times, values=lambda *_: np.full((9, 13), 3.25), checksums=True)
    config = load_caqra(tmp_path, static_files={}, variables=["pm25", "co"])
    file = tmp_path / "CN-Reanalysis2014010101.nc"
    data = bytearray(file.read_bytes())
    place = data.find(np.full(20, 3.25, np.float32).tobytes())
    assert place > 0
    data[place + 5] ^= 8
    file.write_bytes(data)
    with pytest.raises(AqnetError, match=r"2014010101\.nc: variable '\w+' cannot be read"):
        prepare(config)
    file.write_bytes(bytes(data)[:4000])
    with pytest.raises(AqnetError, match=r"2014010101\.nc: .*cannot (be )?read"):
        prepare(config)
    assert not (tmp_path / "stores/2014.zarr").exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.inf, r"2014\.zarr: variable 'pm25' holds infinite"),
        (-np.inf, r"2014\.zarr: variable 'pm25' holds infinite"),
        (-3.0, r"2014\.zarr: variable 'pm25' holds -3 ug m-3"),
        (-0.02, r"2014\.zarr: variable 'pm25' holds -0.02 ug m-3"),
    ],
)
def test_impossible_values_are_refused(tmp_path: Path, value: float, words: str):
    write_years(tmp_path)
    rewritten(tmp_path, lambda values: values["pm25"].__setitem__((50, 1, 1), value))
    refused(tmp_path, words)


def test_missing_marks_noise_and_empty_hours_are_kept_apart_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def change(values: dict[str, np.ndarray]) -> None:
        values["pm25"][50, 1, 1] = -999
        values["pm25"][51, 1, 1] = -0.004
        for field in values.values():
            field[20] = np.nan

    write_years(tmp_path)
    rewritten(tmp_path, change)
    prepare(load(tmp_path))
    made = store.open_store(tmp_path / "stores/2014.zarr")
    assert np.isnan(made.read(50)[0, 1, 1])
    assert made.read(51)[0, 1, 1] == 0
    assert np.isnan(made.read(20)).all()
    assert made.moments()[20, 0].sum() == 0
    said = capsys.readouterr().out
    assert "set to 0: pm25 1" in said
    assert (
        "2014.zarr written, 60 times, every 1 h; 1 of them hold no value in the domain, first "
        in said
    )


@pytest.mark.parametrize("unit", ["ppb", "kg kg-1", "K", "furlong", ""])
def test_wrong_units_are_refused_and_can_be_put_right(tmp_path: Path, unit: str):
    write_years(tmp_path)
    write_zarr(tmp_path / "2014.zarr", hours(2014, 60), fields(60), units=unit)
    words = refused(tmp_path, r"2014\.zarr: variable 'pm25' has .*units.*ug m-3")
    assert "data.units.pm25" in words or "convert the file" in words  # mixing ratios
    prepare(load(tmp_path, units={"pm25": "ug m-3", "o3": "ug m-3"}))


@pytest.mark.parametrize(
    ("lat", "words"), [(LAT[::-1], "runs the other way"), (LAT + 0.5, "other coordinates")]
)
def test_a_year_on_another_grid_is_refused(tmp_path: Path, lat: np.ndarray, words: str):
    write_years(tmp_path)
    write_zarr(tmp_path / "2014.zarr", hours(2014, 60), fields(60), lat=lat)
    refused(tmp_path, rf"2014\.zarr: the grid differs.*{words}")


@pytest.mark.parametrize("calendar", ["noleap", "365_day", "360_day", "julian"])
def test_calendars_without_our_leap_days_are_refused(tmp_path: Path, calendar: str):
    write_years(tmp_path)
    zarr.open_group(tmp_path / "2014.zarr")["time"].update_attributes({"calendar": calendar})  # type: ignore[union-attr]
    refused(tmp_path, rf"2014\.zarr: the calendar of 'time' is '{calendar}'.*leap days")


def test_missing_hours_stay_missing_and_double_ones_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_years(tmp_path)
    kept = np.delete(hours(2014, 60), [7, 8, 30])
    values = {name: np.delete(field, [7, 8, 30], 0) for name, field in fields(60, 2014).items()}
    write_zarr(tmp_path / "2014.zarr", kept, values)
    prepare(load(tmp_path))
    np.testing.assert_array_equal(store.open_store(tmp_path / "stores/2014.zarr").time, kept)
    assert "57 times, every 1 h, 3 missing between first and last" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "stores")
    kept[5] = kept[4]
    write_zarr(tmp_path / "2014.zarr", kept, values)
    refused(tmp_path, r"2014\.zarr: times are duplicated: row 5 \(2014-01-01 04:00\)")


def test_times_between_hours_and_half_stores_are_refused(tmp_path: Path):
    write_years(tmp_path)
    write_zarr(tmp_path / "2014.zarr", hours(2014, 60) + 0.5, fields(60))
    refused(tmp_path, r"2014\.zarr: 'time' holds times that are no whole hours")
    (tmp_path / "2014.zarr/zarr.json").unlink()
    refused(tmp_path, r"2014\.zarr: cannot read this directory as Zarr")


def test_a_source_without_any_target_has_no_valid_cell(tmp_path: Path):
    write_years(tmp_path)
    empty = {name: np.full_like(field, np.nan) for name, field in fields(60).items()}
    write_zarr(tmp_path / "2013.zarr", hours(2013, 60), empty)
    refused(tmp_path, "no valid cell: the targets pm25, o3 are missing everywhere")


def test_a_source_is_only_read(tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    write_years(source)
    for path in (*source.rglob("*"), source):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in (source, *source.rglob("*"))}
    prepare(load(source, stores=str(tmp_path / "stores")), workers=0)
    assert before == {path: path.stat().st_mtime_ns for path in (source, *source.rglob("*"))}
    for path in (source, *source.rglob("*")):
        path.chmod(0o755)


def test_the_command_ends_with_status_2_and_one_line(tmp_path: Path):
    write_years(tmp_path)
    rewritten(tmp_path, lambda values: values["pm25"].__setitem__((50, 1, 1), np.inf))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree(tmp_path)))
    result = run("-m", "aqnet.data.prepare", "--config", str(path), "--workers", "2", status=2)
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert (tmp_path / "stores/2013.zarr").exists()
