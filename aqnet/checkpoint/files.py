"""One checkpoint on disk: written beside and renamed, verified, read without executing anything.

A checkpoint is a directory `step_00001234` of `model.pt` ({"model": state_dict}, with "ema", "grid"
and "static" where there are such), `optimizer.pt` and `state.json`, which holds the SHA-256 of all
three (its own being that of its other keys).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import platform
import re
import reprlib
import shutil
import struct
import zipfile
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

import aqnet
from aqnet.checkpoint.state import OF_THE_STORES, problems
from aqnet.errors import AqnetError, one_line
from aqnet.files import partial_of, replace_folder, sync

STEP = re.compile(r"step_[0-9]{8,}")
_GRID_BYTES = 2**28  # coordinates may be written as views of one row
STATE_BYTES = 2**26  # more than any state.json; read before its checksum is known
_TENSOR_FILES = ("model.pt", "optimizer.pt")
# what torch's restricted unpickler raises at pickles that are no plain tensors, or cut short
_REFUSED = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ImportError,
    AssertionError,
    struct.error,
    zipfile.BadZipFile,
)


class Damaged(AqnetError):
    """A checkpoint's bytes are not those that were written."""


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in CPU memory.

    Attributes:
        model: state_dict; ema: the same of the moving average, or None.
        optimizer: the optimizer's state_dict ({} in imported weights).
        state: global_step, epoch, items_consumed, validation_loss, config, statistics, ...
        grid: `Grid.to_dict` of the stores it was trained on; None in imported weights.
        static: their static fields by name, shape [H, W]; None in older checkpoints too.
    """

    path: Path
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    state: dict[str, Any]
    grid: dict[str, Tensor] | None = None
    static: dict[str, Tensor] | None = None


def write(
    path: Path, model: dict[str, Any], optimizer: dict[str, Any], state: dict[str, Any]
) -> None:
    """Write one checkpoint directory, whole or not at all, replacing one of that name.

    Args:
        model: {"model": state_dict}, with "ema", "grid", "static" where there are such; state:
            JSON-able.
    Raises:
        AqnetError: it could not be written, or reads back differently.
    """
    if not isinstance(model.get("model"), dict):
        raise ValueError('expected {"model": state_dict}')
    partial = partial_of(path)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        sums = {
            name: _write_tensors(partial / name, tree)
            for name, tree in zip(_TENSOR_FILES, (model, optimizer), strict=True)
        }
        versions = {
            "aqnet": aqnet.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        }
        described = {"versions": versions, **plain_json(state)}
        described.pop("sha256", None)
        sums["state.json"] = hashlib.sha256(_canonical(described)).hexdigest()
        _write_text(partial / "state.json", json.dumps({**described, "sha256": sums}, indent=1))
        verified_state(partial)  # before any name leads to it
        sync(partial)
        replace_folder(partial, path)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise AqnetError(
            f"{path}: the checkpoint could not be written: {one_line(error)}"
        ) from error


def read(path: str | Path) -> Loaded:
    """Read and verify a checkpoint; nothing that it may carry is executed.

    Args:
        path: a run directory (its best checkpoint, else its latest) or one `step_*` directory.
    Raises:
        Damaged: a file is missing or its bytes are not those that were written.
        AqnetError: there is no checkpoint, or it holds something else than tensors and numbers.
    """
    path = find(Path(path))
    state = verified_state(path)
    model, optimizer = (_own_tensors(path / name) for name in _TENSOR_FILES)
    for key in ("model", *(key for key in ("ema", "grid", "static") if key in model)):
        values = model.get(key)
        if not isinstance(values, dict) or not all(isinstance(v, Tensor) for v in values.values()):
            raise AqnetError(f"{path / 'model.pt'}: expected tensors by name under {key!r}")
    for key in OF_THE_STORES if "static" in model else ():
        if key not in state:
            raise Damaged(f"{path}: damaged checkpoint (state.json: lacks {key})")
    ema, grid, static = (model.get(key) for key in ("ema", "grid", "static"))
    return Loaded(path, model["model"], ema, optimizer, state, grid, static)


def find(path: Path) -> Path:
    """The checkpoint of a run directory (its best, else its latest), or the path of one itself."""
    if (path / "state.json").exists() or STEP.fullmatch(path.name):
        return path
    for name in ("best", "latest"):
        pointer = path / "checkpoints" / name
        if os.path.lexists(pointer):
            return named_by(pointer)
    raise AqnetError(
        f"{path}: no checkpoint; expected a run directory with checkpoints/best or "
        "checkpoints/latest, or one step_* directory"
    )


def named_by(pointer: Path) -> Path:
    """The checkpoint that a file `latest` or `best` names, whether or not it is there.

    Raises:
        AqnetError: the file cannot be read, or holds no such name.
    """
    try:
        target = regular_bytes(pointer, 4096).decode(errors="replace").strip()
    except OSError as error:
        raise AqnetError(f"{pointer}: cannot be read: {one_line(error)}") from None
    if not STEP.fullmatch(target):
        raise AqnetError(
            f"{pointer}: expected a name such as step_00001234, found {reprlib.repr(target)}"
        )
    return pointer.parent / target


class _HashingFile:
    """A file for torch.save that knows the SHA-256 of what was written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _write_tensors(path: Path, tree: dict[str, Any]) -> str:
    with path.open("wb") as file:
        hashing = _HashingFile(cast(BinaryIO, file))
        torch.save(tree, cast(BinaryIO, hashing))
        file.flush()
        os.fsync(file.fileno())
    return hashing.sha256.hexdigest()


def load_tensors(path: Path) -> dict[str, Any]:
    """A file of torch.save, in CPU memory.

    Raises:
        AqnetError: it holds anything else than tensors and plain values; nothing in it is run.
    """
    try:
        if zipfile.is_zipfile(path):  # torch stores tensors as they are; a bomb is compressed
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > path.stat().st_size:
                raise ValueError("its members are larger than the file")
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except _REFUSED as error:
        raise AqnetError(
            f"{path}: refused, nothing in it was run: expected tensors and numbers only "
            f"({_reason(error)})"
        ) from None
    if not isinstance(tree, dict):
        raise AqnetError(f"{path}: expected a dict, found {type(tree).__name__}")
    return tree


def _own_tensors(path: Path) -> dict[str, Any]:
    """`load_tensors` of a file that aqnet wrote, which holds every value of its tensors.

    Raises:
        AqnetError: see `load_tensors`, or the tensors are larger than the file (by repeating).
    """
    tree = load_tensors(path)
    if tensor_bytes(tree) > path.stat().st_size + _GRID_BYTES:
        raise AqnetError(f"{path}: refused: its tensors are larger than the file")
    return tree


def tensor_bytes(value: Any) -> int:
    """Bytes of the tensors in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(tensor_bytes, value)) if isinstance(value, list | tuple) else 0


def _reason(error: Exception) -> str:
    """What torch found, without its advice to load the file all the same."""
    text = " ".join(str(error).split())
    found = text.rpartition("WeightsUnpickler error: ")[2].partition(" Please use")[0]
    return found.partition(" Check the documentation")[0].rstrip(".")[:120]


def verified_state(path: Path) -> dict[str, Any]:
    """What state.json holds, if the SHA-256 of all files, its keys and their types are right."""
    try:
        state = json.loads(regular_bytes(path / "state.json", STATE_BYTES))
        expected = state.pop("sha256")
        found = {name: _sha256(path / name) for name in _TENSOR_FILES}
        found["state.json"] = hashlib.sha256(_canonical(state)).hexdigest()
        wrong = [name for name, digest in found.items() if expected.get(name) != digest]
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise Damaged(f"{path}: damaged checkpoint ({reason})") from None
    if wrong:
        raise Damaged(f"{path}: damaged checkpoint (SHA-256 of {', '.join(wrong)} differs)")
    for problem in problems(state):
        raise Damaged(f"{path}: damaged checkpoint (state.json: {problem})")
    step = state["global_step"]
    if STEP.fullmatch(path.name) and step != int(path.name.removeprefix("step_")):
        raise Damaged(f"{path}: damaged checkpoint (state.json: is of step {step})")
    return {**state, "sha256": expected}


def regular_bytes(path: Path, most: int) -> bytes:
    """A small file's bytes.

    Raises:
        OSError: it is missing, no regular file (a pipe would be waited for), or larger than `most`.
    """
    with _opened(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"is larger than {most} bytes", str(path))
    return data


def _opened(path: Path) -> BufferedReader:
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is no file", str(path))
    return path.open("rb")


def _sha256(path: Path) -> str:
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(state: dict[str, Any]) -> bytes:
    return json.dumps(state, sort_keys=True).encode()


def plain_json(state: dict[str, Any]) -> dict[str, Any]:
    """`state` as JSON gives it back (tuples as lists), so that its checksum can be repeated."""
    plain: dict[str, Any] = json.loads(json.dumps(state))
    return plain


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
