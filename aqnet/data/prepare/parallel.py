"""Blocks of work over processes, with progress."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, TextIO, TypeVar

from aqnet.errors import AqnetError

PROGRESS_SECONDS = 3.0

_Block = TypeVar("_Block")
_Result = TypeVar("_Result")
_common: Any = None  # of this worker process


class Workers:
    """`count` processes that do blocks of work on something they are given once, `common`; with 0
    this process does the work itself. A context manager."""

    def __init__(self, common: Any, count: int) -> None:
        self._common = common
        self._pool: ProcessPoolExecutor | None = None
        if count > 0:
            self._pool = ProcessPoolExecutor(
                count,
                # torch and blosc keep threads, which a forked child would lack
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=(common,),
            )

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(
        self, work: Callable[[Any, _Block], _Result], blocks: Sequence[_Block]
    ) -> Iterator[tuple[_Block, _Result]]:
        """`work(common, block)` for every block, in the order in which they end.

        Raises:
            AqnetError: that of the first block that failed, or a worker was killed.
        """
        if self._pool is None:
            for block in blocks:
                yield block, work(self._common, block)
            return
        jobs = {self._pool.submit(_work, work, block): block for block in blocks}
        try:
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        except BrokenProcessPool:
            raise AqnetError(
                "a worker process was killed, for want of memory perhaps: give fewer --workers and "
                "start again; what is written is kept"
            ) from None
        finally:  # the caller may have enough before all are done
            for job in jobs:
                job.cancel()


def _begin(common: Any) -> None:
    global _common
    _common = common
    # Ctrl-C reaches every process of a terminal; it is for the parent, which lets blocks end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    # a killed parent must leave nobody behind who goes on writing
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _work(work: Callable[[Any, Any], Any], block: Any) -> Any:
    return work(_common, block)


class ProgressLines:
    """A line every few seconds: share done, hours of data a second, time left."""

    def __init__(self, what: str, hours: int, stream: TextIO | None = None) -> None:
        """`stream`: where the lines go, else stdout."""
        self._what, self._hours, self._done, self._stream = what, hours, 0, stream
        self._began = self._printed = time.monotonic()

    def add(self, hours: int) -> None:
        """`hours` more are done."""
        self._done += hours
        now = time.monotonic()
        if now - self._printed > PROGRESS_SECONDS and self._done < self._hours:
            self._printed = now
            rate = self._done / (now - self._began)
            left = (self._hours - self._done) / rate
            print(
                f"{self._what}: {self._done / self._hours:4.0%} of {self._hours} hours, "
                f"{rate:.0f} hours/s, about {left:.0f} s left",
                file=self._stream,
                flush=True,
            )
