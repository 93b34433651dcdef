"""Which ranks have reached which collective, and which are still alive.

A thread of every rank reports it through the rendezvous store, so that no collective is needed and
the training loop never waits for the store.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from torch.distributed import Store

from aqnet.errors import one_line

ANSWER_SECONDS = 10.0  # of a store that lives; requests to one that is stopped never return
LINGER_SECONDS = 3.0
_BEAT_SECONDS = 2.0

Result = TypeVar("Result")


def under_torchrun() -> bool:
    """Whether torchrun started this process, and holds the store."""
    return "TORCHELASTIC_RUN_ID" in os.environ


class Beat(NamedTuple):
    """A rank's last report: its number, the collectives entered so far, the last one's step."""

    number: int = 0
    collectives: int = 0
    step: int = -1


class Silent(RuntimeError):
    """The store did not answer in time."""


class Arrivals:
    """How many collectives this rank has entered, beside the counts of the others.

    One thread reports it to the others, every 2 s or more often. Another watches this rank: where
    it has waited for eight tenths of the time-out, that thread prints which ranks have not entered
    the collective or have stopped reporting. With nccl, whose own time-out ends the process without
    a word to Python, nothing else is printed. Where even the time-out does not end a collective,
    the thread ends the process.
    """

    def __init__(self, store: Store, rank: int, size: int, timeout_seconds: float) -> None:
        self.step = -1
        self._store, self._rank, self._size = store, rank, size
        self._timeout = timeout_seconds
        self._interval = min(_BEAT_SECONDS, timeout_seconds / 25)
        self._count, self._at = 0, -1  # collectives so far, and the step of the last
        self._since: float | None = None  # when it entered the collective that it is in
        self._silent: tuple[int, list[int]] = (-1, [])  # in which collective, which ranks
        self._reported = False  # whether an error of this rank
        self._closed = threading.Event()
        works = (self._report_often, self._watch)
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    def enter(self) -> None:
        """This rank enters its next collective."""
        self._count, self._at = self._count + 1, self.step
        self._since = time.monotonic()

    def leave(self) -> None:
        """It has left the collective."""
        self._since = None

    def report(self, error: Exception) -> None:
        """Give the others an error as the reason for this rank's end."""
        self._reported = True
        text = f"rank {self._rank}: {type(error).__name__}: {one_line(error)}"
        with contextlib.suppress(RuntimeError):  # the store may have died with rank 0
            _within(ANSWER_SECONDS, lambda: self._store.set("failed", text))

    def explanation(self, message: str) -> str:
        """Why a collective failed with `message`: another rank's error, or which ranks lag."""
        self.leave()
        try:
            if _within(ANSWER_SECONDS, lambda: self._store.check(["failed"])):
                reason = self._store.get("failed").decode()
                self._store.set(f"read/{self._rank}", "")
                return reason
            reason = self._missing() or f"all ranks came to a collective of step {self.step}"
        except Silent as error:
            reason = f"{error}; this was rank {self._rank}"
        except RuntimeError:
            reason = f"rank 0, which holds the store, has gone; this was rank {self._rank}"
        return f"{reason} ({message})"

    def linger(self) -> None:
        """Where this process has reported an error and holds the store, keep the store until the
        others have read it."""
        if not self._reported or self._rank != 0 or under_torchrun():
            return
        read = [f"read/{rank}" for rank in range(self._size) if rank != self._rank]
        end = time.monotonic() + LINGER_SECONDS
        while not self._store.check(read) and time.monotonic() < end:
            time.sleep(0.02)

    def close(self) -> None:
        """End the threads; one that waits for a store without an answer stays behind."""
        self._closed.set()
        for thread in self._threads:
            thread.join(1.0)

    def _missing(self) -> str:
        """The ranks that lag or are silent after a collective failed, or an empty text."""
        looked = self._look()
        if self._silent[0] == self._count:
            return named(looked, self._silent[1])
        first, end = looked, time.monotonic() + 3 * self._interval
        while (silent := unchanged(first, looked)) and time.monotonic() < end:
            time.sleep(self._interval / 4)
            looked = self._look()
        return named(looked, silent)

    def _look(self) -> list[Beat]:
        """Every rank's last report."""
        keys = [f"at/{rank}" for rank in range(self._size)]

        def read() -> list[Beat]:
            if self._store.check(keys):
                texts = self._store.multi_get(keys)
            else:  # one has not reported yet
                texts = [self._store.get(key) if self._store.check([key]) else b"" for key in keys]
            return [Beat(*map(int, text.split())) for text in texts]

        return _within(ANSWER_SECONDS, read)

    def _report_often(self) -> None:
        number = 0
        with contextlib.suppress(RuntimeError):  # the store has gone with its process
            while not self._closed.is_set():
                number += 1
                self._store.set(f"at/{self._rank}", f"{number} {self._count} {self._at}")
                self._closed.wait(self._interval)

    def _watch(self) -> None:
        before, warned = None, 0  # a first look, and the collective last warned about
        while not self._closed.wait(self._interval):
            since, count = self._since, self._count
            waited = 0.0 if since is None else time.monotonic() - since
            if waited > 2 * self._timeout + 3 * ANSWER_SECONDS:
                end(f"rank {self._rank} waits since {waited:.0f} s at step {self.step}")
            if waited < 0.7 * self._timeout or warned == count:
                before = None
                continue
            try:
                looked = self._look()
                if before is None:
                    before = looked
                elif waited >= 0.8 * self._timeout:
                    warned, self._silent = count, (count, unchanged(before, looked))
                    self._warn(looked)
            except Silent as error:
                warned = count
                print(f"warning: rank {self._rank} waits: {error}", file=sys.stderr, flush=True)
            except RuntimeError:  # the store has gone with its process
                return

    def _warn(self, looked: list[Beat]) -> None:
        missing, silent = named(looked, self._silent[1]), self._silent[1]
        most = max(beat.collectives for beat in looked)
        waiting = [rank for rank, beat in enumerate(looked) if beat.collectives == most]
        speaker = next((rank for rank in waiting if rank not in silent), None)
        if missing and speaker == self._rank:  # one warns for all that wait
            waits = f"rank {self._rank} waits since {0.8 * self._timeout:.0f} s"
            print(f"warning: {waits}: {missing}", file=sys.stderr, flush=True)


def unchanged(before: list[Beat], after: list[Beat]) -> list[int]:
    """The ranks that reported nothing between two looks."""
    pairs = enumerate(zip(before, after, strict=True))
    return [rank for rank, (old, new) in pairs if old.number == new.number]


def named(looked: list[Beat], silent: list[int]) -> str:
    """The ranks that entered fewer collectives than others, and the silent ones, or no text."""
    most = max(beat.collectives for beat in looked)
    last = max(beat.step for beat in looked if beat.collectives == most)
    behind = [rank for rank, beat in enumerate(looked) if beat.collectives < most]
    parts = {f"ranks that lag behind step {last}": behind}
    parts["ranks that give no sign of life (stopped, killed or cut off)"] = silent
    return "; ".join(
        f"{what}: {', '.join(f'{rank} (step {looked[rank].step})' for rank in ranks[:16])}"
        + (f" and {len(ranks) - 16} more" if len(ranks) > 16 else "")
        for what, ranks in parts.items()
        if ranks
    )


def end(message: str) -> None:
    """End this process, whatever its main thread waits for, with one line and status 2."""
    print(f"error: {message}; ending", file=sys.stderr, flush=True)
    os._exit(2)


@contextlib.contextmanager
def limit(seconds: float, message: str) -> Iterator[None]:
    """Ends this process where what is inside takes longer than `seconds`."""
    timer = threading.Timer(seconds, end, (message,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _within(seconds: float, ask: Callable[[], Result]) -> Result:
    """What `ask` returns or raises.

    Raises:
        Silent: the store did not answer within `seconds`.
    """
    results: list[Result] = []
    errors: list[RuntimeError] = []

    def answer() -> None:
        try:
            results.append(ask())
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise Silent(
            "the store of the rendezvous does not answer: rank 0, or the launcher that holds it, "
            "is stopped or cut off"
        )
    if errors:
        raise errors[0]
    return results[0]
