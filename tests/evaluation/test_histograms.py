"""Counts for the pictures, against loops over the pairs."""

import numpy as np
import pytest

from aqnet.evaluation import metrics
from aqnet.evaluation.histograms import BINS, Records
from tests.data.worlds import config


@pytest.fixture
def records(tmp_path) -> Records:
    return Records(config(tmp_path), np.array([50.0, 20.0]), np.array([80.0, np.nan]))


def pairs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    truth = generator.lognormal(3.5, 1.5, (2, 2, 300))
    forecast = truth * generator.lognormal(0, 0.5, truth.shape) - 5.0
    valid = generator.random(truth.shape) < 0.8
    truth[~valid] = np.nan
    return forecast, truth, valid


def test_counts_agree_with_a_loop_over_the_pairs(records: Records):
    forecast, truth, valid = pairs()
    records.count(forecast, truth, valid)
    edges = records.edges()
    expected, exceeded = np.zeros_like(records.pairs), np.zeros_like(records.exceeded)
    for lead, target, cell in zip(*np.nonzero(valid), strict=True):
        at, to = (
            int(np.searchsorted(edges[target][1:-1], part[lead, target, cell], side="right"))
            for part in (forecast, truth)
        )
        expected[lead, target, at, to] += 1
        exceeded[lead, target, at] += target == 0 and truth[lead, target, cell] >= 80.0
    assert np.array_equal(records.pairs, expected)
    assert np.array_equal(records.exceeded, exceeded)
    assert expected[..., 0, :].any() and expected[..., BINS - 1, :].any(), "the open bins are used"


def test_typical_time_is_the_one_of_median_error(records: Records):
    for time, error in ((3, 9.0), (1, 1.0), (2, 4.0)):
        sums = np.ones((5, 2, 2, 1, 1, len(metrics.SUMS)))
        sums[0, ..., metrics.SUMS.index("ee")] = error
        records.keep(time, sums)
    assert records.typical_time() == 2
