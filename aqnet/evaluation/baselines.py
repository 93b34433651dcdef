"""The simple forecasts, fitted on the training years, that a model has to beat.

Persistence x(t); climatology c, the mean of each cell per hour of the day (UTC) and month; damped
persistence a + b x(t); damped anomaly persistence c(t + lead) + rho (x(t) - c(t)); a, b and rho
per target and lead time, by least squares pooled over the cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from aqnet import distributed
from aqnet.errors import AqnetError

Values = NDArray[np.float64]
Fields = NDArray[np.float32]
Hours = NDArray[np.int64]
Flags = NDArray[np.bool_]
Stream = Iterator[tuple[int, Fields]]
SIMPLE = ("persistence", "climatology", "damped_persistence", "damped_anomaly")
KEPT_BYTES = 2**30  # training targets that fit are read once; larger ones are read twice


@dataclass(frozen=True)
class Baselines:
    """What was fitted.

    Attributes:
        climate: float32 (sums are float64), shape [12, 24, T, N] over the N cells of the domain;
            at hours of the day that are never observed, the mean of the month.
        filled: (cell, target, hour, month) means taken from the cell's month, and from all cells.
        offset, slope: of damped persistence; rho: of damped anomaly persistence, shape [K, T].
    """

    climate: Fields
    filled: tuple[int, int]
    offset: Values
    slope: Values
    rho: Values

    def climate_at(self, hour: int) -> Values:
        """Climatology [T, N] of one time, hours since 1970 UTC."""
        return self.climate[month_of(hour), hour % 24].astype(np.float64)

    def forecasts(self, present: Values, hour: int, lead_times: Sequence[int]) -> dict[str, Values]:
        """Each simple forecast [K, T, N] from `present` [T, N], NaN where that is missing."""
        later = np.stack([self.climate_at(hour + lead) for lead in lead_times])
        anomaly = present - self.climate_at(hour)
        return {
            "persistence": np.broadcast_to(present, later.shape),
            "climatology": later,
            "damped_persistence": self.offset[..., None] + self.slope[..., None] * present,
            "damped_anomaly": later + self.rho[..., None] * anomaly,
        }


def fit(
    stream: Callable[[Callable[[Hours], Flags]], Stream],
    mask: Flags,
    num_targets: int,
    lead_times: Sequence[int],
    wanted_months: set[int],
) -> Baselines:
    """Climatology, then regressions, of the training hours; all ranks call, each gets the whole.

    A rank works on whole calendar months (of all years), so that what it adds up does not depend
    on how many ranks there are.

    Args:
        stream: given a function that says which hours to read, makes an iterator over
            (hour, targets [T, H, W]) in time order, NaN = missing.
        mask: the domain [H, W].
        wanted_months: 0 to 11, those of the times to be forecast.
    Raises:
        AqnetError: a wanted month has no training value of some target, or a lead time no pair.
    """
    own = range(distributed.rank(), 12, distributed.world_size())

    def wanted(hours: Hours) -> Flags:
        """Hours of the own months, and those from which they are forecast."""
        later = hours[:, None] + np.array([0, *lead_times])
        return np.asarray(np.isin(months_at(later), own).any(1))

    hours = _Hours(partial(stream, wanted), mask)
    shape = num_targets, int(mask.sum())
    climate, filled = _climatology(hours, own, shape, wanted_months)
    offset, slope, rho = _regressions(hours, own, lead_times, climate)
    return Baselines(climate, filled, offset, slope, rho)


def months_of(hours: Hours) -> set[int]:
    """Months (0 to 11) in which the hours since 1970 UTC lie."""
    return set(np.unique(months_at(hours)).tolist())


def month_of(hour: int) -> int:
    """Month (0 to 11) of an hour since 1970 UTC."""
    return int(np.datetime64(hour, "h").astype("datetime64[M]").astype(int)) % 12


def months_at(hours: Hours) -> Hours:
    months: Hours = hours.astype("datetime64[h]").astype("datetime64[M]").astype(np.int64) % 12
    return months


class _Hours:
    """Hours with their targets [T, N] in the cells of the domain, of a stream of [T, H, W].

    They are kept in memory where they fit, and read anew at each pass where they do not.
    """

    def __init__(self, stream: Callable[[], Stream], mask: Flags) -> None:
        self._stream, self._mask = stream, mask
        self._kept: list[tuple[int, Fields]] = []

    def __iter__(self) -> Iterator[tuple[int, Fields]]:
        if self._kept:
            yield from self._kept
            return
        kept, size = [], 0
        for hour, values in self._stream():
            cells = values[:, self._mask]
            size += cells.nbytes
            if size <= KEPT_BYTES:
                kept.append((hour, cells))
            else:
                kept.clear()
            yield hour, cells
        self._kept = kept


def _climatology(
    hours: _Hours, own: range, shape: tuple[int, int], wanted_months: set[int]
) -> tuple[Fields, tuple[int, int]]:
    sums = {month: np.zeros((24, *shape)) for month in own}
    counts = {month: np.zeros((24, *shape), np.int32) for month in own}
    for hour, values in hours:
        month = month_of(hour)
        if month in sums:
            present = np.isfinite(values)
            sums[month][hour % 24] += np.where(present, values, 0.0)
            counts[month][hour % 24] += present
    known = np.zeros((12, 24, shape[0]), np.int64)
    for month in own:
        known[month] = counts[month].sum(2)
    distributed.sum_(torch.from_numpy(known))
    _check_months(known, wanted_months)
    climate, filled = np.zeros((12, 24, *shape), np.float32), np.zeros(2, np.int64)
    for month in own:
        means, number = _fill(sums.pop(month), counts.pop(month), known.sum((0, 2)) > 0)
        climate[month], filled = means, filled + number
    for part in (climate, filled):  # adding zeros changes nothing
        distributed.sum_(torch.from_numpy(part))
    return climate, (int(filled[0]), int(filled[1]))


def _check_months(known: NDArray[np.int64], wanted_months: set[int]) -> None:
    """Refuse, on rank 0, months without a value; `known` counts values [12, 24, T]."""

    def check() -> None:
        if not known.any():
            raise AqnetError("the training split has no value; simple forecasts cannot be fitted")
        lacking = [m + 1 for m in sorted(wanted_months) if (known[m].sum(0) == 0).any()]
        if lacking:
            raise AqnetError(
                f"data.split.train has no value of some target in month {lacking}, which the "
                "evaluated split needs for its climatology; train on these months too"
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


def _regressions(
    hours: _Hours, own: range, lead_times: Sequence[int], climate: Fields
) -> tuple[Values, Values, Values]:
    """Offset, slope and rho, each of shape [K, T]."""
    by_month = np.zeros((12, 7, len(lead_times), climate.shape[2]))
    recent: dict[int, _Hour] = {}
    for hour, values in hours:
        month = month_of(hour)
        now = _Hour(values, climate[month, hour % 24])
        for row, lead in enumerate(lead_times):
            before = recent.get(hour - lead)
            if before is not None and month in own:
                by_month[month, :, row] += _products(before, now)
        recent[hour] = now
        for old in [time for time in recent if time <= hour - max(lead_times)]:
            del recent[old]
    distributed.sum_(torch.from_numpy(by_month))
    count, x, y, xx, xy, aa, ab = by_month.sum(0)
    distributed.on_main(partial(_check_pairs, count, lead_times))
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = (count * xy - x * y) / (count * xx - x * x)
        slope = np.where(np.isfinite(slope), slope, 0.0)
        offset = (y - slope * x) / count
        rho = np.where(aa > 0, ab / aa, 0.0)
    return offset, slope, rho


def _check_pairs(count: Values, lead_times: Sequence[int]) -> None:
    """Refuse lead times without a pair of training values; `count` is [K, T]."""
    lacking = [lead for lead, pairs in zip(lead_times, count, strict=True) if not pairs.all()]
    if lacking:
        raise AqnetError(
            f"data.split.train has no two values of some target {lacking} h apart, of which the "
            "damped forecasts are fitted; train on longer periods"
        )


class _Hour:
    """One hour's values, where they are, and their anomalies [T, N], 0 where missing."""

    def __init__(self, values: Fields, usual: Fields) -> None:
        cells = values.astype(np.float64)
        here = np.isfinite(cells)
        self.complete = bool(here.all())
        self.here = here.astype(np.float64)
        self.known = np.where(here, cells, 0.0)
        self.anomaly = np.where(here, cells - usual, 0.0)
        self.sums = (
            self.known.sum(1),
            _dot(self.known, self.known),
            _dot(self.anomaly, self.anomaly),
        )


def _products(before: _Hour, now: _Hour) -> Values:
    """n, x, y, xx, xy and, of anomalies, aa, ab: sums over the cells present twice, [7, T]."""
    x, y, a, b = before.known, now.known, before.anomaly, now.anomaly
    if before.complete and now.complete:  # most hours; the sums of each are known already
        n = np.full(len(x), float(x.shape[1]))
        xx, aa = before.sums[1:]
        return np.stack([n, before.sums[0], now.sums[0], xx, _dot(x, y), aa, _dot(a, b)])
    here, there = before.here, now.here
    pairs = ((here, there), (x, there), (y, here), (x * x, there), (x, y), (a * a, there), (a, b))
    return np.stack([_dot(first, second) for first, second in pairs])


def _dot(first: Values, second: Values) -> Values:
    total: Values = np.einsum("tn,tn->t", first, second)
    return total
