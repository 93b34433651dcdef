"""Blocks of work over processes, with progress."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, TypeVar

from aqnet.errors import AqnetError

PROGRESS_SECONDS = 3.0

_Common = TypeVar("_Common")
_Block = TypeVar("_Block")
_Result = TypeVar("_Result")
_common: Any = None  # of this worker process


def run_blocks(
    work: Callable[[_Common, _Block], _Result],
    common: _Common,
    blocks: Sequence[_Block],
    workers: int,
) -> Iterator[tuple[_Block, _Result]]:
    """`work(common, block)` for every block, in the order in which they end.

    Args:
        common: sent to each worker process once.
        workers: processes; with 1, this one does the work.
    Raises:
        AqnetError: that of the first block that failed, or a worker was killed.
    """
    if min(workers, len(blocks)) <= 1:
        for block in blocks:
            yield block, work(common, block)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(blocks)),
        # torch and blosc keep threads, which a forked child would lack
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(common,),
    )
    try:
        jobs = {pool.submit(_work, work, block): block for block in blocks}
        for job in as_completed(jobs):
            yield jobs[job], job.result()
    except BrokenProcessPool:
        raise AqnetError(
            "a worker process was killed, for want of memory perhaps: give fewer --workers and "
            "start again; what is written is kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(common: Any) -> None:
    global _common
    _common = common
    parent = multiprocessing.parent_process()
    assert parent is not None
    # a killed parent must leave nobody behind who goes on writing
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _work(work: Callable[[Any, Any], Any], block: Any) -> Any:
    return work(_common, block)


class Progress:
    """A line every few seconds: share done, hours of data a second, time left."""

    def __init__(self, what: str, hours: int) -> None:
        self._what, self._hours, self._done = what, hours, 0
        self._began = self._told = time.monotonic()

    def add(self, hours: int) -> None:
        """`hours` more are done."""
        self._done += hours
        now = time.monotonic()
        if now - self._told > PROGRESS_SECONDS and self._done < self._hours:
            self._told = now
            rate = self._done / (now - self._began)
            left = (self._hours - self._done) / rate
            self.tell(
                f"{self._done / self._hours:4.0%} of {self._hours} hours, {rate:.0f} hours/s, "
                f"about {left:.0f} s left"
            )

    def tell(self, text: str) -> None:
        """Print a line."""
        print(f"{self._what}: {text}", flush=True)
