"""Files and folders that appear whole or not at all: written beside, flushed, renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from aqnet.errors import AqnetError


def partial_of(path: Path) -> Path:
    """Where a file or folder stands until it is whole: NAME.partial beside it."""
    return path.with_name(path.name + ".partial")


@contextlib.contextmanager
def writing(path: Path, advice: str = "make room there or choose another place") -> Iterator[None]:
    """Inside, a file system that refuses is one line that names `path`: write, flush and fsync
    name no file themselves.

    Args:
        advice: what the user can do.
    Raises:
        AqnetError: it refused (a full disk, a read-only place).
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise AqnetError(f"{path}: cannot be written ({reason}); {advice}") from error


@contextlib.contextmanager
def write_beside(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends; a reader finds the old or the new one.

    One process at a time may write a path. Whatever goes wrong leaves `path` as it was.

    Raises:
        AqnetError: the file system refuses (a full disk, a read-only place).
    """
    partial = partial_of(path)
    try:
        with writing(path):
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def replace_text(path: Path, text: str) -> None:
    """Replace a small text file by `write_beside`."""
    with write_beside(path) as file:
        file.write(text.encode())


def replace_folder(source: Path, target: Path) -> None:
    """Give the finished folder `source` its name `target`, in place of an older folder."""
    old = target.with_name(target.name + ".replaced")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)  # a kill left it while it was removed
        target.rename(old)
    source.rename(target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file's bytes, or a directory's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
