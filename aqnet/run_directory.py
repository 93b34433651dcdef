"""The folder of a run: locked by its owner, with the run's status, config and requests to stop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from types import FrameType
from typing import Any

from aqnet import config as configs
from aqnet import distributed
from aqnet.checkpoint.files import Loaded, regular_bytes
from aqnet.config import Config
from aqnet.errors import AqnetError, one_line
from aqnet.files import replace_text

TOUCH_SECONDS = 5.0
WATCH_SECONDS = 30.0
_PROC = Path("/proc")
STATUSES = ("running", "finished", "failed", "interrupted")


class RunDirectory:
    """A directory that one run owns. All ranks call the same methods; rank 0 does the work.

    The lock is the file `lock`, which names its owner and is touched every 5 s. It is free where
    the owner's process is gone (same host), or where it was not touched during 30 s of watching.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = self.path / "lock"
        self._owner: dict[str, Any] | None = None
        self._released = threading.Event()
        self._lost = False
        self._stop_signal = False
        self._claimed_by: int | None = None

    def claim(self) -> None:
        """Take the lock, forget old requests to stop, and from now on note SIGTERM and Ctrl-C.

        Raises:
            AqnetError: another run owns the directory (named), or it cannot be written.
        """
        distributed.on_main(self._claim)
        self._claimed_by = os.getpid()
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def status(self, text: str) -> None:
        """Write `running`, `finished`, `failed` or `interrupted` to the file `status`."""
        if text not in STATUSES:
            raise ValueError(f"{text!r} is none of {STATUSES}")
        if distributed.is_main() and not self._lost:
            replace_text(self.path / "status", text + "\n")

    def failed(self) -> None:
        """Write `failed` while an error is raised, which an error of writing must not hide."""
        try:
            self.status("failed")
        except AqnetError as error:
            print(f"warning: {error}", file=sys.stderr, flush=True)

    def stop_requested(self) -> bool:
        """Whether SIGTERM or Ctrl-C came to this process or, on rank 0, `stop_requested` exists.

        The ranks have to agree on it: `distributed.any_rank`.

        Raises:
            AqnetError: another process has taken the lock; this run must not write any more.
        """
        if self._lost:
            raise AqnetError(f"{self._lock}: another run has taken this run directory; stopping")
        if self._stop_signal:
            return True
        return distributed.is_main() and (self.path / "stop_requested").exists()

    def end_on_signals(self) -> None:
        """From now on SIGTERM and Ctrl-C end the process at once: nothing is left to save."""
        if self._claimed_by == os.getpid():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def release(self) -> None:
        """Give the lock back; a request to stop counts as obeyed, and signals end the process."""
        if self._claimed_by == os.getpid():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._claimed_by = None
        self._released.set()
        self._owner, owner = None, self._owner
        # where it cannot be removed, the lock of a process that has ended is free all the same
        with contextlib.suppress(OSError):
            if owner is not None and _read(self._lock) == owner:
                (self.path / "stop_requested").unlink(missing_ok=True)
                self._lock.unlink(missing_ok=True)

    def _claim(self) -> None:
        if self._owner is not None:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            owner = _this_process()
            while not _create(self._lock, owner):
                self._break_or_refuse()
        except OSError as error:
            raise AqnetError(f"{self.path}: cannot be written: {one_line(error)}") from None
        self._owner = owner
        self._released.clear()
        threading.Thread(target=self._keep_touching, args=(owner,), daemon=True).start()
        request = self.path / "stop_requested"
        if request.exists():
            print(f"{request}: is from before this start; removed", flush=True)
            request.unlink(missing_ok=True)

    def _break_or_refuse(self) -> None:
        """Remove a lock whose owner is gone.

        Raises:
            AqnetError: the owner lives.
        """
        owner = _read(self._lock)
        if not _is_stale(self._lock, owner):
            owner = _read(self._lock) or {}  # it may have been half written before
            raise AqnetError(
                f"{self.path}: in use by process {owner.get('pid')} on {owner.get('host')} "
                f"(job {owner.get('job')}); stop that or choose another directory"
            )
        aside = self._lock.with_name(f"lock.{uuid.uuid4().hex}")
        try:
            self._lock.rename(aside)
        except FileNotFoundError:
            return  # another run was faster
        if _read(aside) != owner:  # another run had already replaced the stale lock: put it back
            aside.rename(self._lock)
            return
        aside.unlink()

    def _keep_touching(self, owner: dict[str, Any]) -> None:
        while not self._released.wait(TOUCH_SECONDS):
            try:
                if _read(self._lock) != owner:
                    self._lost = not self._released.is_set()
                    return
                os.utime(self._lock)
            except OSError:
                continue  # a file system may be away for a moment; a lost lock is noticed above

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._claimed_by:  # a forked worker inherits this handler
            return
        self._stop_signal = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if distributed.is_main():  # print is not made for handlers
                os.write(2, b"stopping after this step, with a checkpoint; Ctrl-C again: at once\n")


def keep_config(path: Path, config: Config, loaded: Loaded | None) -> None:
    """Write `config.yaml`, if this run may go on in the directory.

    Raises:
        AqnetError: the checkpoint, or without one the directory's config.yaml, is of a run whose
            config differs in what a continuation must not change; the keys are listed.
    """
    file = path / "config.yaml"
    if loaded is not None:
        before, origin = loaded.state["config"], str(loaded.path)
        advice = "undo these changes to continue it, or choose another run_dir"
    elif file.exists():
        before, origin = configs.to_dict(configs.load(file)), str(file)
        advice = (
            "that run has no checkpoint: remove this file to start anew with the changes, undo "
            "them, or choose another run_dir"
        )
    else:
        before, origin, advice = configs.to_dict(config), "", ""
    changes = configs.changes_forbidden_on_continuation(before, configs.to_dict(config))
    if changes:
        raise AqnetError(
            f"{origin}: belongs to a run with another config ({'; '.join(changes)}); {advice}"
        )
    replace_text(file, configs.to_yaml(config))


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "started": _start_time(os.getpid()),
        "namespace": _namespace(),
        "token": uuid.uuid4().hex,
    }


def _create(lock: Path, owner: dict[str, Any]) -> bool:
    """Write the lock; False where it exists."""
    try:
        with lock.open("x", encoding="utf-8") as file:
            json.dump(owner, file)
    except FileExistsError:
        return False
    except OSError:  # a full disk: half a lock would be watched for a living owner
        lock.unlink(missing_ok=True)
        raise
    return True


def _read(lock: Path) -> dict[str, Any] | None:
    """The owner in a lock; None where there is no lock, or it cannot be read."""
    try:
        owner = json.loads(regular_bytes(lock, 2**16))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return owner if isinstance(owner, dict) else None


def _is_stale(lock: Path, owner: dict[str, Any] | None) -> bool:
    owner = owner or {}
    here = (socket.gethostname(), _namespace())
    if (owner.get("host"), owner.get("namespace")) == here and isinstance(owner.get("pid"), int):
        return _start_time(owner["pid"]) != owner.get("started")
    before = _touched(lock)
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, WATCH_SECONDS / 10))
        now = _touched(lock)
        if now is None:  # released
            return True
        if now != before:
            return False
    return True


def _touched(lock: Path) -> int | None:
    """When a lock was last touched; None where there is none."""
    try:  # opened, because network file systems cache the times of files that are not
        with lock.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _start_time(pid: int) -> int | None:
    """When a process started (clock ticks from boot; tells reused numbers apart); None where
    there is no such process, or only its zombie. Without /proc (macOS): 0 where it lives."""
    if not _PROC.exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass  # it lives, as another user
        return 0
    try:
        fields = (_PROC / f"{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _namespace() -> str:
    """The boot and container within which process numbers can be compared."""
    if not _PROC.exists():
        return ""
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {(_PROC / 'self/ns/pid').readlink()}"
