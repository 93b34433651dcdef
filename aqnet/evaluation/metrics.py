"""Scores from sums: what one forecast adds, and what the sums say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]

# 24-hour limits of GB 3095-2012 (O3: 8 hours) in ug m-3, applied to hourly values
EVENT_THRESHOLDS = {
    "pm25": 75.0,
    "pm10": 150.0,
    "so2": 150.0,
    "no2": 80.0,
    "co": 4000.0,
    "o3": 160.0,
}
SUDDEN_LEVEL, SUDDEN_CHANGE = 75.0, 20.0  # ug m-3 of PM2.5
BLOCK_DAYS, MIN_BLOCKS, RESAMPLES = 10, 5, 1000  # of the bootstrap
# x, y: forecast and truth minus the training mean; a, b: minus the climatology; the last are counts
WEIGHTED = ("w", "x", "y", "xx", "yy", "xy", "abs", "ee", "agree", "aa", "bb", "ab", "fac2")
COUNTED = ("n", "hits", "false_alarms", "misses")
SUMS = (*WEIGHTED, *COUNTED)


def sums_of(
    forecast: Values,
    valid: Flags,
    truth: Values,
    climate: Values,
    mean: Values,
    thresholds: Values,
    area: Values,
    subsets: Flags,
) -> Values:
    """What one input time adds to every sum of one forecast.

    Args:
        forecast, truth, climate: physical, shape [K, T, N]; valid: which pairs count.
        mean: training mean [T]; thresholds: of events [T], NaN where there is none.
        area: weight of each cell in each region, 0 outside, shape [R, N].
        subsets: cells of each subset, shape [S, K, N].
    Returns:
        shape [K, T, R, S, len(SUMS)].
    """
    leads, targets, _ = forecast.shape
    totals = np.empty((leads, targets, len(area) * len(subsets), len(SUMS)))
    for lead, target in np.ndindex(leads, targets):
        at = lead, target
        numbers = float(mean[target]), float(thresholds[target])
        terms = terms_of(forecast[at], valid[at], truth[at], climate[at], *numbers)
        cells = (area[:, None] * subsets[:, lead]).reshape(-1, area.shape[1])  # [R S, N]
        totals[at][:, : len(WEIGHTED)] = cells @ terms[: len(WEIGHTED)].T
        totals[at][:, len(WEIGHTED) :] = (cells > 0).astype(np.float64) @ terms[len(WEIGHTED) :].T
    return totals.reshape(leads, targets, len(area), len(subsets), -1)


def add_up(totals: Values, sums: Values, places: Sequence[int], seasons: Sequence[int]) -> None:
    """Add what an input time gave to totals, in place.

    Args:
        totals: shape [F, K, T, R, S, M].
        sums: of a few of the S subsets, all pairs first, shape [F, K, T, R, S', M].
        places: where in S those few are; seasons: where the one of each target time is, [K].
    """
    totals[..., places, :] += sums
    for row, season in enumerate(seasons):
        totals[:, row, :, :, season] += sums[:, row, :, :, 0]


def terms_of(
    forecast: Values, valid: Flags, truth: Values, climate: Values, mean: float, threshold: float
) -> Values:
    """What each cell [N] adds to each sum, shape [len(SUMS), N]; 0 where not valid."""
    terms = np.empty((len(SUMS), len(forecast)))
    f, o = np.where(valid, forecast, 0.0), np.where(valid, truth, 0.0)
    x, y = (np.where(valid, v - mean, 0.0) for v in (f, o))
    a, b = (np.where(valid, v - climate, 0.0) for v in (f, o))
    error = f - o
    event, seen = (valid & (v >= threshold) for v in (f, o))
    in_order = (
        valid,
        x,
        y,
        x * x,
        y * y,
        x * y,
        np.abs(error),
        error * error,
        np.square(np.abs(x) + np.abs(y)),
        a * a,
        b * b,
        a * b,
        valid & (f >= 0.5 * o) & (f <= 2.0 * o),
        valid,
        event & seen,
        event & ~seen,
        ~event & seen,
    )
    for row, term in enumerate(in_order):
        terms[row] = term
    return terms


def scores(sums: Values, mean: float) -> dict[str, float | int | None]:
    """All scores of one row of sums; None where a denominator is 0.

    rmse, mae, bias in the target's unit; r and acc (uncentred anomaly correlation) pooled over
    samples and cells; std_ratio of forecast to truth; nmb, nme: bias and mae over the mean truth;
    fac2: share within a factor of 2; ioa: index of agreement (Willmott 1981) about the training
    mean instead of the sample's; far, hit_rate, csi of events.
    """
    s: Mapping[str, float] = dict(zip(SUMS, sums.tolist(), strict=True))
    w = s["w"]
    truth = s["y"] + mean * w
    var_x = _variance(w, s["x"], s["xx"])
    var_y = _variance(w, s["y"], s["yy"])
    covariance = w * s["xy"] - s["x"] * s["y"]
    hits, false_alarms, misses = (int(s[name]) for name in COUNTED[1:])
    return {
        "n": int(s["n"]),
        "rmse": _root(_ratio(s["ee"], w)),
        "mae": _ratio(s["abs"], w),
        "bias": _ratio(s["x"] - s["y"], w),
        "r": _ratio(covariance, math.sqrt(var_x * var_y)),
        "acc": _ratio(s["ab"], math.sqrt(s["aa"] * s["bb"])),
        "std_ratio": _root(_ratio(var_x, var_y)),
        "nmb": _ratio(s["x"] - s["y"], truth),
        "nme": _ratio(s["abs"], truth),
        "fac2": _ratio(s["fac2"], w),
        "ioa": None if s["agree"] == 0 else 1.0 - s["ee"] / s["agree"],
        "hits": hits,
        "false_alarms": false_alarms,
        "misses": misses,
        "far": _ratio(false_alarms, hits + false_alarms),
        "hit_rate": _ratio(hits, hits + misses),
        "csi": _ratio(hits, hits + misses + false_alarms),
    }


def skill(sums: Values, reference: Values) -> float | None:
    """1 - MSE / MSE of the reference over the same pairs."""
    ratio = _ratio(sums[SUMS.index("ee")], reference[SUMS.index("ee")])
    return None if ratio is None else 1.0 - ratio


def blocks(days: Values) -> Values:
    """Sums per consecutive day [D, ...] added up over blocks of 10 days, [B, ...], without blocks
    of zeros: a split of separate periods has no pair between them."""
    summed: Values = np.add.reduceat(days, np.arange(0, len(days), BLOCK_DAYS), axis=0)
    return summed[summed.any(axis=tuple(range(1, summed.ndim)))]


def intervals(days: Values) -> Values:
    """95 % limits of quantities that are ratios of sums, by bootstrap of blocks of 10 days.

    Args:
        days: numerator and denominator per consecutive day, shape [D, 2, ...]. One-day blocks
            would give intervals a third too narrow.
    Returns:
        Low and high limit of sum(numerator) / sum(denominator), shape [2, ...]; NaN where a
        denominator may be 0, and everywhere where there are fewer than 5 blocks to draw from.
    """
    parts = blocks(days)
    if len(parts) < MIN_BLOCKS:
        return np.full((2, *days.shape[2:]), np.nan)
    totals = np.tensordot(_drawn(len(parts)), parts, axes=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = totals[:, 0] / totals[:, 1]
        low_high: Values = np.quantile(ratios, [0.025, 0.975], axis=0)
    return low_high


@cache
def _drawn(blocks: int) -> Values:
    """How often each block is drawn in each resample, [RESAMPLES, blocks]."""
    drawn = np.random.default_rng(0).integers(blocks, size=(RESAMPLES, blocks))
    return np.stack([np.bincount(row, minlength=blocks) for row in drawn]).astype(np.float64)


def _variance(weight: float, total: float, squares: float) -> float:
    """weight^2 times the variance, from sums; 0 where it is rounding alone, as of one pair."""
    variance = weight * squares - total**2
    return variance if variance > 1e-12 * weight * squares else 0.0


def _ratio(numerator: float, denominator: float) -> float | None:
    return float(numerator / denominator) if denominator > 0 else None


def _root(value: float | None) -> float | None:
    return None if value is None else math.sqrt(value)
