"""What a user sees when a command cannot go on: one line and a status."""

import errno
import sys
from pathlib import Path

import pytest

from aqnet import errors
from aqnet.data import synthetic
from aqnet.data.inspect import run as inspect
from tests.data import worlds


def test_a_refused_path_is_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    worlds.write_both(tmp_path)
    below = str(tmp_path / "file/below")
    for main, arguments in (
        (synthetic.main, ["--output", below, "--years", "2015"]),
        (inspect.main, [str(tmp_path / "2015.zarr"), "--png", below]),
    ):
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit) as status:
            errors.run(main)
        assert status.value.code == 2
        assert capsys.readouterr().err == f"error: {below}: Not a directory\n"


def test_a_negative_seed_is_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "world"
    monkeypatch.setattr(sys, "argv", ["command", "--output", str(output), "--seed", "-1"])
    with pytest.raises(SystemExit) as status:
        errors.run(synthetic.main)
    assert status.value.code == 2
    assert capsys.readouterr().err == "error: --seed -1: expected 0 or more\n"
    assert not output.exists()


@pytest.mark.parametrize(
    "error", [OSError(errno.ECONNRESET, "reset"), FileNotFoundError(errno.ENOENT, "none", "x")]
)
def test_what_may_be_a_fault_of_the_program_keeps_its_traceback(error: OSError):
    def main() -> None:
        raise error

    with pytest.raises(OSError) as raised:
        errors.run(main)
    assert raised.value is error
