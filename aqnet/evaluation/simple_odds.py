"""The simple forecasts as distributions, fitted on the training years, that a model has to beat.

The climatological distribution: quantiles of each cell's training values per month and hour of the
day (UTC). Damped anomaly persistence with the distribution that its errors had in training, per
cell, target and lead time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from aqnet import distributed
from aqnet.counted import Bins
from aqnet.evaluation.baselines import Baselines, month_of, months_at

Values = NDArray[np.float64]
Fields = NDArray[np.float32]
Hours = NDArray[np.int64]
Flags = NDArray[np.bool_]
# given a function that says which of many hours to read: (hour, targets [T, N]) in time order
Stream = Callable[[Callable[[Hours], Flags]], Iterator[tuple[int, Fields]]]

NAMES = ("climatology", "damped_anomaly")
HOURS_AT_ONCE = 6  # of the day, held in memory for a month of all training years
# every 7th hour has its errors counted: all hours of the day, in a seventh of the time
EVERY = 7
ERROR_BINS = Bins(96, fine=10.0, reach=6.4)  # of errors in standard deviations of the target


@dataclass(frozen=True)
class SimpleOdds:
    """What was fitted, in physical units.

    Attributes:
        levels: Q of them.
        climate: float32, shape [12, 24, Q, T, N] over the N cells of the domain.
        errors: of damped anomaly persistence, float32, shape [Q, K, T, N].
    """

    levels: tuple[float, ...]
    climate: Fields
    errors: Fields

    def quantiles(
        self, simple: dict[str, Values], hour: int, lead_times: Sequence[int]
    ) -> dict[str, Fields]:
        """Quantiles [Q, K, T, N] of each of NAMES at an input time, NaN where one is missing.

        Args:
            simple: what `Baselines.forecasts` gives for that time.
        """
        times = [hour + lead for lead in lead_times]
        climate = np.stack([self.climate[month_of(time), time % 24] for time in times], axis=1)
        damped = simple["damped_anomaly"].astype(np.float32) + self.errors
        return {"climatology": climate, "damped_anomaly": damped}


def fit(
    stream: Stream,
    simple: Baselines,
    std: Values,
    lead_times: Sequence[int],
    levels: tuple[float, ...],
) -> SimpleOdds:
    """Both distributions, of the training hours; all ranks call, each gets the whole.

    A rank works on whole calendar months, so that the result does not depend on how many there
    are. Memory per process: `climate` and `errors` (1.9 GB on the native grid of 339 x 432 with
    5 levels and 52,000 cells of domain), besides a quarter of a month's hours of all training years
    (1 GB there with four years) or the counts of errors (0.5 GB).

    Args:
        std: training standard deviation of each target [T].
    """
    own = range(distributed.rank(), 12, distributed.world_size())
    climate = _climate(stream, own, simple, levels)
    errors = _errors(stream, own, simple, std, lead_times, levels)
    return SimpleOdds(levels, climate, errors)


def _climate(stream: Stream, own: range, simple: Baselines, levels: tuple[float, ...]) -> Fields:
    climate = np.zeros((12, 24, len(levels), *simple.climate.shape[2:]), np.float32)
    for month in own:
        climate[month] = np.nan
        for first in range(0, 24, HOURS_AT_ONCE):
            for hour, values in _by_hour_of_day(stream, month, first).items():
                climate[month, hour] = sample_quantiles(np.stack(values), levels)
        _fill(climate[month], simple.climate[month])
    distributed.sum_(torch.from_numpy(climate))  # adding zeros changes nothing
    return climate


def _by_hour_of_day(stream: Stream, month: int, first: int) -> dict[int, list[Fields]]:
    """Targets [T, N] of all hours of a month, of a few hours of the day."""

    def wanted(hours: Hours) -> Flags:
        of_day = hours % 24 - first
        return np.asarray((months_at(hours) == month) & (of_day >= 0) & (of_day < HOURS_AT_ONCE))

    found: dict[int, list[Fields]] = {hour: [] for hour in range(first, first + HOURS_AT_ONCE)}
    for time, values in stream(wanted):
        found[time % 24].append(values)
    return {hour: values for hour, values in found.items() if values}


def sample_quantiles(values: Fields, levels: Sequence[float]) -> Fields:
    """Quantiles [Q, ...] of samples [n, ...], NaN where all are missing.

    The i-th of n sorted values stands for the level i / (n + 1), so that a further value of the
    same kind lies below a quantile as often as its level says, however few there are.
    """
    ordered = np.sort(values, axis=0)  # NaN last
    number = np.isfinite(values).sum(0)
    found = []
    for level in levels:
        place = np.clip(level * (number + 1) - 1, 0, np.maximum(number - 1, 0))
        low = place.astype(np.int64)
        high = np.minimum(low + 1, np.maximum(number - 1, 0))
        below, above = (np.take_along_axis(ordered, at[None], 0)[0] for at in (low, high))
        found.append(below + ((place - low) * (above - below)).astype(np.float32))
    return np.stack(found)


def _fill(quantiles: Fields, climate: Fields) -> None:
    """Give cells without a value at an hour of the day the mean spread of the other cells about
    their climatology at that hour, else of all hours, around their own; in place.

    Args:
        quantiles: of one month, shape [24, Q, T, N].
        climate: means of that month, shape [24, T, N].
    """
    gaps = np.isnan(quantiles)
    if not gaps.any():
        return
    spread = np.where(gaps, 0.0, quantiles - climate[:, None])
    number = (~gaps).sum(3)  # [24, Q, T]
    total = spread.sum(3)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(number > 0, total / number, (total.sum(0) / number.sum(0))[None])
    filled = climate[:, None] + mean[..., None]
    quantiles[gaps] = filled[gaps]


def _errors(
    stream: Stream,
    own: range,
    simple: Baselines,
    std: Values,
    lead_times: Sequence[int],
    levels: tuple[float, ...],
) -> Fields:
    """Quantiles of the errors of damped anomaly persistence, [Q, K, T, N]."""
    counts = np.zeros((len(lead_times), *simple.climate.shape[2:], ERROR_BINS.number), np.int32)
    scale = np.where(std > 0, std, 1.0)[:, None]

    def wanted(hours: Hours) -> Flags:
        """Every 7th hour of the own months, and those from which it is forecast."""
        later = hours[:, None] + np.array([0, *lead_times])
        return np.asarray((np.isin(months_at(later), own) & (later % EVERY == 0)).any(1))

    recent: dict[int, Fields] = {}
    for hour, values in stream(wanted):
        if hour % EVERY == 0 and month_of(hour) in own:
            usual = simple.climate_at(hour)
            for row, lead in enumerate(lead_times):
                if hour - lead in recent:
                    anomaly = recent[hour - lead] - simple.climate_at(hour - lead)
                    _count(
                        counts[row], (values - usual - simple.rho[row][:, None] * anomaly) / scale
                    )
        recent[hour] = values
        for old in [time for time in recent if time <= hour - max(lead_times)]:
            del recent[old]
    distributed.sum_(torch.from_numpy(counts))
    found = [_of_counts(part, levels) * scale for part in counts]
    return np.stack(found, axis=1).astype(np.float32)


def _count(counts: NDArray[np.int32], errors: Values) -> None:
    """Add errors [T, N] in standard deviations, NaN where missing, to counts [T, N, BINS]."""
    known = np.isfinite(errors)
    target, cell = np.nonzero(known)
    bins = ERROR_BINS.of(torch.from_numpy(errors[known])).numpy()
    counts[target, cell, bins] += 1  # no place occurs twice


def _of_counts(counts: NDArray[np.int32], levels: Sequence[float]) -> Values:
    """Quantiles [Q, T, N] of counted errors [T, N, BINS]; of all cells together where one has
    none."""
    nothing = ~counts.any(2, keepdims=True)
    counts = np.where(nothing, counts.sum(1, keepdims=True), counts)
    return np.stack([ERROR_BINS.quantile(counts, level) for level in levels])
