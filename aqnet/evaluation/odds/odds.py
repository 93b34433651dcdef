"""The model's distributions scored beside those of the simple forecasts, over the same pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aqnet.evaluation import metrics
from aqnet.evaluation.baselines import distributions
from aqnet.evaluation.baselines.distributions import Distributions
from aqnet.evaluation.odds import probabilities
from aqnet.physical import possible

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]

FORECASTS = ("aqnet", *distributions.NAMES)


class OddsScores:
    """Sums over samples on rank 0, as of `Scorer`.

    Attributes:
        totals: shape [F, K, T, R, S, M] over FORECASTS and the sums of `probabilities`.
        days: by day since 1970, those of all pairs without the bins of reliability,
            [F, K, T, R, M'].
    """

    def __init__(
        self,
        simple: Distributions,
        targets: Sequence[str],
        thresholds: Values,
        area: Values,
        subsets: int,
    ) -> None:
        """`thresholds` of events [T], NaN for none; `area` of cells in each region, [R, N]."""
        self.simple, self.levels, self._targets = simple, simple.levels, targets
        self._thresholds, self._area = thresholds, area
        self._sums = probabilities.sums(self.levels)
        self._kept = len(self._sums) - 3 * probabilities.RELIABILITY_BINS
        shape = len(FORECASTS), *simple.errors.shape[1:3], len(area), subsets, len(self._sums)
        self.totals = np.zeros(shape)
        self.days: dict[int, Values] = {}

    def of(
        self,
        time: int,
        quantiles: NDArray[np.floating],
        simple: dict[str, Values],
        pairs: Flags,
        truth: Values,
        subsets: Flags,
    ) -> Values:
        """What an input time adds, shape [F, K, T, R, S', M].

        Args:
            quantiles: the model's, physical, shape [Q, K, T, N]; simple: the simple forecasts.
            pairs: which count, of truth [K, T, N]; subsets: S' of them, shape [S', K, N].
        """
        found: dict[str, NDArray[Any]] = {"aqnet": quantiles}
        for name, values in self.simple.quantiles(time, simple).items():
            found[name] = possible(values, self._targets)
        fixed = self.levels, pairs, truth, self._thresholds, self._area, subsets
        return np.stack([probabilities.sums_of(found[name], *fixed) for name in FORECASTS])

    def add(self, time: int, sums: Values, places: Sequence[int], seasons: Sequence[int]) -> None:
        """Add what `of` gave, in time order; places as in `metrics.add_up`."""
        metrics.add_up(self.totals, sums, places, seasons)
        day = sums[..., 0, : self._kept]
        self.days[time // 24] = self.days.get(time // 24, 0.0) + day

    def crps_by_day(self, days: Sequence[int]) -> Values:
        """Sums of the model's CRPS, shape [D, K, T, R]."""
        none = np.zeros((*self.totals.shape[:4], self._kept))
        at = self._sums.index("crps")
        return np.stack([self.days.get(int(day), none)[0, ..., at] for day in days])

    def columns(self, forecast: str, at: tuple[int, ...]) -> dict[str, float | None]:
        """Scores with their intervals for a row of metrics.csv; None where there are none.

        Args:
            at: lead time, target, region and subset.
        """
        names = self._columns()
        if forecast not in FORECASTS or at[-1] >= self.totals.shape[4]:
            return dict.fromkeys(names)
        number = FORECASTS.index(forecast)
        lead, target, region, subset = at
        group = self.totals[:, lead, target, region, subset]
        found: dict[str, float | None] = dict(probabilities.scores(group[number], self.levels))
        for score, reference in _skills():
            row = group[number], group[FORECASTS.index(reference)]
            found[f"{score}_skill_{reference}"] = probabilities.skill(*row, score, self.levels)
        if subset == 0:
            for name, limits in self._intervals(number, lead, target, region).items():
                if found[name] is not None:
                    found[f"{name}_low"], found[f"{name}_high"] = limits
        return {name: found.get(name) for name in names}

    def reliability(self, at: tuple[int, ...]) -> list[dict[str, Any]]:
        """Rows of reliability.csv: what was promised and what came of it.

        `kind` is `event` (of the forecasts of a bin, the mean probability that the threshold is
        exceeded and how often it was) or `quantile` (its level and the share of truth below it).
        """
        rows = []
        for number, name in enumerate(FORECASTS):
            added = self.totals[(number, *at)]
            weight, promised, came = probabilities.reliability(added, self.levels)
            share = weight / max(weight.sum(), 1e-300)
            bins = zip(share, promised, came, strict=True)
            rows += [("event", name, *row) for row in bins if row[0] > 0]
            if added[0] > 0:
                held = probabilities.levels_held(added, self.levels)
                pairs = zip(self.levels, held, strict=True)
                rows += [("quantile", name, 1.0, level, share) for level, share in pairs]
        keys = "kind", "forecast", "share_of_forecasts", "promised", "observed"
        return [dict(zip(keys, (*row[:2], *map(float, row[2:])), strict=True)) for row in rows]

    def _columns(self) -> list[str]:
        central = probabilities.intervals(self.levels)
        scores = ["crps", *(f"crps_skill_{name}" for name in distributions.NAMES)]
        scores += [f"coverage_{name}" for name in central]
        scores += ["brier", "brier_skill_climatology"]
        names = [f"{score}{end}" for score in scores for end in ("", "_low", "_high")]
        return [*names, *(f"width_{name}" for name in central)]

    def _intervals(
        self, number: int, lead: int, target: int, region: int
    ) -> dict[str, tuple[float | None, float | None]]:
        """Limits of the scores over all pairs, by bootstrap of blocks of days."""
        whole = range(min(self.days), max(self.days) + 1)
        none = np.zeros((*self.totals.shape[:4], self._kept))
        days = np.stack([self.days.get(day, none)[:, lead, target, region] for day in whole])
        named = {name: days[..., row] for row, name in enumerate(self._sums[: self._kept])}
        weights = {"crps": "weight", "brier": "event_weight"}
        found = {}
        for score, weight in weights.items():
            found[score] = _limits(named[score][:, number], named[weight][:, number])
        for name in probabilities.intervals(self.levels):
            inside = named[f"inside_{name}"][:, number], named["weight"][:, number]
            found[f"coverage_{name}"] = _limits(*inside)
        for score, reference in _skills():
            ours, theirs = (named[score][:, row] for row in (number, FORECASTS.index(reference)))
            low, high = _limits(ours, theirs)
            skill = None if high is None else 1.0 - high, None if low is None else 1.0 - low
            found[f"{score}_skill_{reference}"] = skill
        return found


def _skills() -> list[tuple[str, str]]:
    """Scores and the forecasts that they are compared with."""
    return [*(("crps", name) for name in distributions.NAMES), ("brier", "climatology")]


def _limits(numerator: Values, denominator: Values) -> tuple[float | None, float | None]:
    limits = metrics.intervals(np.stack([numerator, denominator], axis=1))
    low, high = (float(value) if np.isfinite(value) else None for value in limits)
    return low, high
