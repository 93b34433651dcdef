"""All stores of a run as one record of hours, in time order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from aqnet import distributed
from aqnet.config import Config, periods
from aqnet.data.stores.store import HOURS_PER_DAY, Kind, Store, open_store
from aqnet.errors import AqnetError

Hours = NDArray[np.int64]
Array = NDArray[np.float32]


class Fields(Protocol):
    """Fields of a record of hours, in physical units, NaN = missing, by the stores' channels.

    Attributes:
        hours: those of which there are fields, since 1970 UTC, ascending.
    """

    hours: Hours

    def read(self, hour: int, kind: Kind) -> Array | None:
        """Fields [C, H, W] of one hour; None where there is none."""

    def recent(self, hour: int, days: Sequence[int]) -> Array:
        """Means of `air` over the last `days` days before the day (UTC) of an hour, [N, C, H, W].

        Of what is present; NaN where nothing is, and all of it where the record reaches back over
        less than half of the days.
        """


def open_stores(config: Config, years: Sequence[int] | None = None) -> list[Store]:
    """The stores of `years` (all that the split touches) in time order; once in a process.

    Raises:
        AqnetError: one is missing, unfinished, on another grid, or lacks a variable; or two hold
            the same hour.
    """
    years = config.data.split.years if years is None else years
    # looking for every shard file is for one process: 800 would ask the file system a million times
    whole = distributed.is_main()
    stores = [open_store(Path(config.data.stores) / f"{year}.zarr", whole=whole) for year in years]
    for year, store in zip(years, stores, strict=True):
        _check_store(store, stores[0], config)
        _check_year(store, year)
    return stores


class TimeIndex:
    """The `Fields` of several stores."""

    def __init__(self, stores: Sequence[Store]) -> None:
        """
        Raises:
            AqnetError: two stores hold the same hour.
        """
        self.stores = stores
        hours = np.concatenate([store.time for store in stores])
        owners = np.repeat(np.arange(len(stores)), [len(store.time) for store in stores])
        rows = np.concatenate([np.arange(len(store.time)) for store in stores])
        order = np.argsort(hours, kind="stable")
        self.hours: Hours = hours[order]
        self._owners, self._rows = owners[order], rows[order]
        for at in np.flatnonzero(self.hours[1:] == self.hours[:-1])[:1]:
            names = " and ".join(str(stores[self._owners[place]].path) for place in (at, at + 1))
            time = np.datetime64(int(self.hours[at]), "h")
            raise AqnetError(f"{names}: the hour {time} is there twice; prepare the stores again")

    def read(self, hour: int, kind: Kind) -> Array | None:
        """Fields [C, H, W] of one hour; None where there is none.

        Raises:
            AqnetError: the chunk is damaged; store and time are named.
        """
        at = int(np.searchsorted(self.hours, hour))
        if at == len(self.hours) or self.hours[at] != hour:
            return None
        return self.stores[self._owners[at]].read(int(self._rows[at]), kind)

    def recent(self, hour: int, days: Sequence[int]) -> Array:
        """Means of `air` over the last days, [N, C, H, W]; see `Fields.recent`.

        Raises:
            AqnetError: a chunk is damaged; store and day are named.
        """
        day = hour // HOURS_PER_DAY
        first = self.stores[0]
        shape = len(days), len(first.channels["air"]), *first.grid.shape
        sums, counts = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for store in self.stores:
            if store.last_day < day - max(days) or store.first_day >= day:
                continue
            total, count = store.before(day)
            for at, n in enumerate(days):
                earlier, fewer = store.before(day - n)
                sums[at] += total - earlier
                counts[at] += count - fewer
        return means(sums, counts, day, days, int(self.hours[0]) // HOURS_PER_DAY)


def means(sums: Array, counts: Array, day: int, days: Sequence[int], first_day: int) -> Array:
    """Means over the last `days` days before `day` by sums and counts [N, C, H, W], as
    `Fields.recent` gives them; the record begins on `first_day`."""
    reaches_back = np.array([2 * (day - first_day) >= n for n in days])[:, None, None, None]
    known = reaches_back & (counts > 0)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=known)


def _check_year(store: Store, year: int) -> None:
    for hour in store.time[[0, -1]].tolist():
        if periods.year_of(hour) != year:
            raise AqnetError(
                f"{store.path}: holds {np.datetime64(hour, 'h')}, which is not of {year}; put the "
                "stores back under their own names"
            )


def _check_store(store: Store, first: Store, config: Config) -> None:
    """Refuse a store that lacks a variable, or differs from the first in grid, mask or channels."""
    again = "remove it and run python -m aqnet.data.prepare again"
    known = {*store.names, *store.static}
    for name in (*config.data.variables, *config.data.stored):
        if name not in known:
            raise AqnetError(f"{store.path}: lacks the variable {name!r}; {again}")
    if store.channels != first.channels or store.units != first.units:
        raise AqnetError(f"{store.path}: other channels or units than {first.path}; {again}")
    for name in config.data.targets:
        if name not in store.channels["air"]:
            raise AqnetError(f"{store.path}: {name!r} was no target when it was made; {again}")
    for what in ("lat", "lon", "mask"):
        if not torch.equal(getattr(store.grid, what), getattr(first.grid, what)):
            raise AqnetError(f"{store.path}: another {what} than {first.path}; {again}")
    for name, field in first.static.items():
        other: NDArray[Any] = store.static.get(name, np.array([]))
        if not np.array_equal(other, field, equal_nan=True):
            raise AqnetError(f"{store.path}: another {name} than {first.path}; {again}")
