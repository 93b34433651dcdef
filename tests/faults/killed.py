"""The real commands killed at random times: torchrun while it trains, and an evaluation.

`python -m tests.faults kills` does so often, test_killed.py a few times; kills of single ranks are
those of tests/kills.py.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.distributed.test_distributed import alive
from tests.faults.soak import ranks
from tests.test_kills import OFTEN, SIZE, assert_same_run

RESULTS = ("metrics.json", "metrics.csv", "days.npz", "report.html")
ORPHANS_END = 60.0  # s, on a loaded machine; docs/reliability.md: they die with their launcher


def torchrun(config: Path, folder: Path, number: int, seed: int) -> int:
    """Kill the launcher of a training of two processes; its workers must be gone, and the same
    command go on to the bits of an undisturbed run. Returns how many launchers were killed."""
    whole, broken = folder / "torchrun_whole", folder / "torchrun_broken"
    begun = time.monotonic()
    _launch(config, whole).wait()
    length, chance = time.monotonic() - begun, random.Random(seed)
    killed = 0
    for _ in range(number):
        launcher = _launch(config, broken)
        try:
            launcher.wait(chance.uniform(0.0, length))
            break  # it came to its end
        except subprocess.TimeoutExpired:
            workers = ranks(launcher.pid)
            launcher.kill()
            launcher.wait()
            _wait_until_gone(workers)
            killed += 1
    _launch(config, broken).wait()
    assert_same_run(whole, broken)
    return killed


def _launch(config: Path, run_dir: Path) -> subprocess.Popen[bytes]:
    module = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    options = ["--config", str(config), f"run_dir={run_dir}", *SIZE, *OFTEN, "train.max_steps=20"]
    return _start([*module, *options])


def _start(arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _wait_until_gone(processes: list[int]) -> None:
    end = time.monotonic() + ORPHANS_END
    while any(alive(process) for process in processes):
        assert time.monotonic() < end, f"workers {processes} outlive their torchrun"
        time.sleep(0.1)


def evaluation(run_dir: Path, folder: Path, number: int, seed: int) -> int:
    """Kill evaluations of a run; what stands in their folder is nothing or whole, and the same
    command makes it as if undisturbed. Returns how many were killed."""
    whole, broken = folder / "evaluation_whole", folder / "evaluation_broken"
    begun = time.monotonic()
    assert _evaluate(run_dir, whole).wait() == 0
    length, chance = time.monotonic() - begun, random.Random(seed)
    expected = _results(whole)
    assert set(expected) == set(RESULTS)
    killed = 0
    for _ in range(number):
        process = _evaluate(run_dir, broken)
        try:
            assert process.wait(chance.uniform(0.0, length)) == 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        assert _results(broken) in ({}, expected)
    assert _evaluate(run_dir, broken).wait() == 0
    assert _results(broken) == expected
    return killed


def _evaluate(run_dir: Path, output: Path) -> subprocess.Popen[bytes]:
    options = ["--checkpoint", str(run_dir), "--output", str(output), "--max-samples", "40"]
    return _start(["evaluate.py", *options, "--no-pictures"])


def _results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS if (folder / name).exists()}
