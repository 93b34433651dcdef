"""Scores of forecasts that are distributions, each given by its quantiles (DESIGN.md 5).

Between two quantiles the probability grows linearly; beyond the outermost the tails fall off
exponentially, at the rate between the outermost two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aqnet.evaluation.metrics import EVENT_THRESHOLDS

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]

RELIABILITY_BINS = 10  # of forecast probabilities, equal
_PLAIN = ("weight", "crps", "event_weight", "brier")


def level_weights(levels: Sequence[float]) -> Values:
    """Share of the levels from 0 to 1 that each of `levels` is nearest to, [Q]; they add to 1."""
    middle = (np.asarray(levels)[1:] + np.asarray(levels)[:-1]) / 2
    shares: Values = np.diff(np.concatenate([[0.0], middle, [1.0]]))
    return shares


def crps(quantiles: Values, truth: Values, levels: Sequence[float]) -> Values:
    """Continuous ranked probability score, in the truth's unit; 0 is perfect.

    It is twice the integral of the pinball loss over all levels, here a sum over those given: least
    on average for the true quantiles, the absolute error where all quantiles are one number.

    Args:
        quantiles: shape [Q, ...]; truth: shape [...].
    """
    total = np.zeros(truth.shape)
    for level, weight, quantile in zip(levels, level_weights(levels), quantiles, strict=True):
        error = truth - quantile
        total += 2.0 * weight * np.maximum(level * error, (level - 1.0) * error)
    return total


def exceedance(quantiles: Values, levels: Sequence[float], threshold: float) -> Values:
    """Probability that the truth is at least `threshold`, shape [...] of quantiles [Q, ...]."""
    below = np.zeros(quantiles.shape[1:])
    for row in range(len(levels) - 1):
        low, high = quantiles[row], quantiles[row + 1]
        inside = (low < threshold) & (threshold <= high)
        part = (threshold - low) / np.where(inside, high - low, 1.0)
        below = np.where(inside, levels[row] + part * (levels[row + 1] - levels[row]), below)
    tail = _tail(levels[0], levels[1], quantiles[1] - quantiles[0], quantiles[0] - threshold)
    below = np.where(threshold <= quantiles[0], tail, below)
    first, last = 1.0 - levels[-1], 1.0 - levels[-2]
    tail = _tail(first, last, quantiles[-1] - quantiles[-2], threshold - quantiles[-1])
    probability: Values = np.where(threshold > quantiles[-1], tail, 1.0 - below)
    return probability


def exceedances(quantiles: Values, levels: Sequence[float], targets: Sequence[str]) -> Values:
    """Probability that each target reaches its event threshold, NaN where it has none.

    Args:
        quantiles: physical, shape [Q, K, T, ...].
    Returns:
        Shape [K, T, ...].
    """
    found = np.full(quantiles.shape[1:], np.nan)
    for row, name in enumerate(targets):
        if name in EVENT_THRESHOLDS:
            found[:, row] = exceedance(quantiles[:, :, row], levels, EVENT_THRESHOLDS[name])
    return np.where(np.isfinite(quantiles[0]), found, np.nan)


def _tail(outer: float, inner: float, step: Values, beyond: Values) -> Values:
    """Probability further out than `beyond` the outermost quantile, whose tail has `outer`, while
    the tail from the next quantile, a `step` further in, has `inner`."""
    rate = np.log(inner / outer) / np.where(step > 0, step, 1.0)
    return np.where(step > 0, outer * np.exp(-rate * np.maximum(beyond, 0.0)), 0.0)


def intervals(levels: Sequence[float]) -> dict[str, tuple[int, int]]:
    """Rows of the two quantiles of each central interval, widest first, by its promise in %."""
    found = {}
    for low, level in enumerate(levels):
        for high in range(low + 1, len(levels)):
            if abs(level + levels[high] - 1.0) < 1e-9:
                found[f"{100 * round(levels[high] - level, 9):g}"] = (low, high)
    return found


def sums(levels: Sequence[float]) -> tuple[str, ...]:
    """Names of what `sums_of` adds up, M of them, in order."""
    central = [f"{part}_{name}" for name in intervals(levels) for part in ("inside", "width")]
    below = [f"below_{level:g}" for level in levels]
    bins = [
        f"{part}_{number}"
        for part in ("forecasts", "probability", "events")
        for number in range(RELIABILITY_BINS)
    ]
    return (*_PLAIN, *central, *below, *bins)


def sums_of(
    quantiles: NDArray[np.floating],
    levels: Sequence[float],
    valid: Flags,
    truth: Values,
    thresholds: Values,
    area: Values,
    subsets: Flags,
) -> Values:
    """What one input time adds to every sum of one forecast.

    Args:
        quantiles: physical, shape [Q, K, T, N]; truth: [K, T, N]; valid: which pairs count.
        thresholds: of events [T], NaN where there is none.
        area: weight of each cell in each region, 0 outside, shape [R, N].
        subsets: cells of each subset, shape [S, K, N].
    Returns:
        Shape [K, T, R, S, M], float64.
    """
    leads, targets, _ = truth.shape
    totals = np.empty((leads, targets, len(area) * len(subsets), len(sums(levels))))
    for lead, target in np.ndindex(leads, targets):
        cells = (area[:, None] * subsets[:, lead]).reshape(-1, area.shape[1])  # [R S, N]
        # one lead time and target at a time, so that memory stays small on large grids
        found = np.where(valid[lead, target], quantiles[:, lead, target], 0.0)
        known = np.where(valid[lead, target], truth[lead, target], 0.0)
        threshold = float(thresholds[target])
        terms = terms_of(found.astype(np.float64), levels, valid[lead, target], known, threshold)
        totals[lead, target] = cells @ terms.T
    return totals.reshape(leads, targets, len(area), len(subsets), -1)


def terms_of(
    quantiles: Values, levels: Sequence[float], valid: Flags, truth: Values, threshold: float
) -> Values:
    """What each cell [N] adds to each sum, shape [M, N]; 0 where not `valid`.

    Args:
        quantiles: shape [Q, N]; truth: [N], both finite; threshold: NaN for no event.
    """
    event = valid & (not np.isnan(threshold))
    probability = exceedance(quantiles, levels, threshold) if event.any() else np.zeros(len(truth))
    seen = (truth >= threshold) & event
    rows: list[NDArray[np.generic]] = [valid, crps(quantiles, truth, levels)]
    rows += [event, np.square(probability - seen)]
    for low, high in intervals(levels).values():
        rows += [
            (quantiles[low] <= truth) & (truth <= quantiles[high]),
            quantiles[high] - quantiles[low],
        ]
    rows += [truth <= quantile for quantile in quantiles]
    place = np.minimum((probability * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    here = event & (place == np.arange(RELIABILITY_BINS)[:, None])
    rows += [*here, *(here * probability), *(here & seen)]
    terms: Values = np.stack(rows).astype(np.float64)
    terms[:2, ~valid] = 0.0
    terms[:, ~valid] = 0.0
    terms[_PLAIN.index("brier"), ~event] = 0.0
    return terms


def scores(added: Values, levels: Sequence[float]) -> dict[str, float | None]:
    """All scores of one row of sums [M]; None where nothing was counted.

    crps and width_P in the target's unit; coverage_P: share of the truth inside the central P %
    interval; brier: mean squared error of the probability of exceeding the event threshold.
    """
    s = dict(zip(sums(levels), added.tolist(), strict=True))
    found = {"crps": _ratio(s["crps"], s["weight"])}
    for name in intervals(levels):
        found[f"coverage_{name}"] = _ratio(s[f"inside_{name}"], s["weight"])
        found[f"width_{name}"] = _ratio(s[f"width_{name}"], s["weight"])
    found["brier"] = _ratio(s["brier"], s["event_weight"])
    return found


def skill(added: Values, reference: Values, score: str, levels: Sequence[float]) -> float | None:
    """1 - score / score of the reference over the same pairs, of `crps` or `brier`; None for the
    Brier score where nothing reached the threshold: there is no event to have forecast."""
    if score == "brier" and not (reliability(added, levels)[2] > 0.0).any():
        return None
    at = sums(levels).index(score)
    ratio = _ratio(float(added[at]), float(reference[at]))
    return None if ratio is None else 1.0 - ratio


def reliability(added: Values, levels: Sequence[float]) -> Values:
    """Weight, mean forecast probability and observed frequency of each bin, from sums [M].

    Returns:
        Shape [3, RELIABILITY_BINS]; NaN where nothing was forecast.
    """
    first = len(added) - 3 * RELIABILITY_BINS
    weight, probability, events = added[first:].reshape(3, RELIABILITY_BINS)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([weight, probability / weight, events / weight])


def levels_held(added: Values, levels: Sequence[float]) -> Values:
    """Share of the truth at or below each quantile [Q], to be compared with its level."""
    first = len(added) - 3 * RELIABILITY_BINS - len(levels)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares: Values = added[first : first + len(levels)] / added[0]
    return shares


def _ratio(numerator: float, denominator: float) -> float | None:
    return float(numerator / denominator) if denominator > 0 else None
