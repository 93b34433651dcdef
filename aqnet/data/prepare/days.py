"""Sums over the days of a store, from which the mean of any days is two reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aqnet.data.stores.store import HOURS_PER_DAY


class Part(NamedTuple):
    """Sums and counts of the values of some hours of one day, each [C, H, W]."""

    day: int
    sums: NDArray[np.float64]
    counts: NDArray[np.int64]


def parts(time: NDArray[np.int64], fields: NDArray[Any]) -> list[Part]:
    """Sums and counts of some hours, by day.

    Args:
        time: hours since 1970 UTC, ascending, shape [n]; fields: NaN = missing, [n, C, H, W].
    """
    found: list[Part] = []
    for day, values in zip((time // HOURS_PER_DAY).tolist(), fields, strict=True):
        if not found or found[-1].day != day:
            found.append(Part(day, np.zeros(values.shape), np.zeros(values.shape, np.int64)))
        present = np.isfinite(values)
        np.add(found[-1].sums, values, out=found[-1].sums, where=present)
        np.add(found[-1].counts, present, out=found[-1].counts)
    return found


def running(days: Iterable[Part]) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint16]]]:
    """Sum and count over all hours up to the end of each day, from the first to the last, also of
    days without an hour.

    Args:
        days: ascending; several parts of one day may follow each other.
    """
    total: NDArray[np.float64] | None = None
    count = np.zeros(0, np.int64)
    for part in days:
        if total is None:
            day, total, count = part.day, np.zeros_like(part.sums), np.zeros_like(part.counts)
        while day < part.day:
            yield total.astype(np.float32), count.astype(np.uint16)
            day += 1
        total += part.sums
        count += part.counts
    if total is not None:
        yield total.astype(np.float32), count.astype(np.uint16)
