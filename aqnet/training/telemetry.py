"""Writes scalars to TensorBoard, `metrics.jsonl` and the terminal; times the parts of a step."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aqnet.errors import one_line
from aqnet.files import replace_text, writing


class Stopwatch:
    """Seconds spent in named parts since the last `shares`; parts must not be nested."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside; on a GPU that is launching work, not doing it."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self._seconds[name] = self._seconds.get(name, 0.0) + spent

    def move(self, seconds: float, source: str, target: str) -> None:
        """Count `seconds` that were spent inside the part `source` as `target`'s."""
        self._seconds[source] = self._seconds.get(source, 0.0) - seconds
        self._seconds[target] = self._seconds.get(target, 0.0) + seconds

    def shares(self) -> tuple[float, dict[str, float]]:
        """Wall seconds since the last call and each part's share, `other` included; restarts."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        wall = max(now - self._since, 1e-9)
        parts = dict(self._seconds)
        parts["other"] = max(0.0, wall - sum(parts.values()))
        self._seconds, self._since = {}, now
        return wall, {name: seconds / wall for name, seconds in parts.items()}


class Telemetry:
    """Writes on the main rank of a run; on the others (`active` false) it does nothing."""

    def __init__(
        self,
        run_dir: str | Path,
        active: bool,
        first_step: int = 0,
        last_step: int | None = None,
    ) -> None:
        """`first_step`: steps already in the checkpoint; later records of a killed run go."""
        self._active = active
        self._bar = _progress_bar(first_step, last_step) if active else None
        self._last_step = last_step
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter

        folder = Path(run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._board_path = folder / "metrics.jsonl", folder / "tensorboard"
        _keep_until(self._path, first_step)
        self._file = self._path.open("a", encoding="utf-8")
        with writing(self._board_path):
            self._board = SummaryWriter(str(self._board_path), purge_step=first_step + 1)
        self._painter = ThreadPoolExecutor(1, "pictures")
        self._drawn: list[Future[None]] = []

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line of `metrics.jsonl` (a non-finite value is null) and one point per name."""
        if not self._active:
            return
        with writing(self._board_path):
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.record(step, finite)

    def record(self, step: int, values: Mapping[str, Any]) -> None:
        """One line of `metrics.jsonl` alone."""
        if self._active:
            with writing(self._path):
                self._file.write(json.dumps({"step": step, **values}) + "\n")
                self._file.flush()

    def text(self, name: str, text: str) -> None:
        """A text in TensorBoard, such as the resolved config."""
        if self._active:
            with writing(self._board_path):
                self._board.add_text(name, f"```\n{text}\n```")

    def picture(self, step: int, name: str, draw: Callable[[], NDArray[np.uint8]]) -> None:
        """A picture [pixels, pixels, 3] in TensorBoard, drawn in the background."""

        def add() -> None:
            with writing(self._board_path):
                self._board.add_image(name, draw(), step, dataformats="HWC")

        if self._active:
            self._drawn.append(self._painter.submit(add))

    def say(self, line: str) -> None:
        """One line on the terminal."""
        if self._bar is not None:
            self._bar.write(line)
        elif self._active:
            print(line, flush=True)

    def advance(self) -> None:
        """One step more on the progress bar, where there is one."""
        if self._bar is not None:
            self._bar.update()

    def progress(self, step: int, values: Mapping[str, float], left: str | None = None) -> None:
        """One line: step, scalars, the time left, and shares of time (`time/...`) in per cent."""
        of = f"/{self._last_step}" if self._last_step is not None else ""
        plain = [f"{name} {value:.4g}" for name, value in values.items() if "time/" not in name]
        shares = [
            f"{name.removeprefix('time/')} {100 * value:.0f}%"
            for name, value in values.items()
            if name.startswith("time/")
        ]
        eta = [f"eta {left}"] if left is not None else []
        self.say("  ".join([f"step {step}{of}", *plain, *eta, *shares]))

    def flush(self) -> None:
        """Call with each checkpoint: a run killed after it does not write these points again, and
        TensorBoard's writer keeps them in memory for up to two minutes."""
        if self._active:
            with writing(self._board_path):
                self._board.flush()

    def close(self) -> None:
        """Wait for pictures, flush and close the files. A picture that could not be drawn is worth
        a warning, not the run."""
        if self._active:
            self._painter.shutdown()
            errors = [error for drawn in self._drawn if (error := drawn.exception())]
            if errors:
                self.say(
                    f"warning: {len(errors)} of {len(self._drawn)} maps could not be drawn for "
                    f"TensorBoard: {type(errors[0]).__name__}: {one_line(errors[0])}"
                )
            with writing(self._board_path):
                self._board.close()
            with writing(self._path):
                self._file.close()
        if self._bar is not None:
            self._bar.close()


def _progress_bar(first_step: int, last_step: int | None) -> Any:
    """A tqdm bar on a terminal; None in a log file or without tqdm."""
    if not sys.stdout.isatty() or importlib.util.find_spec("tqdm") is None:
        return None
    from tqdm import tqdm

    return tqdm(total=last_step, initial=first_step, unit="step", file=sys.stdout)


def _keep_until(path: Path, step: int) -> None:
    """Drop the records after `step`, and a line that a kill cut short."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _is_kept(line, step)]
    replace_text(path, "".join(f"{line}\n" for line in kept))


def _is_kept(line: str, step: int) -> bool:
    try:
        record: Any = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and record.get("step", step + 1) <= step
