"""Full and read-only file systems at every write point: small tmpfs mounts, which need root."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aqnet.run_directory import RunDirectory
from tests.faults.configs import command

SIZE = 2**26
TRIED = "AQNET_FAULTS_TRIED"  # names a file that gets a line for each command put in trouble


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """A file system of 64 MiB.

    Raises:
        PermissionError: this user may not mount.
    """
    folder.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    result = subprocess.run(["mount", *options], capture_output=True, text=True)
    if result.returncode:
        raise PermissionError(f"cannot mount a tmpfs: {result.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def full(folder: Path, free: int) -> Iterator[None]:
    """Inside, `free` bytes are left on the file system."""
    filler = folder / "filler"
    status = os.statvfs(folder)
    filler.write_bytes(b"\1" * max(0, status.f_bavail * status.f_frsize - free))
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Inside, nothing can be written."""
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)


@contextlib.contextmanager
def first_failures() -> Iterator[list[BaseException]]:
    """Inside, the error for which a run is marked as failed: that of the mark may not hide it."""
    first: list[BaseException] = []
    mark = RunDirectory.failed

    def failed(directory: RunDirectory) -> None:
        error = sys.exc_info()[1]
        assert error is not None
        first.append(error)
        mark(directory)

    RunDirectory.failed = failed  # type: ignore[method-assign]
    try:
        yield first
    finally:
        RunDirectory.failed = mark  # type: ignore[method-assign]


def check(
    main: Callable[[], Any], arguments: list[str], trouble: contextlib.AbstractContextManager[None]
) -> str:
    """Run a command in trouble; returns `refused` after one line, or `enough room`.

    Raises:
        AssertionError: it ended otherwise, or another failure hid the first one of a training.
    """
    with trouble, first_failures() as first:
        status, told = command(main, arguments)
    assert "Traceback" not in told, told
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert status in (0, 2) and len(errors) == (1 if status == 2 else 0), f"{status}: {told}"
    if status == 2:
        words = ("No space left", "Read-only", "MB are free")
        assert any(word in errors[0] for word in words), errors[0]
        for error in first:
            place = error.filename if isinstance(error, OSError) else str(error)
            assert str(place) in errors[0], f"{errors[0]}, but the first was {error}"
    if tried := os.environ.get(TRIED):
        with Path(tried).open("a") as file:
            file.write(f"{' '.join(arguments)}\n")
    return "refused" if status == 2 else "enough room"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below, save the lock, by its name."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
