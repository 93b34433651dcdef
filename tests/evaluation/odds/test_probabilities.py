"""Scores of distributions: closed forms, scoringrules, masks and sums against plain loops."""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import pytest

from aqnet.evaluation.odds import probabilities

FIVE = (0.05, 0.25, 0.5, 0.75, 0.95)
FINE = tuple((np.arange(400) + 0.5) / 400)
NORMAL = NormalDist()


def gaussian(levels: Sequence[float], mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Quantiles [Q, ...] of Gaussians."""
    return np.stack([mean + std * NORMAL.inv_cdf(level) for level in levels])


def test_crps_of_a_gaussian_is_the_closed_form():
    truth = np.array([-2.0, -0.3, 0.0, 1.0, 3.0])
    for mean, std in ((0.0, 1.0), (0.5, 2.0)):
        z = [(y - mean) / std for y in truth]
        exact = [
            std * (x * (2 * NORMAL.cdf(x) - 1) + 2 * NORMAL.pdf(x) - 1 / np.sqrt(np.pi)) for x in z
        ]
        quantiles = gaussian(FINE, np.full(5, mean), np.full(5, std))
        found = probabilities.crps(quantiles, truth, FINE)
        np.testing.assert_allclose(found, exact, rtol=2e-3)


def test_crps_of_a_uniform_distribution_is_the_closed_form():
    truth = np.array([0.0, 0.2, 0.5, 0.99])
    quantiles = np.broadcast_to(np.array(FINE)[:, None], (400, 4))
    exact = truth**3 / 3 + (1 - truth) ** 3 / 3
    np.testing.assert_allclose(probabilities.crps(quantiles, truth, FINE), exact, rtol=1e-4)


def test_crps_of_one_certain_value_is_the_absolute_error():
    quantiles = np.broadcast_to(np.array([3.0, 3.0]), (5, 2))
    found = probabilities.crps(quantiles, np.array([1.0, 7.0]), FIVE)
    np.testing.assert_allclose(found, [2.0, 4.0])


def test_crps_of_five_quantiles_is_least_for_the_true_ones():
    truth = np.random.default_rng(0).normal(size=200_000)
    zero, one = np.zeros(truth.shape), np.ones(truth.shape)

    def mean(shift: float, scale: float) -> float:
        quantiles = gaussian(FIVE, zero + shift, scale * one)
        return float(probabilities.crps(quantiles, truth, FIVE).mean())

    others = [mean(0.2, 1.0), mean(-0.2, 1.0), mean(0.0, 0.8), mean(0.0, 1.25)]
    assert mean(0.0, 1.0) < min(others)
    # the closed form is std / sqrt(pi); five levels leave out some of the tails
    assert mean(0.0, 1.0) == pytest.approx(1 / np.sqrt(np.pi), rel=0.05)


def test_level_weights_add_up_to_one():
    assert probabilities.level_weights(FIVE) == pytest.approx([0.15, 0.225, 0.25, 0.225, 0.15])


def test_exceedance_of_a_gaussian_is_the_closed_form():
    mean = np.array([0.0, 1.0, -1.0])
    quantiles = gaussian(FINE, mean, np.ones(3))
    for threshold in (-1.5, 0.0, 0.7, 2.0):
        exact = [1 - NORMAL.cdf(threshold - place) for place in mean]
        found = probabilities.exceedance(quantiles, FINE, threshold)
        np.testing.assert_allclose(found, exact, atol=1e-3)


def test_exceedance_is_linear_between_quantiles_and_exponential_beyond():
    quantiles = np.array([2.0, 3.0, 4.0, 6.0, 8.0])[:, None]
    levels = (0.1, 0.2, 0.5, 0.9, 0.95)

    def found(threshold: float) -> float:
        return float(probabilities.exceedance(quantiles, levels, threshold)[0])

    assert [found(at) for at in (3.0, 3.5, 5.0, 8.0)] == pytest.approx([0.8, 0.65, 0.3, 0.05])
    assert [found(at) for at in (10.0, 12.0)] == pytest.approx([0.025, 0.0125])
    assert [found(at) for at in (1.0, 0.0)] == pytest.approx([0.95, 0.975])


def test_exceedance_of_one_certain_value_is_yes_or_no():
    quantiles = np.broadcast_to(np.array([74.0, 75.0, 76.0]), (5, 3))
    assert probabilities.exceedance(quantiles, FIVE, 75.0).tolist() == [0.0, 1.0, 1.0]


def test_scoringrules_gives_the_same_crps_and_brier_score():
    rules = pytest.importorskip("scoringrules")
    generator = np.random.default_rng(1)
    levels = tuple((np.arange(7) + 0.5) / 7)  # equal weights, which scoringrules takes
    quantiles = np.sort(generator.gamma(2.0, 30.0, (7, 40)), axis=0)
    truth = generator.gamma(2.0, 30.0, 40)
    theirs = rules.crps_quantile(truth, quantiles.T, np.array(levels))
    np.testing.assert_allclose(probabilities.crps(quantiles, truth, levels), theirs)

    terms = probabilities.terms_of(quantiles, levels, np.ones(40, bool), truth, 75.0)
    brier = rules.brier_score((truth >= 75.0).astype(float), exceedances(quantiles, levels))
    np.testing.assert_allclose(terms[probabilities.sums(levels).index("brier")], brier)


def exceedances(quantiles: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    return probabilities.exceedance(quantiles, levels, 75.0)


def test_intervals_are_the_central_pairs():
    assert probabilities.intervals(FIVE) == {"90": (0, 4), "50": (1, 3)}
    assert probabilities.intervals((0.1, 0.3, 0.9)) == {"80": (0, 2)}
    assert probabilities.intervals((0.025, 0.5, 0.975)) == {"95": (0, 2)}


def test_calibrated_gaussians_hold_what_they_promise():
    generator = np.random.default_rng(2)
    mean, std = generator.normal(60.0, 30.0, 50_000), generator.gamma(2.0, 10.0, 50_000)
    truth = generator.normal(mean, std)
    quantiles, every = gaussian(FIVE, mean, std), np.ones(50_000, bool)
    added = probabilities.terms_of(quantiles, FIVE, every, truth, 75.0).sum(1)
    found = probabilities.scores(added, FIVE)
    assert found["coverage_90"] == pytest.approx(0.9, abs=0.005)
    assert found["coverage_50"] == pytest.approx(0.5, abs=0.01)
    assert found["width_50"] == pytest.approx(2 * NORMAL.inv_cdf(0.75) * std.mean())
    np.testing.assert_allclose(probabilities.levels_held(added, FIVE), FIVE, atol=0.01)
    weight, probability, frequency = probabilities.reliability(added, FIVE)
    assert weight.sum() == 50_000
    # a straight line is not quite a Gaussian between quantiles
    np.testing.assert_allclose(frequency, probability, atol=0.04)


SHAPE = (2, 3, 6)  # K, T, N
THRESHOLDS = np.array([75.0, np.nan, 40.0])


def sample() -> tuple[np.ndarray, ...]:
    """Quantiles, valid, truth, area [R, N] and subsets [S, K, N], with NaN where not valid."""
    generator = np.random.default_rng(3)
    quantiles = np.sort(generator.gamma(3.0, 20.0, (5, *SHAPE)), axis=0)
    truth = generator.gamma(3.0, 20.0, SHAPE)
    valid = generator.random(SHAPE) < 0.7
    quantiles[:, ~valid] = np.nan
    truth[~valid] = np.nan
    area = np.stack([generator.random(6), generator.random(6)])
    area[1, :4] = 0.0
    subsets = np.stack([np.ones((2, 6), bool), generator.random((2, 6)) < 0.5])
    return quantiles, valid, truth, area, subsets


def test_sums_are_those_of_a_loop_over_valid_cells():
    quantiles, valid, truth, area, subsets = sample()
    given = quantiles, FIVE, valid, truth, THRESHOLDS, area, subsets
    found = probabilities.sums_of(*given)
    names = probabilities.sums(FIVE)
    assert found.shape == (2, 3, 2, 2, len(names))
    expected = np.zeros(found.shape)
    at = {name: position for position, name in enumerate(names)}
    for k, t, n in zip(*np.nonzero(valid), strict=True):
        cell, y = quantiles[:, k, t, n], truth[k, t, n]
        one = np.zeros(len(names))
        one[at["weight"]] = 1.0
        one[at["crps"]] = probabilities.crps(cell[:, None], np.array([y]), FIVE)[0]
        one[at["inside_90"]] = cell[0] <= y <= cell[4]
        one[at["width_90"]] = cell[4] - cell[0]
        one[at["inside_50"]] = cell[1] <= y <= cell[3]
        one[at["width_50"]] = cell[3] - cell[1]
        for level, value in zip(FIVE, cell, strict=True):
            one[at[f"below_{level:g}"]] = y <= value
        if not np.isnan(THRESHOLDS[t]):
            p = probabilities.exceedance(cell[:, None], FIVE, THRESHOLDS[t])[0]
            bin_ = min(int(10 * p), 9)
            one[at["event_weight"]] = 1.0
            one[at["brier"]] = (p - (y >= THRESHOLDS[t])) ** 2
            one[at[f"forecasts_{bin_}"]] = 1.0
            one[at[f"probability_{bin_}"]] = p
            one[at[f"events_{bin_}"]] = y >= THRESHOLDS[t]
        for r, s in np.ndindex(2, 2):
            expected[k, t, r, s] += area[r, n] * subsets[s, k, n] * one
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_without_a_pair_or_a_threshold_there_is_no_score():
    quantiles, valid, truth, area, subsets = sample()
    given = quantiles, FIVE, valid & False, truth, THRESHOLDS, area, subsets
    nothing = probabilities.sums_of(*given)[0, 0, 0, 0]
    assert set(probabilities.scores(nothing, FIVE).values()) == {None}
    assert probabilities.skill(nothing, nothing, "crps", FIVE) is None
    some = probabilities.sums_of(quantiles, FIVE, valid, truth, THRESHOLDS, area, subsets)
    found = probabilities.scores(some[0, 1, 0, 0], FIVE)
    assert found["brier"] is None and found["crps"] is not None


def test_skill_is_one_minus_the_ratio_of_scores():
    quantiles, valid, truth, area, subsets = sample()
    at = 0, 0, 0, 0
    ours = probabilities.sums_of(quantiles, FIVE, valid, truth, THRESHOLDS, area, subsets)[at]
    wide = probabilities.sums_of(2 * quantiles, FIVE, valid, truth, THRESHOLDS, area, subsets)[at]
    first, second = (probabilities.scores(added, FIVE) for added in (ours, wide))
    for score in ("crps", "brier"):
        expected = 1 - first[score] / second[score]
        assert probabilities.skill(ours, wide, score, FIVE) == pytest.approx(expected)


def test_where_nothing_reached_the_threshold_there_is_no_brier_skill():
    quantiles, valid, truth, area, subsets = sample()
    clean = np.minimum(truth, 0.5 * np.nanmin(THRESHOLDS))
    at = 0, 0, 0, 0
    ours = probabilities.sums_of(quantiles, FIVE, valid, clean, THRESHOLDS, area, subsets)[at]
    wide = probabilities.sums_of(2 * quantiles, FIVE, valid, clean, THRESHOLDS, area, subsets)[at]
    assert probabilities.scores(wide, FIVE)["brier"] > 0
    assert probabilities.skill(ours, wide, "brier", FIVE) is None
    assert probabilities.skill(ours, wide, "crps", FIVE) is not None
