"""Full and read-only file systems at every write point: small tmpfs mounts, which need root."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.faults.configs import command

SIZE = 2**26


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


def check(
    main: Callable[[], Any], arguments: list[str], trouble: contextlib.AbstractContextManager[None]
) -> str:
    """Run a command in trouble; returns `refused` after one line, or `enough room`.

    Raises:
        AssertionError: it ended otherwise.
    """
    with trouble:
        status, told = command(main, arguments)
    assert "Traceback" not in told, told
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert status in (0, 2) and len(errors) == (1 if status == 2 else 0), f"{status}: {told}"
    if status == 2:
        words = ("No space left", "Read-only", "MB are free")
        assert any(word in errors[0] for word in words), errors[0]
    return "refused" if status == 2 else "enough room"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below, save the lock, by its name."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
