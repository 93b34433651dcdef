"""What a user sees when a command cannot go on: one line and a status."""

import argparse
import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import evaluate
from aqnet import errors
from aqnet.data import synthetic
from aqnet.data.inspect import run as inspect
from aqnet.distributed import launch
from tests import conftest as tests
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
        OSError(errno.ENOSPC, "of a library's file"),
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


@pytest.mark.parametrize("flush", [True, False])
def test_output_on_a_full_disk_is_one_line_and_status_2(flush: bool):
    code = f"from aqnet import errors\nerrors.run(lambda: print('text', flush={flush}))"
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.stderr == "error: standard output: No space left on device\n"
    assert ended.returncode == 2


def test_a_training_whose_output_is_full_is_whole_up_to_its_last_checkpoint(
    tiny: dict[str, Any], tmp_path: Path
):
    """It ends as one of which nobody reads the output, and goes on with another output."""
    config, run_dir = tmp_path / "config.yaml", tmp_path / "run"
    length = {**tiny["train"], "decay_steps": 4}
    config.write_text(yaml.safe_dump({**tiny, "run_dir": str(run_dir), "train": length}))
    command = ["train.py", "--config", str(config)]
    tests.run(*command, "train.max_steps=2")
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, *command],
            cwd=tests.REPOSITORY,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert ended.stderr.endswith("error: standard output: No space left on device\n")
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert (run_dir / "checkpoints/latest").read_text() == "step_00000002\n"
    assert not (run_dir / "lock").exists()
    tests.run(*command)
    assert (run_dir / "status").read_text() == "finished\n"


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
