"""Who has come to which collective: told through the rendezvous's store, so that it needs none."""

from __future__ import annotations

import contextlib
import datetime
import sys
import threading
import time
from typing import Protocol

from aqnet.errors import one_line


class Store(Protocol):
    """What is used of a torch.distributed store."""

    def set(self, key: str, value: str, /) -> None:
        """Write."""

    def get(self, key: str, /) -> bytes:
        """Read; waits for the key."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all are there."""

    def wait(self, keys: list[str], timeout: datetime.timedelta, /) -> None:
        """Until all are there; an error after `timeout`."""


class Arrivals:
    """This rank's count of collectives, beside those of the others.

    A thread looks after it: where this rank has waited for eight tenths of the time-out while
    others have not come, it names them on the terminal. With nccl, whose own time-out ends the
    process without a word to Python, that is all that is heard.
    """

    def __init__(self, store: Store, rank: int, size: int, timeout_seconds: float) -> None:
        self.step = -1
        self._store, self._rank, self._size = store, rank, size
        self._patience = 0.8 * timeout_seconds
        self._count = 0
        self._since = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def come(self) -> None:
        """Say that this rank enters its next collective."""
        self._count += 1
        self._since = time.monotonic()
        self._store.set(f"at/{self._rank}", f"{self._count} {self.step}")

    def tell(self, error: Exception) -> None:
        """Leave an error to the others as the reason of this rank's end."""
        with contextlib.suppress(RuntimeError):  # the store may have died with rank 0
            text = f"rank {self._rank}: {type(error).__name__}: {one_line(error)}"
            self._store.set("failed", text)

    def explanation(self, said: str) -> str:
        """Why a collective failed that said `said`: another rank's error, or which ranks lag."""
        try:
            if self._store.check(["failed"]):
                return self._store.get("failed").decode()
            came = self.lagging() or f"all ranks came to a collective of step {self.step}"
        except RuntimeError:
            came = f"rank 0, which holds the store, has gone; this was rank {self._rank}"
        return f"{came} ({said})"

    def lagging(self) -> str:
        """The ranks that came to fewer collectives than others, and where they were; or ""."""
        came = [self._of(rank) for rank in range(self._size)]
        most, last = max(came)
        behind = [f"{rank} (step {step})" for rank, (n, step) in enumerate(came) if n < most]
        if not behind:
            return ""
        more = f" and {len(behind) - 16} more" if len(behind) > 16 else ""
        return f"ranks that lag behind step {last}: {', '.join(behind[:16])}{more}"

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def _of(self, rank: int) -> tuple[int, int]:
        key = f"at/{rank}"
        if not self._store.check([key]):
            return 0, -1
        count, step = self._store.get(key).decode().split()
        return int(count), int(step)

    def _watch(self) -> None:
        said = 0  # the collective whose wait was last spoken of
        while not self._closed.wait(min(5.0, self._patience / 10)):
            if time.monotonic() - self._since < self._patience or said == self._count:
                continue
            said = self._count
            try:
                first = [self._of(rank)[0] for rank in range(self._rank + 1)]
                lagging = self.lagging()
            except RuntimeError:  # the store has gone with its process
                return
            if lagging and first.index(max(first)) == self._rank:  # one speaks for all that wait
                waited = f"rank {self._rank} waits since {self._patience:.0f} s"
                print(f"warning: {waited}: {lagging}", file=sys.stderr, flush=True)
