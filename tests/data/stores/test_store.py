import pickle
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
import zarr

from aqnet.data.prepare import store_writer
from aqnet.data.stores import store
from aqnet.errors import AqnetError
from aqnet.grid import Grid

HOURS = 100


def fields() -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(HOURS, 3, 4, 5)).astype(np.float32)
    values[7] = np.nan
    values[:, 1, 2, 3] = np.nan
    return values


def begin(path: Path, dtype: str = "float32") -> store_writer.StoreWriter:
    lat, lon = np.meshgrid(np.linspace(20, 50, 4), np.linspace(80, 130, 5), indexing="ij")
    elevation = np.arange(20, dtype=np.float32).reshape(4, 5)
    mask = torch.from_numpy(elevation > 3)
    return store_writer.create(
        path,
        weather=("u", "v"),
        air=("pm25",),
        units={"u": "m s-1", "v": "m s-1", "pm25": "ug m-3", "elevation": "m"},
        time=np.arange(400000, 400000 + HOURS),
        grid=Grid(torch.from_numpy(lat), torch.from_numpy(lon), torch.from_numpy(elevation), mask),
        static={"elevation": elevation},
        source={"path": "random"},
        dtype=dtype,
    )


@pytest.fixture
def written(tmp_path: Path) -> Path:
    writer = begin(tmp_path / "2015.zarr")
    for start in range(0, HOURS, 48):
        writer.write(start, fields()[start : start + 48])
    writer.commit()
    return tmp_path / "2015.zarr"


def test_what_is_written_is_read_back(written: Path):
    opened = store.open_store(written)
    for row in range(HOURS):
        np.testing.assert_array_equal(opened.read(row), fields()[row])
    assert opened.names == ("u", "v", "pm25")
    assert opened.units["pm25"] == "ug m-3"
    assert opened.time[0] == 400000
    assert opened.grid.elevation is not None
    assert opened.grid.elevation[3, 4] == 19
    assert opened.grid.mask.sum() == 16


def test_zarr_and_xarray_read_the_same_with_real_coordinates(written: Path):
    group = zarr.open_group(written, mode="r")
    np.testing.assert_array_equal(group["weather"][...], fields()[:, :2])
    np.testing.assert_array_equal(group["air"][...], fields()[:, 2:])
    opened = xarray.open_zarr(written, consolidated=False)
    found = opened["air"].sel(time=np.datetime64(400009, "h"))
    np.testing.assert_array_equal(found, fields()[9, 2:])
    assert opened["daily_sum"].sel(day=np.datetime64(400009, "h").astype("datetime64[D]")).shape
    assert found.coords["lat"].dims == ("y", "x")
    assert found.coords["lon"].attrs["units"] == "degrees_east"


def test_half_precision_is_read_as_float32(tmp_path: Path):
    writer = begin(tmp_path / "2015.zarr", dtype="float16")
    writer.write(0, fields())
    writer.commit()
    values = store.open_store(tmp_path / "2015.zarr").read(9)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, fields()[9].astype(np.float16))


def test_equal_content_has_an_equal_checksum(written: Path, tmp_path: Path):
    writer = begin(tmp_path / "again.zarr")
    writer.write(0, fields())
    writer.commit()
    other = fields()
    other[0, 0, 0, 0] += 1
    changed = begin(tmp_path / "changed.zarr")
    changed.write(0, other)
    changed.commit()
    checksums = [store.open_store(tmp_path / f"{name}.zarr").checksum for name in ("2015", "again")]
    assert checksums[0] == checksums[1]
    assert store.open_store(tmp_path / "changed.zarr").checksum != checksums[0]


def test_open_stores_travel_to_other_processes(written: Path):
    opened = store.open_store(written)
    opened.read(0)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(opened)).read(5), fields()[5])


def test_an_unfinished_store_is_never_read(tmp_path: Path):
    begin(tmp_path / "2015.zarr").write(0, fields()[:48])
    with pytest.raises(AqnetError, match="no such store"):
        store.open_store(tmp_path / "2015.zarr")
    with pytest.raises(AqnetError, match="not a finished"):
        store.open_store(tmp_path / "2015.zarr.partial")


def test_a_store_with_an_hour_never_written_is_not_finished(tmp_path: Path):
    writer = begin(tmp_path / "2015.zarr")
    writer.write(0, fields()[:48])
    writer.write(96, fields()[96:])
    with pytest.raises(AqnetError, match="2015-08-21T16 were never written"):
        writer.commit()
    writer.write(48, fields()[48:96])
    writer.commit()
    assert np.isnan(store.open_store(tmp_path / "2015.zarr").read(7)).all()  # written as missing


def test_a_finished_store_is_not_overwritten(written: Path):
    with pytest.raises(AqnetError, match="exists already"):
        begin(written)


def test_a_folder_that_is_no_store_is_named(tmp_path: Path):
    with pytest.raises(AqnetError, match="not a training store"):
        store.open_store(tmp_path)


def shards(path: Path) -> list[Path]:
    return sorted(file for file in (path / "air/c").rglob("*") if file.is_file())


def test_flipped_bits_are_named_with_the_time(written: Path):
    file = shards(written)[0]
    data = bytearray(file.read_bytes())
    data[50] ^= 4
    file.write_bytes(data)
    opened = store.open_store(written)
    failed = []
    for row in range(HOURS):
        try:
            opened.read(row)
        except AqnetError as error:
            failed.append(str(error))
    assert len(failed) == 1
    assert "2015.zarr" in failed[0]
    assert "2015-08-" in failed[0]


def test_missing_files_are_noticed_when_opening(written: Path):
    shards(written)[1].unlink()
    with pytest.raises(
        AqnetError, match=r"air/c/1/0/0/0 is missing, from 2015-08-21T16 on \(1 files in all"
    ):
        store.open_store(written)


def test_hours_missing_everywhere_have_a_chunk_of_their_own(written: Path):
    assert not (store._index(shards(written)[0]) == store.NO_CHUNK).any()
    assert np.isnan(store.open_store(written).read(7)).all()


def test_a_chunk_lost_inside_a_shard_is_named(written: Path):
    array = zarr.open_group(written, mode="r+")["air"]
    array[7:8] = store.FILL  # Zarr leaves it out of the shard
    with pytest.raises(AqnetError, match=r"2015\.zarr: the fields of 2015-08-19T23"):
        store.open_store(written).read(7)


def test_files_lost_after_opening_are_never_read_as_missing_values(written: Path):
    opened = store.open_store(written)
    shards(written)[1].unlink()
    with pytest.raises(AqnetError):
        opened.read(50)


@pytest.mark.parametrize("name", ["static", "mask", "time", "day", "lat", "lon"])
def test_damage_of_a_small_array_is_an_error_when_opening(written: Path, name: str):
    (chunk,) = (file for file in (written / name / "c").rglob("*") if file.is_file())
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 8
    chunk.write_bytes(data)
    with pytest.raises(AqnetError, match=r"2015\.zarr: damaged .*checksum"):
        store.open_store(written)
    chunk.unlink()
    with pytest.raises(AqnetError, match=rf"2015\.zarr: damaged \(the file of '{name}' is missing"):
        store.open_store(written)
    shutil.rmtree(written / name)
    with pytest.raises(AqnetError, match=rf"2015\.zarr: damaged .*{name}"):
        store.open_store(written)


def test_damage_of_the_moments_is_an_error_when_statistics_need_them(written: Path):
    chunk = written / "moments/c/0/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-3])
    with pytest.raises(AqnetError, match=r"2015\.zarr: damaged .*checksum.*prepare it again"):
        store.open_store(written).moments()
    chunk.unlink()
    with pytest.raises(AqnetError, match=r"2015\.zarr: damaged \(the file of 'moments' is missing"):
        store.open_store(written).moments()


def test_a_group_in_place_of_an_array_is_an_error(written: Path):
    (written / "time/zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    with pytest.raises(AqnetError, match=r"2015\.zarr: damaged \('time' is no array"):
        store.open_store(written)


@pytest.mark.parametrize("size", [0, 100, -10])
def test_truncated_files_of_fields_are_errors_that_name_store_and_time(written: Path, size: int):
    shard = shards(written)[0]
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(AqnetError, match=r"2015\.zarr: the fields of 2015-08-20T01 cannot be read"):
        store.open_store(written).read(9)


def test_metadata_cut_short_is_an_error(written: Path):
    text = (written / "zarr.json").read_text()
    (written / "zarr.json").write_text(text[: len(text) // 2])
    with pytest.raises(AqnetError, match=r"2015\.zarr: not a training store"):
        store.open_store(written)


def test_a_file_system_that_refuses_is_one_clear_error(tmp_path: Path):
    writer = begin(tmp_path / "2015.zarr")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # bytes a file may have
    try:
        with pytest.raises(AqnetError, match=r"partial: cannot be written \(File too"):
            writer.write(0, fields()[:48])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(AqnetError, match="were never written"):
        writer.commit()


def test_values_beyond_float16_are_refused(tmp_path: Path):
    writer = begin(tmp_path / "2015.zarr", "float16")
    values = fields()
    values[60, 1, 0, 0] = 101325
    with pytest.raises(AqnetError, match="'v' has values beyond float16"):
        writer.write(0, values)


def test_a_block_whose_file_was_lost_is_written_again(tmp_path: Path):
    writer = begin(tmp_path / "2015.zarr")
    writer.write(0, fields()[:48])
    writer.write(48, fields()[48:])
    assert begin(tmp_path / "2015.zarr").missing() == []
    store.shard_path(tmp_path / "2015.zarr.partial/weather", 0).unlink()
    again = begin(tmp_path / "2015.zarr")
    assert again.missing() == [range(48)]
    again.write(0, fields()[:48])
    again.commit()
    np.testing.assert_array_equal(store.open_store(tmp_path / "2015.zarr").read(0), fields()[0])


def test_weather_and_air_are_read_apart(written: Path):
    opened = store.open_store(written)
    assert opened.channels == {"weather": ("u", "v"), "air": ("pm25",)}
    np.testing.assert_array_equal(opened.read(9, "weather"), fields()[9, :2])
    shutil.rmtree(written / "weather/c")
    np.testing.assert_array_equal(opened.read(9, "air"), fields()[9, 2:])
    with pytest.raises(
        AqnetError, match=r"zarr: the fields of 2015-08-20T01 cannot be read from weather"
    ):
        opened.read(9, "weather")


def test_a_store_may_hold_no_weather(tmp_path: Path):
    grid = Grid(*(torch.zeros(4, 5, dtype=torch.float64),) * 2, None, torch.ones(4, 5) > 0)
    writer = store_writer.create(
        tmp_path / "2015.zarr",
        weather=(),
        air=("pm25", "o3", "co"),
        units={},
        time=np.arange(400000, 400000 + HOURS),
        grid=grid,
        static={},
        source={},
    )
    writer.write(0, fields())
    writer.commit()
    np.testing.assert_array_equal(store.open_store(writer.path).read(9), fields()[9])


def day_sums(day: int) -> tuple[np.ndarray, np.ndarray]:
    """Of all hours before a day, by their definition."""
    hours = np.arange(400000, 400000 + HOURS)
    values = fields()[hours < 24 * day, 2:].astype(np.float64)
    return np.nansum(values, axis=0), np.isfinite(values).sum(axis=0)


def test_running_sums_of_days_are_those_of_all_hours_before(written: Path):
    opened = store.open_store(written)
    first = 400000 // 24
    assert opened.first_day == first
    for day in range(first - 2, first + 9):
        total, count = opened.before(day)
        expected, present = day_sums(day)
        np.testing.assert_allclose(total, expected, atol=1e-4)
        np.testing.assert_array_equal(count, present)
    assert (count > 0).all() and count[0, 0, 0] == HOURS - 1 and count[0, 2, 3] == HOURS - 1


def test_days_without_an_hour_keep_the_sums_of_the_day_before(tmp_path: Path):
    grid = Grid(*(torch.zeros(4, 5, dtype=torch.float64),) * 2, None, torch.ones(4, 5) > 0)
    time = np.array([400000, 400001, 400000 + 70 * 24])
    writer = store_writer.create(
        tmp_path / "2015.zarr",
        weather=(),
        air=("a", "b", "c"),
        units={},
        time=time,
        grid=grid,
        static={},
        source={},
    )
    writer.write(0, fields()[:3])
    writer.commit()
    opened = store.open_store(writer.path)
    first = 400000 // 24
    for day in (first + 1, first + 69, first + 70):
        np.testing.assert_allclose(opened.before(day)[0], np.nansum(fields()[:2], 0), atol=1e-5)
    np.testing.assert_allclose(opened.before(first + 71)[0], np.nansum(fields()[:3], 0), atol=1e-5)


def test_sums_of_days_do_not_depend_on_the_blocks_that_wrote_them(written: Path, tmp_path: Path):
    whole = begin(tmp_path / "whole.zarr")
    whole.write(0, fields())
    whole.commit()
    for name in ("daily_sum", "daily_count"):
        for file in (written / name / "c").rglob("0/0/0/0"):
            other = whole.path / file.relative_to(written)
            assert file.read_bytes() == other.read_bytes()


def test_damaged_daily_sums_are_named_with_their_day(written: Path):
    (file,) = (file for file in (written / "daily_sum/c").rglob("*") if file.is_file())
    data = bytearray(file.read_bytes())
    data[30] ^= 4
    file.write_bytes(data)
    opened = store.open_store(written)
    with pytest.raises(
        AqnetError, match=r"2015\.zarr: the fields of 2015-08-19 cannot be read from daily_sum"
    ):
        opened.before(opened.first_day + 1)


def test_a_store_of_format_4_is_refused_with_what_to_do(written: Path):
    zarr.open_group(written, mode="r+").attrs["format_version"] = 4
    with pytest.raises(AqnetError, match="format version 4, expected 5; remove it and prepare it"):
        store.open_store(written)
