"""train.py as a user runs it: alone, under torchrun, stopped, killed, continued."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import REPOSITORY


def command(tree: dict[str, Any], run_dir: Path, processes: int, *overrides: str) -> list[str]:
    path = run_dir.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({**tree, "run_dir": str(run_dir)}))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    start = [] if processes == 1 else torchrun
    return [sys.executable, *start, "train.py", "--config", str(path), *overrides]


def begin(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def complete(arguments: list[str], status: int = 0) -> str:
    process = begin(arguments)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    return output


def losses(run_dir: Path) -> dict[int, float]:
    path = run_dir / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["step"]: row["train/loss"] for row in records if "train/loss" in row}


def wait_for_step(run_dir: Path, step: int) -> None:
    end = time.monotonic() + 120
    while max(losses(run_dir), default=0) < step:
        assert time.monotonic() < end, "no progress"
        time.sleep(0.02)


def parameters(run_dir: Path) -> dict[str, torch.Tensor]:
    latest = (run_dir / "checkpoints/latest").read_text().strip()
    path = run_dir / "checkpoints" / latest / "model.pt"
    return torch.load(path, weights_only=True)["model"]


def assert_same_parameters(one: Path, other: Path) -> None:
    first, second = parameters(one), parameters(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_and_one_with_twice_the_micro_batch_give_the_same_losses(
    tiny: dict[str, Any], tmp_path: Path
):
    length = ("train.max_steps=20", "validation.every=10")
    complete(command(tiny, tmp_path / "two", 2, *length))
    complete(command(tiny, tmp_path / "one", 1, *length, "train.micro_batch=4"))
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one.keys() == two.keys() == set(range(1, 21))
    assert [two[step] for step in two] == pytest.approx([one[step] for step in one], rel=1e-5)
    assert one[20] < one[1]
    assert_time_adds_up(tmp_path / "one")
    assert_time_adds_up(tmp_path / "two")


def assert_time_adds_up(run_dir: Path) -> None:
    """All but 5 % of the wall time has a name, and none is counted twice."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    walls = [(1.0 / row["items_per_second"], row) for row in records if "time/forward" in row]
    assert all(row["time/communication"] > 0 or "two" not in run_dir.name for _, row in walls)
    other = sum(wall * row["time/other"] for wall, row in walls)
    named = sum(
        wall * value
        for wall, row in walls
        for key, value in row.items()
        if key.startswith("time/") and key != "time/other"
    )
    total = sum(wall for wall, _ in walls)
    assert 0.95 * total < named <= 1.0001 * total, (named / total, other / total)


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_run_continues_to_the_same_bits(
    tiny: dict[str, Any], tmp_path: Path, processes: int
):
    options = ("train.max_steps=12", "train.checkpoint_every=3", "validation.every=4")
    drop = ("model.drop_rate=0.1", "model.drop_path=0.1", "train.ema_decay=0.9")
    whole = command(tiny, tmp_path / "whole", processes, *options, *drop)
    complete(whole)
    broken = command(tiny, tmp_path / "broken", processes, *options, *drop)
    for step in (5, 8):
        process = begin(broken)
        wait_for_step(tmp_path / "broken", step)
        process.kill()  # torchrun's workers die with it
        process.communicate()
    complete(broken)
    assert_same_parameters(tmp_path / "whole", tmp_path / "broken")
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")


@pytest.mark.parametrize("how", ["file", "SIGTERM"])
def test_run_asked_to_stop_is_interrupted_and_continues_to_the_same_bits(
    tiny: dict[str, Any], tmp_path: Path, how: str
):
    options = ("train.max_steps=30", "train.workers=1", "validation.every=7")
    stopped = command(tiny, tmp_path / "stopped", 2, *options)
    process = begin(stopped)
    wait_for_step(tmp_path / "stopped", 5)
    if how == "file":
        (tmp_path / "stopped/stop_requested").touch()
    else:
        process.send_signal(signal.SIGTERM)  # torchrun passes it on, and then exits with it
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 or how == "SIGTERM", output
    assert (tmp_path / "stopped/status").read_text() == "interrupted\n"
    assert max(losses(tmp_path / "stopped")) < 30
    complete(stopped)
    assert (tmp_path / "stopped/status").read_text() == "finished\n"
    complete(command(tiny, tmp_path / "whole", 2, *options))
    assert_same_parameters(tmp_path / "whole", tmp_path / "stopped")


def test_directory_of_another_run_is_refused_and_left_alone(tiny: dict[str, Any], tmp_path: Path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    other = {**tiny, "seed": 7, "run_dir": str(run_dir)}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(other))
    before = (run_dir / "config.yaml").read_bytes()
    output = complete(command(tiny, run_dir, 1), status=2)
    assert "seed (7 -> 0)" in output
    assert "no checkpoint: remove this file to start anew" in output
    assert len(output.strip().splitlines()) == 1
    assert (run_dir / "config.yaml").read_bytes() == before


def test_two_processes_continue_on_one(tiny: dict[str, Any], tmp_path: Path):
    complete(command(tiny, tmp_path / "run", 2, "train.max_steps=3"))
    complete(command(tiny, tmp_path / "run", 1, "train.max_steps=6"))
    complete(command(tiny, tmp_path / "whole", 1, "train.max_steps=6", "train.decay_steps=6"))
    assert set(losses(tmp_path / "run")) == set(range(1, 7))
