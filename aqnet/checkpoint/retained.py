"""The checkpoints of a run: copied, written in the background, retained, found again.

Beside the directories `step_00001234` (`files.py` says what is in them) are the one-line files
`latest` and `best`, which hold such a name.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aqnet import distributed
from aqnet.checkpoint.files import (
    STATE_BYTES,
    STEP,
    Damaged,
    Loaded,
    named_by,
    plain_json,
    read,
    regular_bytes,
    tensor_bytes,
    verified_state,
    write,
)
from aqnet.checkpoint.state import is_loss
from aqnet.errors import AqnetError, one_line
from aqnet.files import partial_of, replace_text

NEWEST_KEPT = 2  # a damaged newest one needs one before it
_POINTERS = ("latest", "best")


class Checkpoints:
    """The checkpoints of one run. All ranks call the same methods; rank 0 reads and writes.

    Only the holder of the run directory's lock may use it.
    """

    def __init__(self, directory: str | Path, keep_best: int) -> None:
        self.directory = Path(directory)
        self._keep_best = keep_best
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._buffers: dict[tuple[Any, ...], Tensor] = {}

    def reserve(self, model_state: dict[str, Any], optimizer_state: dict[str, Any]) -> None:
        """Allocate the memory that `save` copies to, so that the first is as fast as others."""
        if distributed.is_main():
            self._staged(model_state, ("model",))
            self._staged(optimizer_state, ("opt",))

    def save(
        self,
        model_state: dict[str, Any],
        optimizer_state: dict[str, Any],
        state: dict[str, Any],
        metric: float | None,
    ) -> None:
        """Copy everything, return, and write in the background.

        Args:
            model_state: {"model": state_dict}, with "ema" where there is one.
            state: JSON-able; `global_step` names the directory.
            metric: the validation loss at this step, or None; lower is better.
        Raises:
            AqnetError: the disk is too full, or the write before this one failed.
        """
        if not distributed.is_main():
            return
        self.wait()
        _tidy(self.directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        _check_space(self.directory, (model_state, optimizer_state))
        loss = metric if metric is not None and math.isfinite(metric) else None
        path = self.directory / f"step_{state['global_step']:08d}"
        staged = self._staged(model_state, ("model",)), self._staged(optimizer_state, ("opt",))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        described = {**plain_json(state), "validation_loss": loss}
        self._pending = self._writer.submit(self._write, path, *staged, described)

    def wait(self) -> None:
        """Return when nothing is being written.

        Raises:
            AqnetError: the write failed.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def load_latest(self) -> Loaded | None:
        """The newest checkpoint that is whole, on every rank; None where there is none at all.

        The best is verified too. Damaged ones are named on the terminal and set aside as
        `step_*.damaged`; what `latest` and `best` hold is mended.

        Raises:
            AqnetError: there are checkpoints, but none is whole; or one holds more than tensors.
        """
        self.wait()
        return distributed.on_main(self._load_latest)

    def _load_latest(self) -> Loaded | None:
        if os.path.lexists(self.directory) and not self.directory.is_dir():
            raise AqnetError(f"{self.directory}: is no folder; move it away")
        _tidy(self.directory)
        _, best = (self._named(name) for name in _POINTERS)
        loaded = self._newest_whole()
        if loaded is not None:
            self._set_damaged_best_aside(best, loaded.path)
        self._name()
        return loaded

    def _named(self, name: str) -> Path | None:
        """The checkpoint that `latest` or `best` names; None where it names none that is there,
        which is said on the terminal. A folder of that name is set aside."""
        pointer = self.directory / name
        if not os.path.lexists(pointer):
            return None
        try:
            path = named_by(pointer)
            if path in _steps(self.directory):
                return path
            problem = f"{pointer}: names {path.name}, which is not there"
        except AqnetError as error:
            problem = str(error)
        mended = "it is written anew"
        if pointer.is_dir() and not pointer.is_symlink():
            mended = f"it is set aside as {_set_aside(pointer).name}, and written anew"
        _warn(f"{problem}; {mended}")
        return None

    def _newest_whole(self) -> Loaded | None:
        """The newest checkpoint that is whole, once the damaged ones after it are set aside."""
        damaged: list[Path] = []
        for path in _steps(self.directory):
            try:
                loaded = read(path)
            except Damaged as error:
                _warn(f"{error}; using the one before")
                damaged.append(path)
                continue
            for other in damaged:
                _set_aside(other)
            return loaded
        if damaged:
            raise AqnetError(
                f"{self.directory}: every checkpoint is damaged ({', '.join(map(str, damaged))}); "
                "restore one, or move the directory away to start from the beginning"
            )
        return None

    def _set_damaged_best_aside(self, named: Path | None, whole: Path) -> None:
        """Verify the best checkpoint, and where it is damaged the best of those left, until one is
        whole; only their files are read.

        Args:
            named: by the file `best`; its loss may have been lost with its state.json.
            whole: the one that is verified already.
        """
        ranked = self._ranked()
        if named in _steps(self.directory) and named not in (whole, *ranked):
            self._keep_if_whole(named)
        for path in ranked:
            if path == whole or self._keep_if_whole(path):
                return

    def _keep_if_whole(self, path: Path) -> bool:
        """Whether a checkpoint is whole; a damaged one is named and set aside."""
        try:
            verified_state(path)
        except Damaged as error:
            _warn(f"{error}; it was the best, and is set aside as {_set_aside(path).name}")
            return False
        return True

    def _write(
        self, path: Path, model: dict[str, Any], optimizer: dict[str, Any], state: dict[str, Any]
    ) -> None:
        write(path, model, optimizer, state)
        kept = {*_steps(self.directory)[:NEWEST_KEPT], *self._best()}
        try:
            self._name()
            for other in _steps(self.directory):
                if other not in kept:
                    _remove(other)
        except (OSError, AqnetError) as error:
            raise AqnetError(
                f"{path}: is whole, but could not be named the latest, or others removed: "
                f"{one_line(error)}"
            ) from error

    def _best(self) -> list[Path]:
        """At most `keep_best`, best first."""
        return self._ranked()[: self._keep_best]

    def _ranked(self) -> list[Path]:
        """Those with a validation loss, best first; of equal ones the earlier."""
        losses = {path: _validation_loss(path) for path in reversed(_steps(self.directory))}
        known = {path: loss for path, loss in losses.items() if loss is not None}
        return sorted(known, key=lambda path: known[path])

    def _name(self) -> None:
        for name, paths in zip(_POINTERS, (_steps(self.directory), self._best()), strict=True):
            if paths:
                replace_text(self.directory / name, paths[0].name + "\n")
            else:
                (self.directory / name).unlink(missing_ok=True)

    def _staged(self, value: Any, key: tuple[Any, ...]) -> Any:
        """A copy in kept CPU buffers (page-locked for a GPU's tensors)."""
        if isinstance(value, Tensor):
            kept = self._buffers.get(key)
            if kept is None or kept.shape != value.shape or kept.dtype != value.dtype:
                kept = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
                self._buffers[key] = kept
            return kept.copy_(value.detach(), non_blocking=True)
        if isinstance(value, dict):
            return {name: self._staged(item, (*key, name)) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._staged(item, (*key, at)) for at, item in enumerate(value))
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise TypeError(f"a checkpoint cannot hold {key}: {type(value).__name__}")


def _steps(directory: Path) -> list[Path]:
    """Paths of all checkpoints, newest first."""
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if STEP.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)


def _validation_loss(path: Path) -> float | None:
    try:
        state = json.loads(regular_bytes(path / "state.json", STATE_BYTES))
        loss = state.get("validation_loss")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None  # damaged: never the best
    return float(loss) if is_loss(loss) else None


def _tidy(directory: Path) -> None:
    """Undo what a killed writer left."""
    for old in directory.glob("step_*.replaced"):
        if old.with_suffix("").exists():
            _remove(old)
        else:
            old.rename(old.with_suffix(""))
    pointers = (partial_of(directory / name) for name in _POINTERS)
    for partial in (*directory.glob("step_*.partial"), *pointers):
        _remove(partial)


def _set_aside(path: Path) -> Path:
    """Rename a file or folder to `NAME.damaged`, in place of one of that name; returns that."""
    aside = path.with_name(path.name + ".damaged")
    _remove(aside)
    return path.rename(aside)


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _remove(path: Path) -> None:
    """Remove a folder with all that is in it, a file, or a link but not its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _check_space(directory: Path, tree: Any) -> None:
    needed, free = tensor_bytes(tree) + 2**20, shutil.disk_usage(directory).free
    if needed > free:
        raise AqnetError(
            f"{directory}: a checkpoint needs {needed / 1e6:.0f} MB, but {free / 1e6:.0f} MB are "
            "free; make room, or lower train.keep_best"
        )
