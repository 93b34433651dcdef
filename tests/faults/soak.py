"""Training with validation, checkpoints and restarts for minutes: does anything grow?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.conftest import REPOSITORY

RESTARTS = 3
FEWEST = 10  # samples that a slope is fitted to
SETTLED = 0.2  # of a process's life: allocators and caches fill up first


def row(tree: dict[str, Any], folder: Path, minutes: float) -> tuple[str, int, str]:
    """Two processes under torchrun, stopped and continued `RESTARTS` times; what rank 0 grew by."""
    config, run_dir = folder / "soak.yaml", folder / "soak"
    config.write_text(yaml.safe_dump({**tree, "run_dir": str(run_dir)}))
    lives = [life(config, run_dir, 60 * minutes / (RESTARTS + 1)) for _ in range(RESTARTS + 1)]
    used = sum(file.stat().st_size for file in run_dir.rglob("*") if file.is_file())
    texts = []
    for column, name in enumerate(("memory [MB/h]", "file handles [1/h]", "threads [1/h]"), 1):
        slopes = np.array([slope(part[:, 0], part[:, column]) for part in lives])
        mean, error = slopes[:, 0].mean(), np.sqrt((slopes[:, 1] ** 2).sum()) / len(slopes)
        texts.append(f"{name} {3600 * mean:+.1f} ± {3600 * error:.1f}")
    steps = max(int(path.name[5:]) for path in (run_dir / "checkpoints").glob("step_????????"))
    outcome = f"{', '.join(texts)}; {used / 1e6:.1f} MB on disk after {steps} steps"
    return f"{minutes:g} minutes of 2 processes, {RESTARTS} restarts", RESTARTS + 1, outcome


def life(config: Path, run_dir: Path, seconds: float) -> Any:
    """(second, MB, file handles, threads) of rank 0 once a second, of one start of the run, from
    its first own step on."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = ["train.max_steps=1000000", "train.decay_steps=1000000", "train.warmup_steps=1"]
    options += ["train.checkpoint_every=20", "validation.every=25"]
    log = run_dir / "metrics.jsonl"
    before = log.stat().st_size if log.exists() else 0
    launcher = subprocess.Popen(
        [sys.executable, *torchrun, "train.py", "--config", str(config), *options],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        while not log.exists() or log.stat().st_size <= before:  # a stop in order drops no line
            alive(launcher)
            time.sleep(0.1)
        samples, end = [], time.monotonic() + seconds
        while time.monotonic() < end or len(samples) < FEWEST:
            alive(launcher)
            samples.append((time.monotonic(), *held(ranks(launcher.pid)[0])))
            time.sleep(1.0)
        for rank in ranks(launcher.pid):
            os.kill(rank, signal.SIGTERM)
        if launcher.wait():
            raise RuntimeError(f"the run did not stop in order: status {launcher.returncode}")
    finally:
        launcher.kill()  # and its ranks die with it
    return np.array(samples[int(SETTLED * len(samples)) :])


def alive(launcher: subprocess.Popen[bytes]) -> None:
    if launcher.poll() is not None:
        raise RuntimeError(f"the run ended by itself with status {launcher.returncode}")


def ranks(launcher: int) -> list[int]:
    """The processes of a torchrun."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return sorted(map(int, children))


def held(process: int) -> tuple[float, int, int]:
    """Memory in MB, open files, threads."""
    folder = Path(f"/proc/{process}")
    pages = int((folder / "statm").read_text().split()[1])
    megabytes = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return megabytes, len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir()))


def slope(times: Any, values: Any) -> tuple[float, float]:
    """Growth a second by least squares, and its standard error."""
    centred = times - times.mean()
    squares = (centred**2).sum()
    rate = (centred * values).sum() / squares
    rest = values - values.mean() - rate * centred
    return float(rate), float(np.sqrt((rest**2).sum() / max(1, len(times) - 2) / squares))
