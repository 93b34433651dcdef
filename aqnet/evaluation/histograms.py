"""What pictures need of every sample, counted while scoring: densities and domain means."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from aqnet import distributed
from aqnet.config import Config
from aqnet.evaluation import metrics

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]

BINS_PER_DECADE, DECADES_BELOW, DECADES_ABOVE = 20, 2, 1  # of the training mean
BINS = BINS_PER_DECADE * (DECADES_BELOW + DECADES_ABOVE)
_SERIES = [metrics.SUMS.index(name) for name in ("w", "x", "y", "ee")]


class Records:
    """Counts of every rank and, on rank 0, the means over the domain of every input time.

    Attributes:
        pairs: pairs by the bins of forecast and truth, int64, shape [K, T, BINS, BINS].
        exceeded: those whose truth exceeds the event threshold, by the bin of the forecast,
            int64, shape [K, T, BINS].
        series: by input time: sums of weight, forecast minus training mean, truth minus it, and
            squared error, of each forecast over the domain, shape [F, K, T, 4].
    """

    def __init__(self, config: Config, mean: Values, thresholds: Values) -> None:
        """`mean` [T] of training; `thresholds` of events [T], NaN where there is none."""
        self.mean, self._thresholds = mean, thresholds
        self._unit = np.where(mean > 0, mean, 1.0)[:, None]
        shape = len(config.data.lead_times), len(config.data.targets), BINS
        self.pairs = np.zeros((*shape, BINS), dtype=np.int64)
        self.exceeded = np.zeros(shape, dtype=np.int64)
        self.series: dict[int, Values] = {}

    def edges(self) -> Values:
        """Bin edges in physical units [T, BINS + 1]; the outer bins are open."""
        powers = np.arange(BINS + 1) / BINS_PER_DECADE - DECADES_BELOW
        edges: Values = self._unit * 10.0**powers
        return edges

    def count(self, forecast: Values, truth: Values, valid: Flags) -> None:
        """Count the valid pairs of an item, each array of shape [K, T, N]."""
        groups = np.arange(self.exceeded[..., 0].size).reshape(*self.exceeded.shape[:2], 1)
        at = (groups * BINS + self._bins(forecast, valid))[valid]
        to = self._bins(truth, valid)[valid]
        self.pairs += _counted(at * BINS + to, self.pairs.shape)
        above = (truth >= self._thresholds[:, None])[valid]
        self.exceeded += _counted(at[above], self.exceeded.shape)

    def keep(self, time: int, sums: Values) -> None:
        """Keep an item's sums over the domain; `sums` [F, K, T, R, S, M] as `metrics.sums_of`."""
        self.series[time] = sums[:, :, :, 0, 0, _SERIES]

    def gather(self) -> None:
        """Add up the counts of all ranks, which all call it once, at the end."""
        for counts in (self.pairs, self.exceeded):
            distributed.sum_(torch.from_numpy(counts))

    def typical_time(self) -> int:
        """The input time of median error of the first forecast, the mean over targets and leads.

        Each target's squared error counts relative to its mean over all times.
        """
        times = np.array(sorted(self.series))
        rows = np.stack([self.series[time][0] for time in times])
        weight, _, _, error = np.moveaxis(rows, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            relative = (error / weight) / (error.sum((0, 1)) / weight.sum((0, 1)))
        known = np.isfinite(relative)
        score = np.where(known, relative, 0.0).sum((1, 2)) / np.maximum(known.sum((1, 2)), 1)
        return int(times[np.argsort(score, kind="stable")[len(times) // 2]])

    def errors_of(self, lead: int, target: int) -> tuple[NDArray[np.int64], Values, Values]:
        """Input times, with the sums of weights and of squared errors of the first forecast."""
        times = np.array(sorted(self.series))
        rows = np.stack([self.series[time][0, lead, target] for time in times])
        return times, rows[:, 0], rows[:, 3]

    def worst_time(self, target: int) -> int:
        """The input time of largest mean squared error of the first forecast of a target, over all
        lead times; times with less than half of the most pairs do not count."""
        times = np.array(sorted(self.series))
        rows = np.stack([self.series[time][0, :, target] for time in times])
        weight, _, _, error = np.moveaxis(rows.sum(axis=1), -1, 0)
        enough = weight >= max(weight.max() / 2, 1e-9)
        return int(times[np.where(enough, error / np.maximum(weight, 1e-9), -1.0).argmax()])

    def _bins(self, values: Values, valid: Flags) -> NDArray[np.int64]:
        scaled = np.where(valid, values / self._unit, 1.0)
        lowest = 10.0**-DECADES_BELOW
        powers = np.log10(np.maximum(scaled, lowest)) + DECADES_BELOW
        return np.minimum((powers * BINS_PER_DECADE).astype(np.int64), BINS - 1)


def _counted(places: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    return np.bincount(places, minlength=int(np.prod(shape))).reshape(shape)
