"""Climatology: the mean of each cell per hour of the day (UTC) and month."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from aqnet import distributed
from aqnet.errors import AqnetError
from aqnet.evaluation.baselines.transport import Truth

Values = NDArray[np.float64]
Fields = NDArray[np.float32]
Hours = NDArray[np.int64]
Flags = NDArray[np.bool_]
Stream = Callable[[Callable[[Hours], Flags]], Iterator[tuple[int, Fields]]]


@dataclass(frozen=True)
class Climatology:
    """What was fitted.

    Attributes:
        means: float32 (sums are float64), shape [12, 24, T, N] over the N cells of the domain;
            at hours of the day that are never observed, the mean of the month.
        filled: (cell, target, hour, month) means taken from the cell's month, and from all cells.
    """

    means: Fields
    filled: tuple[int, int]

    def at(self, hour: int) -> Values:
        """Climatology [T, N] of one time, hours since 1970 UTC."""
        return self.means[month_of(hour), hour % 24].astype(np.float64)

    def over_days(self, day: int, number: int) -> Values:
        """Its mean [T, N] over all hours of the days before `day` (days since 1970)."""
        months, days = np.unique(
            [month_of(24 * (day - back)) for back in range(1, number + 1)], return_counts=True
        )
        by_month = self.means[months].mean(axis=1, dtype=np.float64)
        mean: Values = np.average(by_month, axis=0, weights=days)
        return mean

    def mean(self, target: int) -> Values:
        """Mean of a target in each cell of the domain, shape [N]."""
        means = self.means[:, :, target]
        known = np.isfinite(means)
        mean: Values = np.where(known, means, 0.0).sum((0, 1)) / np.maximum(known.sum((0, 1)), 1)
        return mean


def fit(stream: Stream, mask: Flags, num_targets: int, later: Hours, truth: Truth) -> Climatology:
    """The climatology of the training hours; all ranks call, each gets the whole.

    A rank works on whole calendar months (of all years), so that what it adds up does not depend
    on how many ranks there are.

    Args:
        stream: given a function that says which hours to read, makes an iterator over
            (hour, targets [T, H, W]) in time order, NaN = missing.
        mask: the domain [H, W].
        later: the times to be forecast; truth: the targets of any hour, nothing but NaN of one that
            does not exist.
    Raises:
        AqnetError: a month has a truth to be forecast of some target, but no training value.
    """
    own = range(distributed.rank(), 12, distributed.world_size())
    shape = num_targets, int(mask.sum())
    sums = {month: np.zeros((24, *shape)) for month in own}
    counts = {month: np.zeros((24, *shape), np.int32) for month in own}
    for hour, values in stream(lambda hours: np.isin(months_at(hours), own)):
        month, cells = month_of(hour), values[:, mask]
        present = np.isfinite(cells)
        sums[month][hour % 24] += np.where(present, cells, 0.0)
        counts[month][hour % 24] += present
    known = np.zeros((12, 24, num_targets), np.int64)
    for month in own:
        known[month] = counts[month].sum(2)
    distributed.sum_(torch.from_numpy(known))
    _check_months(known.sum(1) > 0, later, lambda hour: truth(hour)[:, mask])
    climate, filled = np.zeros((12, 24, *shape), np.float32), np.zeros(2, np.int64)
    for month in own:
        means, number = _fill(sums.pop(month), counts.pop(month), known.sum((0, 2)) > 0)
        climate[month], filled = means, filled + number
    for part in (climate, filled):  # adding zeros changes nothing
        distributed.sum_(torch.from_numpy(part))
    return Climatology(climate, (int(filled[0]), int(filled[1])))


def month_of(hour: int) -> int:
    """Month (0 to 11) of an hour since 1970 UTC."""
    return int(np.datetime64(hour, "h").astype("datetime64[M]").astype(int)) % 12


def months_at(hours: Hours) -> Hours:
    """The month (0 to 11) of each of many hours since 1970 UTC."""
    months: Hours = hours.astype("datetime64[h]").astype("datetime64[M]").astype(np.int64) % 12
    return months


def _check_months(known: Flags, later: Hours, truth: Truth) -> None:
    """Refuse, on rank 0, target times `later` with a `truth` [T, N] of which the month has no
    training value; `known` says which months have some, [12, T]."""

    def check() -> None:
        if not known.any():
            raise AqnetError("the training split has no value; simple forecasts cannot be fitted")
        lacking: set[int] = set()
        for hour in np.unique(later[~known[months_at(later)].all(-1)]).tolist():
            month = month_of(hour)
            if month + 1 not in lacking and np.isfinite(truth(hour)[~known[month]]).any():
                lacking.add(month + 1)
        if lacking:
            raise AqnetError(
                f"data.split.train has no value of some target in month {sorted(lacking)}, which "
                "the evaluated split needs for its climatology; train on these months too"
            )

    distributed.on_main(check)


def _fill(
    sums: Values, counts: NDArray[np.int32], observed: Flags
) -> tuple[Fields, NDArray[np.int64]]:
    """Means of one month [24, T, N]; where there is none, the cell's of the month, then that of
    all cells. Hours of the day that are never `observed` anywhere (3-hourly data) do not count."""
    with np.errstate(invalid="ignore", divide="ignore"):
        own = sums / counts
        of_month = (sums.sum(0) / counts.sum(0))[None]
        of_cells = (sums.sum(2) / counts.sum(2))[..., None]
    from_month = np.isnan(own) & ~np.isnan(of_month)
    from_cells = np.isnan(own) & ~from_month & ~np.isnan(of_cells)
    means = np.where(from_month, of_month, np.where(from_cells, of_cells, own))
    filled = np.array([from_month[observed].sum(), from_cells.sum()], np.int64)
    return means.astype(np.float32), filled
