"""The simple forecasts against naive loops over cells, with gaps and missing values."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from aqnet.errors import AqnetError
from aqnet.evaluation import baselines

START = int(np.datetime64("2015-01-20T00", "h").astype(int))
MASK = np.array([[True, False, True], [True, True, False]])
LEADS = (3, 24)
GAP = range(START + 100, START + 110)


def fields(hour: int) -> np.ndarray:
    rng = np.random.default_rng(hour)
    daily = 10 * np.sin(2 * np.pi * hour / 24)
    values = 50 + daily + rng.normal(0, 5, (2, *MASK.shape)).cumsum(-1)
    values[0, 0, 0] = np.nan if hour % 5 == 0 else values[0, 0, 0]
    if hour % 24 == 7:
        values[1, 1, 1] = np.nan  # never observed at this hour of the day
    values[:, ~MASK] = np.nan
    return values.astype(np.float32)


HOURS = [hour for hour in range(START, START + 24 * 20) if hour not in GAP]


def stream(wanted):
    return ((hour, fields(hour)) for hour in np.array(HOURS)[wanted(np.array(HOURS))].tolist())


def naive_climate(hour: int, target: int, cell: int) -> float:
    def month(h: int) -> int:
        return np.datetime64(h, "h").astype("datetime64[M]").astype(int) % 12

    same = [h for h in HOURS if month(h) == month(hour)]
    at_hour = [fields(h)[target, MASK][cell] for h in same if h % 24 == hour % 24]
    known = [value for value in at_hour if np.isfinite(value)]
    if known:
        return float(np.mean(known))
    return float(np.nanmean([fields(h)[target, MASK][cell] for h in same]))


def test_climatology_is_the_mean_of_hour_and_month_else_of_the_month():
    fitted = baselines.fit(stream, MASK, 2, LEADS, {0, 1})
    for hour in (START + 3, START + 7, START + 24 * 15 + 7):
        for target in range(2):
            for cell in range(4):
                expected = naive_climate(hour, target, cell)
                assert fitted.climate_at(hour)[target, cell] == pytest.approx(expected, rel=1e-6)
    assert fitted.filled == (2, 0)  # hour 7 of one cell in January and in February


def test_regressions_agree_with_least_squares_over_pooled_pairs():
    fitted = baselines.fit(stream, MASK, 2, LEADS, {0, 1})
    for row, lead in enumerate(LEADS):
        for target in range(2):
            pairs, anomalies = [], []
            for hour in HOURS:
                if hour - lead not in HOURS:
                    continue
                x, y = (fields(h)[target, MASK].astype(float) for h in (hour - lead, hour))
                good = np.isfinite(x) & np.isfinite(y)
                pairs.append(np.stack([x, y])[:, good])
                a = x - fitted.climate_at(hour - lead)[target]
                b = y - fitted.climate_at(hour)[target]
                anomalies.append(np.stack([a, b])[:, good])
            slope, offset = np.polyfit(*np.concatenate(pairs, axis=1), 1)
            a, b = np.concatenate(anomalies, axis=1)
            assert fitted.slope[row, target] == pytest.approx(slope, rel=1e-6)
            assert fitted.offset[row, target] == pytest.approx(offset, rel=1e-6)
            assert fitted.rho[row, target] == pytest.approx((a * b).sum() / (a * a).sum(), rel=1e-6)


def test_forecasts_follow_their_formulas_and_keep_missing_missing():
    fitted = baselines.fit(stream, MASK, 2, LEADS, {0, 1})
    present = fields(START + 5)[:, MASK].astype(float)  # START + 5 is divisible by 5 or not
    present[1, 2] = np.nan
    found = fitted.forecasts(present, START + 5, LEADS)
    assert set(found) == set(baselines.SIMPLE)
    later = fitted.climate_at(START + 5 + 24)
    expected = later + fitted.rho[1][:, None] * (present - fitted.climate_at(START + 5))
    np.testing.assert_allclose(found["damped_anomaly"][1], expected)
    np.testing.assert_array_equal(found["persistence"][0], present)
    assert np.isnan(found["damped_persistence"][:, 1, 2]).all()


def test_month_without_training_values_is_named():
    with pytest.raises(AqnetError, match=r"month \[3\]"):
        baselines.fit(stream, MASK, 2, LEADS, {1, 2})


def test_months_are_counted_from_zero():
    hours = np.array([START, START + 24 * 13])
    assert baselines.months_of(hours) == {0, 1}


def test_training_hours_are_read_once_where_they_fit_and_twice_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
):
    reads = []

    def counted(wanted):
        reads.append(1)
        return stream(wanted)

    once = baselines.fit(counted, MASK, 2, LEADS, {0, 1})
    assert len(reads) == 1
    monkeypatch.setattr(baselines, "KEPT_BYTES", 1000)
    twice = baselines.fit(counted, MASK, 2, LEADS, {0, 1})
    assert len(reads) == 3
    for name in ("climate", "offset", "slope", "rho"):
        np.testing.assert_array_equal(getattr(once, name), getattr(twice, name))


@pytest.mark.parametrize("size", [2, 3, 16])
def test_ranks_together_fit_what_one_alone_does(size: int, monkeypatch: pytest.MonkeyPatch):
    alone = baselines.fit(stream, MASK, 2, LEADS, {0, 1})
    waiting = threading.Barrier(size)
    places, sums = threading.local(), {}

    def sum_(tensor: torch.Tensor) -> torch.Tensor:
        sums[places.rank] = tensor.clone()
        waiting.wait()
        total = sum(sums[rank] for rank in range(size))
        waiting.wait()
        return tensor.copy_(total)

    monkeypatch.setattr(baselines.distributed, "sum_", sum_)
    monkeypatch.setattr(baselines.distributed, "rank", lambda: places.rank)
    monkeypatch.setattr(baselines.distributed, "world_size", lambda: size)
    monkeypatch.setattr(baselines.distributed, "on_main", lambda function: function())

    def of_rank(rank: int) -> baselines.Baselines:
        places.rank = rank
        return baselines.fit(stream, MASK, 2, LEADS, {0, 1})

    with ThreadPoolExecutor(size) as pool:
        together = list(pool.map(of_rank, range(size)))
    for fitted in together:
        assert fitted.filled == alone.filled
        for name in ("climate", "offset", "slope", "rho"):
            np.testing.assert_array_equal(getattr(fitted, name), getattr(alone, name))


def test_lead_time_longer_than_every_training_period_is_named():
    with pytest.raises(AqnetError, match=r"no two values of some target \[480\] h apart"):
        baselines.fit(stream, MASK, 2, (3, 480), {0, 1})
