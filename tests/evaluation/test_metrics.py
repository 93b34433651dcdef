"""Scores against scikit-learn, scipy and plain loops, on random masked data."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from aqnet.evaluation import metrics

K, T, N = 2, 3, 40
MEAN = np.array([40.0, 60.0, 10.0])
THRESHOLDS = np.array([75.0, np.nan, 15.0])


@pytest.fixture
def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    truth = rng.gamma(2.0, MEAN[:, None] / 2, (K, T, N))
    forecast = truth * rng.uniform(0.3, 2.2, truth.shape) + 1.0
    climate = np.broadcast_to(MEAN[:, None], truth.shape) + rng.normal(0, 3, truth.shape)
    valid = rng.random(truth.shape) < 0.7
    truth[~valid] = np.nan  # invalid pairs must not reach any sum
    area = np.stack([np.ones(N), (np.arange(N) < 15) * 1.0])
    subsets = np.stack([np.ones((K, N), bool), rng.random((K, N)) < 0.5])
    return {
        "forecast": forecast,
        "truth": truth,
        "valid": valid,
        "climate": climate,
        "area": area,
        "subsets": subsets,
    }


def sums(data: dict[str, np.ndarray]) -> np.ndarray:
    return metrics.sums_of(**data, mean=MEAN, thresholds=THRESHOLDS)


def pairs(data: dict[str, np.ndarray], k: int, t: int, region: int, subset: int):
    chosen = data["valid"][k, t] & (data["area"][region] > 0) & data["subsets"][subset, k]
    return tuple(data[name][k, t, chosen] for name in ("forecast", "truth", "climate"))


def test_scores_agree_with_libraries_and_plain_formulas(data: dict[str, np.ndarray]):
    totals = sums(data)
    assert totals.shape == (K, T, 2, 2, len(metrics.SUMS))
    for at in np.ndindex(totals.shape[:-1]):
        f, o, c = pairs(data, *at)
        mean = MEAN[at[1]]
        found = metrics.scores(totals[at], mean)
        expected = {
            "n": len(f),
            "rmse": root_mean_squared_error(o, f),
            "mae": mean_absolute_error(o, f),
            "bias": np.mean(f - o),
            "r": stats.pearsonr(f, o).statistic,
            "acc": np.sum((f - c) * (o - c)) / np.sqrt(np.sum((f - c) ** 2) * np.sum((o - c) ** 2)),
            "std_ratio": np.std(f) / np.std(o),
            "nmb": np.sum(f - o) / np.sum(o),
            "nme": np.sum(np.abs(f - o)) / np.sum(o),
            "fac2": np.mean((f / o >= 0.5) & (f / o <= 2.0)),
            "ioa": 1 - np.sum((f - o) ** 2) / np.sum((np.abs(f - mean) + np.abs(o - mean)) ** 2),
        }
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-9)


def test_events_agree_with_a_loop(data: dict[str, np.ndarray]):
    f, o, _ = pairs(data, 1, 0, 0, 0)
    hits = sum(a >= 75 and b >= 75 for a, b in zip(f, o, strict=True))
    false_alarms = sum(a >= 75 > b for a, b in zip(f, o, strict=True))
    misses = sum(a < 75 <= b for a, b in zip(f, o, strict=True))
    found = metrics.scores(sums(data)[1, 0, 0, 0], 40.0)
    assert (found["hits"], found["false_alarms"], found["misses"]) == (hits, false_alarms, misses)
    assert found["csi"] == pytest.approx(hits / (hits + misses + false_alarms))
    assert found["far"] == pytest.approx(false_alarms / (hits + false_alarms))


def test_without_events_or_pairs_scores_are_none(data: dict[str, np.ndarray]):
    found = metrics.scores(sums(data)[0, 1, 0, 0], 60.0)  # no threshold: no events
    assert (found["far"], found["hit_rate"], found["csi"]) == (None, None, None)
    nothing = metrics.scores(np.zeros(len(metrics.SUMS)), 60.0)
    assert nothing["n"] == 0
    assert nothing["rmse"] is None and nothing["r"] is None


def test_area_weights_count_in_means_but_not_in_numbers(data: dict[str, np.ndarray]):
    weights = np.random.default_rng(1).uniform(0.2, 1.0, N)
    weighted = metrics.scores(sums({**data, "area": weights[None]})[0, 0, 0, 0], 40.0)
    valid = data["valid"][0, 0]
    f, o = data["forecast"][0, 0, valid], data["truth"][0, 0, valid]
    assert weighted["n"] == valid.sum()
    assert weighted["rmse"] == pytest.approx(
        math.sqrt(np.average((f - o) ** 2, weights=weights[valid]))
    )


def test_skill_is_relative_to_the_reference(data: dict[str, np.ndarray]):
    ours = sums(data)[0, 0, 0, 0]
    perfect = sums({**data, "forecast": np.nan_to_num(data["truth"])})[0, 0, 0, 0]
    assert metrics.skill(perfect, ours) == pytest.approx(1.0)
    assert metrics.skill(ours, ours) == pytest.approx(0.0)
    assert metrics.skill(ours, perfect) is None


def test_intervals_are_wider_where_days_are_alike():
    rng = np.random.default_rng(0)
    blocks = rng.gamma(4.0, 1.0, 36)
    alike = np.repeat(blocks, 10)
    apart = rng.permutation(alike)

    def width(errors: np.ndarray) -> float:
        low, high = metrics.intervals(np.stack([errors, np.ones_like(errors)], axis=1))
        assert low < errors.mean() < high
        return float(high - low)

    assert width(alike) > 2 * width(apart)


def test_few_days_give_no_interval_instead_of_a_narrow_one():
    days = np.ones((40, 2)) + np.random.default_rng(0).random((40, 2))
    assert np.isnan(metrics.intervals(days)).all()
    assert np.isfinite(metrics.intervals(np.concatenate([days, days[:1]]))).all()


def test_blocks_without_pairs_between_two_periods_do_not_count():
    days = np.random.default_rng(0).uniform(1.0, 2.0, (400, 2))
    apart = np.where((np.arange(400) // 10 < 3) | (np.arange(400) // 10 > 37), days.T, 0.0).T
    low, high = metrics.intervals(apart)
    assert low < apart[:, 0].sum() / apart[:, 1].sum() < high
    four = days[:50].copy()
    four[10:20] = 0.0
    assert np.isnan(metrics.intervals(four)).all()


@pytest.mark.parametrize("n", [1, 6])
def test_constants_have_no_correlation_however_sums_are_rounded(n: int):
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth, shape = rng.gamma(2.0, 20.0, (1, 1, n)), (1, 1, n)
        found = metrics.scores(
            metrics.sums_of(
                np.full(shape, rng.gamma(2.0, 20.0)),
                np.ones(shape, bool),
                truth,
                truth,
                MEAN[:1],
                THRESHOLDS[:1],
                rng.uniform(0.2, 1.0, (1, n)),
                np.ones(shape, bool),
            )[0, 0, 0, 0],
            MEAN[0],
        )
        assert found["r"] is None
        assert found["std_ratio"] == (None if n == 1 else 0.0)
