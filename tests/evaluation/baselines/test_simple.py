"""The simple forecasts against naive loops over cells, with gaps and missing values."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import torch

from aqnet import distributed
from aqnet.errors import AqnetError
from aqnet.evaluation import baselines
from aqnet.evaluation.baselines import simple
from aqnet.grid import Grid

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


def wind(hour: int) -> np.ndarray:
    return np.random.default_rng(hour + 1).normal(0, 8, (2, *MASK.shape)).astype(np.float32)


GRID = Grid(
    torch.tensor([30.0, 31.0], dtype=torch.float64)[:, None].expand(MASK.shape),
    torch.tensor([100.0, 101.0, 102.0], dtype=torch.float64).expand(MASK.shape),
    None,
    torch.from_numpy(MASK),
)
HOURS = [hour for hour in range(START, START + 24 * 20) if hour not in GAP]


def stream(wanted):
    return ((hour, fields(hour)) for hour in np.array(HOURS)[wanted(np.array(HOURS))].tolist())


def truth(hour: int) -> np.ndarray:
    return fields(hour) if hour in HOURS else np.full((2, *MASK.shape), np.nan, np.float32)


@cache
def recent(day: int, days: int) -> np.ndarray:
    """The mean over the days before, where the record reaches back over half of them."""
    if 2 * (day - START // 24) < days:
        return np.full((2, *MASK.shape), np.nan)
    hours = [hour for hour in range(24 * (day - days), 24 * day) if hour in HOURS]
    return np.ma.masked_invalid([fields(hour) for hour in hours]).mean(axis=0).filled(np.nan)


def read(hour: int) -> baselines.Observed:
    means = np.stack([recent(hour // 24, days) for days in baselines.RECENT_DAYS])
    means = means.astype(np.float32)
    return baselines.Observed(truth(hour), wind(hour), means)


def read_without_wind(hour: int) -> baselines.Observed:
    return read(hour)._replace(wind=None)


def fitted(of=read, leads=LEADS, later=HOURS, truth=truth) -> baselines.Baselines:
    return baselines.fit(stream, np.array(HOURS), of, truth, GRID, leads, np.array(later))


@pytest.fixture(scope="module")
def whole() -> baselines.Baselines:
    return fitted()


def naive_climate(hour: int, target: int, cell: int) -> float:
    def month(h: int) -> int:
        return np.datetime64(h, "h").astype("datetime64[M]").astype(int) % 12

    same = [h for h in HOURS if month(h) == month(hour)]
    at_hour = [fields(h)[target, MASK][cell] for h in same if h % 24 == hour % 24]
    known = [value for value in at_hour if np.isfinite(value)]
    if known:
        return float(np.mean(known))
    return float(np.nanmean([fields(h)[target, MASK][cell] for h in same]))


def test_climatology_is_the_mean_of_hour_and_month_else_of_the_month(whole: baselines.Baselines):
    for hour in (START + 3, START + 7, START + 24 * 15 + 7):
        for target in range(2):
            for cell in range(4):
                expected = naive_climate(hour, target, cell)
                found = whole.climatology.at(hour)[target, cell]
                assert found == pytest.approx(expected, rel=1e-6)
    assert whole.climatology.filled == (2, 0)  # hour 7 of one cell in January and in February


def naive_recent(past: dict[int, list[np.ndarray]], hour: int, now: np.ndarray) -> list[np.ndarray]:
    """Anomalies [N] over the last days, each where it is not known that over fewer."""
    found = [now]
    for anomaly in past[hour // 24]:
        found.append(np.where(np.isfinite(anomaly), anomaly, found[-1]))
    return found[1:]


def past_anomalies(whole: baselines.Baselines, day: int, target: int) -> list[np.ndarray]:
    found = []
    for days in baselines.RECENT_DAYS:
        hours = range(24 * (day - days), 24 * day)
        climate = np.mean([whole.climatology.at(hour)[target] for hour in hours], axis=0)
        found.append(recent(day, days).astype(np.float32)[target, MASK] - climate)
    return found


def test_regressions_agree_with_least_squares_over_pooled_pairs(whole: baselines.Baselines):
    assert whole.air is not None
    for row, lead in enumerate(LEADS):
        for target in range(2):
            days = {hour // 24 for hour in HOURS}
            anomalies = {day: past_anomalies(whole, day, target) for day in days}
            found = []
            for hour in HOURS:
                if hour + lead not in HOURS:
                    continue
                x, y = (fields(h)[target, MASK].astype(float) for h in (hour, hour + lead))
                moved = whole.air.moved(fields(hour), wind(hour))[row, target]
                moved = np.where(np.isfinite(moved), moved, x)
                a = x - whole.climatology.at(hour)[target]
                b = y - whole.climatology.at(hour + lead)[target]
                good = np.isfinite(x) & np.isfinite(y)
                past = naive_recent(anomalies, hour, a)
                found.append(np.stack([np.ones(4), x, moved, y, a, *past, b])[:, good])
            one, x, moved, y, a, *past, b = np.concatenate(found, axis=1)
            for name, regressors, wanted in (
                ("damped_persistence", (one, x), y),
                ("damped_anomaly", (a,), b),
                ("recent_anomaly", (a, *past), b),
                ("transport", (one, x, moved), y),
            ):
                expected = np.linalg.lstsq(np.stack(regressors, axis=1), wanted)[0]
                assert whole.weights[name][row, target] == pytest.approx(expected, rel=1e-6)


def test_forecasts_follow_their_formulas_and_keep_missing_missing(whole: baselines.Baselines):
    hour = START + 6
    observed = read(hour)
    assert whole.air is not None and observed.wind is not None
    observed.targets[1, 1, 0] = (
        np.nan
    )  # the third cell of the domain, whose air comes from the next
    observed.wind[:] = np.array([-9.0 / whole.air.speed[0], 0.0])[:, None, None]
    present = observed.targets[:, MASK].astype(float)
    found = whole.forecasts(hour, observed)
    assert tuple(found) == whole.names == baselines.SIMPLE
    later = whole.climatology.at(hour + 24)
    rho = whole.weights["damped_anomaly"][1]
    expected = later + rho * (present - whole.climatology.at(hour))
    np.testing.assert_allclose(found["damped_anomaly"][1], expected)
    np.testing.assert_array_equal(found["persistence"][0], present)
    a, b, c = np.moveaxis(whole.weights["transport"][0], -1, 0)[..., None]
    moved = whole.air.moved(observed.targets, observed.wind)[0]
    assert np.isfinite(moved[1, 2])
    moved = np.where(np.isfinite(moved), moved, present)
    np.testing.assert_allclose(found["transport"][0], a + b * present + c * moved)
    for name in (
        "persistence",
        "damped_persistence",
        "damped_anomaly",
        "recent_anomaly",
        "transport",
    ):
        missing = np.isnan(found[name])
        assert missing[:, 1, 2].all() and missing.sum() == len(LEADS), name


def test_where_the_air_comes_from_without_a_value_the_cells_own_stands_in(
    whole: baselines.Baselines,
):
    observed = read(START + 6)
    observed.targets[0, MASK] = (np.nan, np.nan, 40.0, np.nan)
    found = whole.known(START + 6, observed)["moved"]
    assert (found[:, 0, 2] == 40.0).all()
    assert np.isnan(whole.forecasts(START + 6, observed)["transport"][:, 0, [0, 1, 3]]).all()


def test_without_stored_wind_there_is_no_transport_and_the_others_are_the_same(
    whole: baselines.Baselines,
):
    alone = fitted(read_without_wind)
    assert alone.air is None
    assert alone.names == tuple(name for name in baselines.SIMPLE if name != "transport")
    ours, theirs = (
        alone.forecasts(START, read_without_wind(START)),
        whole.forecasts(START, read(START)),
    )
    assert set(ours) == set(alone.names)
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], rtol=1e-12)


MARCH = np.array([[START + 24 * 41, START + 24 * 41 + 12]])


def test_month_without_training_values_is_named_where_something_is_to_be_forecast():
    def known_in_march(hour: int) -> np.ndarray:
        return fields(hour) if hour == MARCH[0, 1] else truth(hour)

    with pytest.raises(AqnetError, match=r"no value of some target in month \[3\]"):
        fitted(later=MARCH, truth=known_in_march)


def test_month_without_training_values_in_which_no_pair_counts_is_none_that_is_needed():
    found = fitted(later=MARCH)  # of which nothing is known
    assert np.isnan(found.climatology.at(int(MARCH[0, 0]))).all()
    assert np.isnan(found.forecasts(HOURS[-1], read(HOURS[-1]))["climatology"]).sum() == 0


def test_training_hours_of_the_climatology_are_read_once():
    reads = []

    def counted(wanted):
        reads.append(1)
        return stream(wanted)

    baselines.fit(counted, np.array(HOURS[:40]), read, truth, GRID, LEADS, np.array(HOURS))
    assert len(reads) == 1


@pytest.mark.parametrize("size", [2, 3, 16])
def test_ranks_together_fit_what_one_alone_does(
    whole: baselines.Baselines, size: int, monkeypatch: pytest.MonkeyPatch
):
    waiting = threading.Barrier(size)
    places, sums = threading.local(), {}

    def sum_(tensor: torch.Tensor) -> torch.Tensor:
        sums[places.rank] = tensor.clone()
        waiting.wait()
        total = sum(sums[rank] for rank in range(size))
        waiting.wait()
        return tensor.copy_(total)

    monkeypatch.setattr(distributed, "sum_", sum_)
    monkeypatch.setattr(distributed, "rank", lambda: places.rank)
    monkeypatch.setattr(distributed, "world_size", lambda: size)
    monkeypatch.setattr(distributed, "on_main", lambda function: function())

    def of_rank(rank: int) -> baselines.Baselines:
        places.rank = rank
        return fitted()

    with ThreadPoolExecutor(size) as pool:
        together = list(pool.map(of_rank, range(size)))
    for one in together:
        assert one.climatology.filled == whole.climatology.filled
        np.testing.assert_array_equal(one.climatology.means, whole.climatology.means)
        assert one.air is not None and whole.air is not None
        np.testing.assert_array_equal(one.air.speed, whole.air.speed)
        np.testing.assert_array_equal(one.air.turn, whole.air.turn)
        assert list(one.weights) == list(simple.REGRESSIONS)
        for name, weights in one.weights.items():
            np.testing.assert_array_equal(weights, whole.weights[name])


def test_lead_time_longer_than_every_training_period_is_named():
    with pytest.raises(AqnetError, match=r"no two values of some target \[480\] h apart"):
        fitted(leads=(3, 480))
