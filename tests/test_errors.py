"""What a user sees when a command cannot go on: one line and a status."""

import argparse
import errno
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate
from aqnet import errors
from aqnet.data import synthetic
from aqnet.data.inspect import run as inspect
from aqnet.distributed import launch
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
    "error",
    [
        OSError(errno.ECONNRESET, "reset"),
        FileNotFoundError(errno.ENOENT, "none", "x"),
        BrokenPipeError(errno.EPIPE, "a worker's pipe"),
    ],
)
def test_what_may_be_a_fault_of_the_program_keeps_its_traceback(error: OSError):
    def main() -> None:
        raise error

    with pytest.raises(OSError) as raised:
        errors.run(main)
    assert raised.value is error


def test_output_that_nobody_reads_any_more_is_one_line_and_status_2():
    code = (
        "from aqnet import errors\nerrors.run(lambda: [print(n, flush=True) for n in range(9**9)])"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b"error: what read the output has ended\n"
    assert process.returncode == 2


@pytest.mark.parametrize("text", ["-1", "two", "1.5", "--1", ""])
def test_a_number_of_things_that_is_none_is_refused(text: str):
    assert errors.at_least(0)("0") == 0 and errors.at_least(1)("12") == 12
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number of at least 0"):
        errors.at_least(0)(text)


def test_only_the_first_process_prints_what_is_wrong_with_the_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(launch.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--output", "x", "--workers", "-1"])
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        for arguments in (["--workers", "-1"], ["--source", "x", "--checkpoint", "x"]):
            monkeypatch.setattr(sys, "argv", ["evaluate.py", "--output", "x", *arguments])
            with pytest.raises(SystemExit) as status:
                errors.run(evaluate.main)
            assert status.value.code == 2
            said.append(capsys.readouterr().err.strip().splitlines()[-1:])
    assert "--workers: '-1': expected a number of at least 0" in said[0][0]
    assert "--source needs --forecast" in said[1][0]
    assert said[2:] == [[], []]
