"""train.py as a user runs it: alone, under torchrun, stopped, killed, continued."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import train
from tests.conftest import REPOSITORY
from tests.distributed.test_distributed import alive


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


def losses(run_dir: Path, name: str = "train/loss") -> dict[int, float]:
    path = run_dir / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["step"]: row[name] for row in records if name in row}


def wait_for_step(run_dir: Path, step: int) -> None:
    end = time.monotonic() + 300
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
    odds = losses(tmp_path / "two", "train/loss_quantiles")
    assert odds.keys() == two.keys() and 0 < odds[20] < odds[1]
    assert_time_adds_up(tmp_path / "one")
    assert_time_adds_up(tmp_path / "two")


def assert_time_adds_up(run_dir: Path) -> None:
    """Nearly all of the wall time has a name, and none is counted twice.

    Steps of a few milliseconds on a machine that others use allow no narrow bound: what the demo's
    loop names is measured by benchmarks/training_loop.py.
    """
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
    assert 0.75 * total < named <= 1.0001 * total, (named / total, other / total)


OFTEN = ("train.checkpoint_every=3", "validation.every=7", "train.workers=1", "train.max_steps=30")


@pytest.fixture(scope="module")
def whole(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of two processes."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    complete(command(tiny, run_dir, 2, *OFTEN))
    return run_dir


def descendants(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [one for child in children for one in (int(child), *descendants(int(child)))]


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_torchrun_killed_alone_leaves_nobody_and_the_run_continues_to_the_same_bits(
    tiny: dict[str, Any], tmp_path: Path, whole: Path
):
    broken = command(tiny, tmp_path / "broken", 2, *OFTEN)
    process = begin(broken)
    wait_for_step(tmp_path / "broken", 5)
    workers = descendants(process.pid)
    assert len(workers) >= 4  # two ranks and a loader's worker of each
    process.kill()
    end = time.monotonic() + 5
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(alive, workers))
    process.communicate()
    complete(broken)
    assert_same_parameters(whole, tmp_path / "broken")
    assert losses(whole) == losses(tmp_path / "broken")


@pytest.mark.parametrize("how", [pytest.param("file", marks=pytest.mark.slow), "SIGTERM"])
def test_run_asked_to_stop_is_interrupted_and_continues_to_the_same_bits(
    tiny: dict[str, Any], tmp_path: Path, whole: Path, how: str
):
    stopped = command(tiny, tmp_path / "stopped", 2, *OFTEN)
    process = begin(stopped)
    wait_for_step(tmp_path / "stopped", 5)
    if how == "file":
        (tmp_path / "stopped/stop_requested").touch()
    else:
        process.send_signal(signal.SIGTERM)  # torchrun passes it on, and then exits with it
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 or how == "SIGTERM", output
    assert (tmp_path / "stopped/status").read_text() == "interrupted\n"
    assert max(losses(tmp_path / "stopped")) < 30
    complete(stopped)
    assert (tmp_path / "stopped/status").read_text() == "finished\n"
    assert_same_parameters(whole, tmp_path / "stopped")


def test_ctrl_c_stops_with_a_checkpoint_and_runs_say_what_they_are(
    tiny: dict[str, Any], tmp_path: Path
):
    run_dir = tmp_path / "run"
    start = command(tiny, run_dir, 1, "train.max_steps=2000", "validation.every=2000")
    process = begin(start)
    wait_for_step(run_dir, 5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert (run_dir / "status").read_text() == "interrupted\n"
    step = int((run_dir / "checkpoints/latest").read_text().removeprefix("step_"))
    assert step >= 5 and f"{run_dir}: interrupted at step {step}" in output
    parameters_said = re.search(rf"{run_dir}: a new run; ([\d,]+) parameters, 1 process on", output)
    assert parameters_said, output
    held = sum(tensor.numel() for tensor in parameters(run_dir).values())
    assert 0 < int(parameters_said[1].replace(",", "")) <= held  # the others are buffers
    assert re.search(r"step 3/2000 .* eta \d+:\d\d:\d\d  ", output), output

    again = complete([*start, f"train.max_steps={step + 1}"])
    assert f"{run_dir}: goes on from step {step}; {parameters_said[1]} parameters" in again


@pytest.mark.slow
def test_torchrun_restarts_a_killed_worker_and_the_run_ends_with_the_same_bits(
    tiny: dict[str, Any], tmp_path: Path, whole: Path
):
    python, *torchrun = command(tiny, tmp_path / "run", 2, *OFTEN)
    process = begin([python, *torchrun[:2], "--max-restarts=1", *torchrun[2:]])
    wait_for_step(tmp_path / "run", 5)
    owner = json.loads((tmp_path / "run/lock").read_text())["pid"]
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(next(int(rank) for rank in ranks if int(rank) != owner), signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert (tmp_path / "run/status").read_text() == "finished\n"
    assert_same_parameters(whole, tmp_path / "run")


@pytest.mark.slow
def test_a_process_that_hangs_in_reading_ends_the_others_with_an_error_that_names_it(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HANG", "1")
    options = ("train.max_steps=100", "train.timeout_seconds=25", "model.predict=value")
    start = command(tiny, tmp_path / "run", 2, *options)
    at = start.index("train.py")
    process = begin(
        [*start[:at], "-m", "tests.seen_items", str(tmp_path / "seen"), *start[at + 1 :]]
    )
    assert process.stdout is not None
    said = next(line for line in process.stdout if line.startswith("error:"))
    process.communicate(timeout=120)
    # the rank reads 4 items a step, so the fiftieth in step 12
    assert said.startswith("error: ranks that lag behind step 12: 1 (step 11) (")
    assert process.returncode != 0
    assert (tmp_path / "run/status").read_text() == "failed\n"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_chunk_that_one_process_reads_ends_all_with_its_message(
    tiny: dict[str, Any], tmp_path: Path, workers: int
):
    stores = tmp_path / "stores"
    shutil.copytree(tiny["data"]["stores"], stores)
    shard = stores / "2015.zarr/air/c/2/0/0/0"  # hours 96 to 143, in the training period
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    shard.write_bytes(damaged)
    options = ("train.max_epochs=1", "model.predict=value", f"data.stores={stores}")
    output = complete(
        command(tiny, tmp_path / "run", 2, *options, f"train.workers={workers}"), status=1
    )
    said = [line for line in output.splitlines() if line.startswith("error:")]
    assert 1 <= len(said) <= 2 and all("2015.zarr" in line for line in said), output
    assert "Original Traceback" not in output
    assert (tmp_path / "run/status").read_text() == "failed\n"


def test_an_epoch_begun_by_two_processes_and_ended_by_three_has_each_item_once(
    tiny: dict[str, Any], tmp_path: Path
):
    seen, run_dir = tmp_path / "seen", tmp_path / "run"
    # with predict: change or transport, the start reads training items too
    length = ("train.effective_batch=96", "train.decay_steps=10")
    length += ("model.predict=value", "model.transport=off")
    for processes, end in (
        (2, "train.max_steps=3"),
        (1, "train.max_steps=5"),
        (3, "train.max_epochs=1"),
    ):
        limit = (end, "train.max_steps=null") if "epochs" in end else (end,)
        start = command(tiny, run_dir, processes, *length, *limit)
        at = start.index("train.py")
        output = complete([*start[:at], "-m", "tests.seen_items", str(seen), *start[at + 1 :]])
    assert "finished at step 10" in output
    items = [int(line) for line in seen.read_text().split()]
    assert sorted(items) == list(range(240))
    assert items != sorted(items)


def test_directory_of_another_run_is_refused_and_left_alone(tiny: dict[str, Any], tmp_path: Path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    other = {**tiny, "seed": 7, "run_dir": str(run_dir)}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(other))
    before = (run_dir / "config.yaml").read_bytes()
    (run_dir / "status").write_text("interrupted\n")
    output = complete(command(tiny, run_dir, 1), status=2)
    assert "seed (7 -> 0)" in output
    assert "no checkpoint: remove this file to start anew" in output
    assert len(output.strip().splitlines()) == 1
    assert (run_dir / "config.yaml").read_bytes() == before
    assert (run_dir / "status").read_text() == "interrupted\n"


def test_a_continuation_that_is_refused_leaves_the_status_and_a_new_run_fails(
    tiny: dict[str, Any], tmp_path: Path
):
    run_dir = tmp_path / "run"
    short = {**tiny, "train": {**tiny["train"], "max_steps": 1, "decay_steps": 4}}
    nowhere = f"data.stores={tmp_path / 'nowhere'}"
    assert "no such" in complete(command(short, run_dir, 1, nowhere), status=2)
    assert (run_dir / "status").read_text() == "failed\n"
    complete(command(short, run_dir, 1))
    (run_dir / "status").write_text("interrupted\n")
    more = (nowhere, "train.max_steps=2")
    assert "no such" in complete(command(short, run_dir, 1, *more), status=2)
    assert (run_dir / "status").read_text() == "interrupted\n"


def test_scores_of_another_checkpoint_than_the_best_are_not_those_of_the_run(tmp_path: Path):
    output = tmp_path / "evaluation"
    for folder in (output, tmp_path / "checkpoints"):
        folder.mkdir()
    (tmp_path / "checkpoints/best").write_text("step_00000004\n")
    (output / "metrics.json").write_text('{"global_step": 4}')
    assert not train.is_scored(tmp_path, output)  # it was killed before its report
    (output / "report.html").touch()
    assert train.is_scored(tmp_path, output)
    (output / "metrics.json").write_text('{"global_step": 2}')
    assert not train.is_scored(tmp_path, output)


def test_profile_writes_a_trace_of_the_steps_asked_for_in_bf16(
    tiny: dict[str, Any], tmp_path: Path
):
    run_dir = tmp_path / "run"
    start = command(tiny, run_dir, 1, "train.max_steps=6", "train.precision=bf16")
    output = complete([*start, "--profile", "2"])
    trace = json.loads((run_dir / "profile/rank0.json").read_text())
    steps = {row["name"] for row in trace["traceEvents"] if "ProfilerStep" in row.get("name", "")}
    assert len(steps) == 2 and "rank0.json: written" in output
    assert all(math.isfinite(loss) for loss in losses(run_dir).values())


def test_profile_of_less_than_a_step_is_refused(monkeypatch: pytest.MonkeyPatch):
    arguments = ["train.py", "--config", "configs/demo.yaml", "--profile", "-1"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as error:
        train.main()
    assert error.value.code == 2
