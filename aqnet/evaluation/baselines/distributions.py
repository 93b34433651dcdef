"""The simple forecasts that are distributions, each given by its quantiles.

The climatological distribution: quantiles of each cell's training values per month and hour of the
day (UTC). Damped anomaly persistence with the distribution that its errors had in training, per
cell, target and lead time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from aqnet import distributed
from aqnet.counted import Bins
from aqnet.evaluation.baselines.climatology import Stream, month_of, months_at
from aqnet.evaluation.baselines.simple import Baselines
from aqnet.evaluation.baselines.transport import Truth

Values = NDArray[np.float64]
Fields = NDArray[np.float32]
Hours = NDArray[np.int64]
Flags = NDArray[np.bool_]

NAMES = ("climatology", "damped_anomaly")
HOURS_AT_ONCE = 6  # of the day, held in memory for a month of all training years
ERROR_TIMES = 1024  # training times whose errors are counted
ERROR_BINS = Bins(96, fine=10.0, reach=6.4)  # of errors in standard deviations of the target


@dataclass(frozen=True)
class Distributions:
    """What was fitted, in physical units.

    Attributes:
        levels: Q of them.
        climate: float32, shape [12, 24, Q, T, N] over the N cells of the domain.
        errors: of damped anomaly persistence, float32, shape [Q, K, T, N].
    """

    lead_times: tuple[int, ...]
    levels: tuple[float, ...]
    climate: Fields
    errors: Fields

    def quantiles(self, time: int, simple: dict[str, Values]) -> dict[str, Fields]:
        """Quantiles [Q, K, T, N] of each of NAMES at an input time, NaN where one is missing.

        Args:
            simple: what `Baselines.forecasts` gives for that time.
        """
        later = [time + lead for lead in self.lead_times]
        climate = np.stack([self.climate[month_of(hour), hour % 24] for hour in later], axis=1)
        damped = simple["damped_anomaly"].astype(np.float32) + self.errors
        return {"climatology": climate, "damped_anomaly": damped}


def fit(
    stream: Stream,
    times: Hours,
    truth: Truth,
    simple: Baselines,
    std: Values,
    levels: tuple[float, ...],
) -> Distributions:
    """Both distributions, of the training hours; all ranks call, each gets the whole.

    A rank works on whole calendar months and counts its own times, so that the result does not
    depend on how many ranks there are. Memory per process, on a grid of 52,000 cells of domain
    (the native CAQRA grid) with 6 targets, 4 lead times and 5 levels: 1.8 GB for `climate`, and
    besides up to 1 GB for a quarter of a month's hours of four training years, then 0.5 GB for
    the counts of errors.

    Args:
        stream, truth: as in `baselines.fit`; times: input times whose errors are counted.
        std: training standard deviation of each target [T].
    """
    climate = _climate(stream, simple, levels)
    errors = _errors(times, truth, simple, std, levels)
    return Distributions(simple.lead_times, levels, climate, errors)


def _climate(stream: Stream, simple: Baselines, levels: tuple[float, ...]) -> Fields:
    means = simple.climatology.means
    climate = np.zeros((12, 24, len(levels), *means.shape[2:]), np.float32)
    for month in range(distributed.rank(), 12, distributed.world_size()):
        climate[month] = np.nan
        for first in range(0, 24, HOURS_AT_ONCE):
            for hour, values in _by_hour_of_day(stream, simple.mask, month, first).items():
                climate[month, hour] = sample_quantiles(np.stack(values), levels)
        _fill(climate[month], means[month])
    distributed.sum_(torch.from_numpy(climate))  # adding zeros changes nothing
    return climate


def _by_hour_of_day(stream: Stream, mask: Flags, month: int, first: int) -> dict[int, list[Fields]]:
    """Targets [T, N] of all hours of a month, of a few hours of the day."""

    def wanted(hours: Hours) -> Flags:
        of_day = hours % 24 - first
        return np.asarray((months_at(hours) == month) & (of_day >= 0) & (of_day < HOURS_AT_ONCE))

    found: dict[int, list[Fields]] = {hour: [] for hour in range(first, first + HOURS_AT_ONCE)}
    for time, values in stream(wanted):
        found[time % 24].append(values[:, mask])
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
    times: Hours, truth: Truth, simple: Baselines, std: Values, levels: tuple[float, ...]
) -> Fields:
    """Quantiles of the errors of damped anomaly persistence, [Q, K, T, N]."""
    climate, mask, lead_times = simple.climatology, simple.mask, simple.lead_times
    weights = simple.weights["damped_anomaly"]  # [K, T, 1]
    shape = len(lead_times), *climate.means.shape[2:], ERROR_BINS.number
    counts = np.zeros(shape, np.int32)
    scale = np.where(std > 0, std, 1.0)[:, None]
    for time in times[distributed.rank() :: distributed.world_size()].tolist():
        anomaly = truth(time)[:, mask] - climate.at(time)
        for row, lead in enumerate(lead_times):
            later = truth(time + lead)[:, mask] - climate.at(time + lead)
            _count(counts[row], (later - weights[row] * anomaly) / scale)
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
