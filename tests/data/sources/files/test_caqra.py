"""CAQRA as published: hourly files, and the same in daily archives."""

import io
import tarfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from aqnet.config import Source
from aqnet.data.sources.files import caqra, one_grid
from aqnet.data.sources.files import source_file as source_files
from aqnet.data.sources.several import open_sources
from aqnet.data.sources.view import SourceView
from aqnet.errors import AqnetError
from tests.data import worlds
from tests.data.source_writers import hours, lambert, write_caqra

pytest.importorskip("netCDF4")


def view(pattern: Path) -> SourceView:
    return SourceView(Source(str(pattern)))


def pack(folder: Path, name: str, hourly: Path, *others: tarfile.TarInfo) -> Path:
    with tarfile.open(folder / name, "w:gz") as tar:
        for file in sorted(hourly.glob("*.nc")):
            tar.add(file, f"CN-Reanalysis20130101/{file.name}")
        for item in others:
            tar.addfile(item, io.BytesIO(b"x" * item.size))
    return folder / name


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    item = tarfile.TarInfo(name)
    item.type, item.linkname = kind, target
    return item


def test_hourly_files_are_one_time_axis_in_physical_units(tmp_path):
    for month, first in (("201301", 0), ("201302", 31 * 24)):
        (tmp_path / month).mkdir()
        write_caqra(tmp_path / month, hours(2013)[0] + first + np.arange(3), seed=first)
    found = view(tmp_path / "**/CN-Reanalysis*.nc")
    np.testing.assert_array_equal(found.times - hours(2013)[0], [0, 1, 2, 744, 745, 746])
    written = write_caqra(tmp_path, hours(2013)[:3])  # the same seed as that of January
    block = found.read(("co", "pm25"), slice(1, 4))
    assert block.shape == (3, 2, 9, 13)
    expected = written[int(hours(2013)[1])]
    np.testing.assert_allclose(block[0, 0], 1000 * expected["co"], rtol=1e-6)  # mg/m3
    np.testing.assert_allclose(block[0, 1], expected["pm25"], rtol=1e-6)
    np.testing.assert_allclose(found.lat, lambert(9, 13, 150.0)[0], atol=1e-5)


def test_of_many_files_only_those_read_are_opened(tmp_path):
    write_caqra(tmp_path, hours(2013, 40))
    with mock.patch.object(one_grid, "open_file", wraps=source_files.open_file) as opened:
        found = view(tmp_path / "*.nc")
        found.check_variables(("co",), slice(0, 40))
        assert len({str(call.args[0]) for call in opened.call_args_list}) == 1
        found.read(("co",), slice(10, 13))
        assert len({str(call.args[0]) for call in opened.call_args_list}) == 4


def test_archives_read_as_the_files_in_them(tmp_path):
    hourly = tmp_path / "hourly"
    hourly.mkdir()
    write_caqra(hourly, hours(2013, 5))
    pack(tmp_path, "CN-Reanalysis20130101.tar.gz", hourly)
    packed, plain = view(tmp_path / "*.tar.gz"), view(hourly / "*.nc")
    np.testing.assert_array_equal(packed.times, plain.times)
    names, rows = ("u", "o3"), slice(1, 4)
    np.testing.assert_array_equal(packed.read(names, rows), plain.read(names, rows))
    before = packed.fingerprint(rows)
    assert before["first_last_and_count_of_files"][2] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "CN-Reanalysis20130101.tar.gz",
        "hourly",
    ]


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (member("../evil.nc"), "leads out"),
        (member("a/../../evil.nc"), "leads out"),
        (member("/tmp/evil.nc"), "leads out"),
        (member("evil.nc", tarfile.SYMTYPE, "/etc/passwd"), "a link"),
        (member("evil.nc", tarfile.LNKTYPE, "CN-Reanalysis2013010100.nc"), "a link"),
        (member("evil.nc", tarfile.FIFOTYPE), "special"),
    ],
)
def test_archives_with_traps_are_refused_by_name(tmp_path, item, words):
    (tmp_path / "hourly").mkdir()
    write_caqra(tmp_path / "hourly", hours(2013, 1))
    pack(tmp_path, "day.tar.gz", tmp_path / "hourly", item)
    with pytest.raises(AqnetError, match=rf"day\.tar\.gz: the member .*evil\.nc.*{words}"):
        view(tmp_path / "*.tar.gz")
    assert not Path("/tmp/evil.nc").exists()
    assert not list(tmp_path.parent.glob("evil.nc"))


def test_damaged_archives_are_named(tmp_path):
    (tmp_path / "hourly").mkdir()
    write_caqra(tmp_path / "hourly", hours(2013, 3))
    whole = pack(tmp_path, "day.tar.gz", tmp_path / "hourly").read_bytes()
    (tmp_path / "day.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AqnetError, match=r"day\.tar\.gz: cannot read this archive"):
        view(tmp_path / "*.tar.gz")
    (tmp_path / "day.tar.gz").write_bytes(b"nothing")
    with pytest.raises(AqnetError, match=r"day\.tar\.gz: cannot read this archive"):
        view(tmp_path / "*.tar.gz")
    tarfile.open(tmp_path / "day.tar.gz", "w:gz").close()
    with pytest.raises(AqnetError, match="holds no NetCDF"):
        view(tmp_path / "*.tar.gz")


def test_what_archives_hold_is_read_once(tmp_path, capsys):
    hourly, kept = tmp_path / "hourly", tmp_path / "stores/.archives.json"
    hourly.mkdir()
    write_caqra(hourly, hours(2013, 3))
    pack(tmp_path, "a.tar.gz", hourly)
    source = Source(str(tmp_path / "*.tar.gz"))
    first = SourceView(source, kept=kept)
    with mock.patch.object(caqra, "_members", side_effect=AssertionError):
        again = SourceView(source, kept=kept)
    assert again.files == first.files
    (hourly / "CN-Reanalysis2013010100.nc").unlink()
    pack(tmp_path, "a.tar.gz", hourly)
    assert len(SourceView(source, kept=kept).files) == 2
    assert capsys.readouterr().out == 2 * "reading what 1 archives hold\n"
    kept.write_text("")  # the power failed
    assert len(SourceView(source, kept=kept).files) == 2
    kept.unlink()
    kept.parent.rmdir()
    data = worlds.config(kept.parent, sources=[{"path": source.path}]).data
    assert len(open_sources(data, write=False).times) == 2  # prepare --dry-run
    assert not kept.parent.exists()


def test_hours_with_a_time_dimension_of_their_own(tmp_path):
    import netCDF4

    for hour, steps in enumerate((1, 2)):
        with netCDF4.Dataset(tmp_path / f"CN-Reanalysis201301010{hour}.nc", "w") as file:
            for name, size in (("time", steps), ("lat", 3), ("lon", 4)):
                file.createDimension(name, size)
            file.createVariable("lat", "f8", ("lat",))[:] = [30, 31, 32]
            file.createVariable("lon", "f8", ("lon",))[:] = [100, 101, 102, 103]
            variable = file.createVariable("o3", "f4", ("time", "lat", "lon"))
            variable.units, variable[:] = "ug/m3", 7.0
            other = file.createVariable("co", "f4", ("time", "lon", "lat"))
            other.units, other[:] = "ug/m3", np.arange(12.0).reshape(4, 3)
    found = view(tmp_path / "*.nc")
    assert (found.read(("o3",), slice(0, 1)) == 7).all()
    with pytest.raises(
        AqnetError, match=r"2013010101\.nc: variable 'o3' has dim.*2 of 'time': cut one out"
    ):
        found.read(("o3",), slice(1, 2))
    turned = found.read(("co",), slice(0, 1))[0, 0]
    np.testing.assert_array_equal(turned, np.arange(12.0).reshape(4, 3).T)


def test_an_hour_twice_is_refused(tmp_path):
    write_caqra(tmp_path, hours(2013, 2))
    pack(tmp_path, "day.tar.gz", tmp_path)
    with pytest.raises(AqnetError, match="times are duplicated"):
        view(tmp_path / "*")


def test_a_date_that_there_is_not_is_refused(tmp_path):
    write_caqra(tmp_path, hours(2013, 1))
    (tmp_path / "CN-Reanalysis2013010100.nc").rename(tmp_path / "CN-Reanalysis2013023000.nc")
    with pytest.raises(AqnetError, match="tells no date"):
        view(tmp_path / "*.nc")


def test_an_hour_of_another_grid_or_damaged_is_named_when_it_is_read(tmp_path):
    write_caqra(tmp_path, hours(2013, 3))
    lat, lon, _ = lambert(9, 13, 150.0)
    write_caqra(tmp_path, hours(2013, 3)[1:2], grid=(lat[::-1], lon))
    found = view(tmp_path / "*.nc")
    found.read(("o3",), slice(0, 1))
    with pytest.raises(AqnetError, match=r"2013010101\.nc: the grid differs.*other way"):
        found.read(("o3",), slice(1, 2))
    (tmp_path / "CN-Reanalysis2013010102.nc").write_bytes(b"\x89HDF nonsense")
    with pytest.raises(AqnetError, match=r"2013010102\.nc: cannot read"):
        found.read(("o3",), slice(2, 3))
    write_caqra(tmp_path, hours(2013, 3)[2:], units={"o3": "ppb"})
    with pytest.raises(AqnetError, match=r"2013010102\.nc: variable 'o3' has units 'ppb'"):
        found.read(("o3",), slice(2, 3))
