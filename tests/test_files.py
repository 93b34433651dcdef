"""Files and folders that appear whole or not at all."""

import os
import resource
from pathlib import Path

import pytest

from aqnet.errors import AqnetError
from aqnet.files import replace_folder, replace_text, write_beside


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_reader_finds_the_old_file_until_the_new_one_is_whole(tmp_path: Path):
    path = tmp_path / "status"
    replace_text(path, "running\n")
    with write_beside(path) as file:
        file.write(b"finished\n")
        assert path.read_text() == "running\n"
    assert path.read_text() == "finished\n"
    assert names(tmp_path) == ["status"]


def test_what_goes_wrong_while_writing_leaves_the_old_file_alone(tmp_path: Path):
    path = tmp_path / "status"
    replace_text(path, "running\n")
    with pytest.raises(ValueError, match="mine"), write_beside(path) as file:
        file.write(b"half")
        raise ValueError("mine")
    assert path.read_text() == "running\n"
    assert names(tmp_path) == ["status"]


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path: Path):
    path = tmp_path / "big"
    replace_text(path, "old")
    message = r"big: cannot be written \(File too large\); make room"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # bytes a file may have
    try:
        with pytest.raises(AqnetError, match=message):
            replace_text(path, "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["big"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_of_any_step_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
):
    def refuses(*arguments: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os if call == "fsync" else Path, call, refuses)
    with pytest.raises(AqnetError, match=r"place/x: cannot be written \(Read-only"):
        (tmp_path / "place").mkdir()
        replace_text(tmp_path / "place/x", "text")
    assert names(tmp_path / "place") == []


def test_a_folder_takes_the_place_of_an_older_one(tmp_path: Path):
    for name, text in (("new", "2"), ("old", "1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / text).touch()
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert names(tmp_path) == ["old"] and names(tmp_path / "old") == ["2"]


def test_a_folder_is_replaced_although_a_kill_left_the_one_before_half_removed(tmp_path: Path):
    for name in ("new", "old", "old.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of {name}").touch()
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert names(tmp_path) == ["old"] and names(tmp_path / "old") == ["of new"]
