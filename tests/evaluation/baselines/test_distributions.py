"""Distributions of the simple forecasts against plain loops, for any number of ranks."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from aqnet import distributed
from aqnet.evaluation import baselines
from aqnet.evaluation.baselines import distributions, month_of
from aqnet.evaluation.baselines.distributions import Distributions
from aqnet.grid import Grid

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
FIRST = int(np.datetime64("2015-01-01T00", "h").astype(int))
HOURS = range(FIRST, FIRST + 3 * 365 * 24, 3)
LEADS = (12, 24)
CELLS = 3
STD = np.array([20.0, 1.0])
PLACES = torch.arange(CELLS, dtype=torch.float64)[None]
GRID = Grid(30 + 0 * PLACES, 100 + PLACES, None, torch.ones(1, CELLS, dtype=torch.bool))
TIMES = np.array(HOURS)[::7]  # all hours of the day


def values_at(hour: int) -> np.ndarray:
    """Targets [T, N]: a daily cycle, slow weather, noise, and gaps."""
    generator = np.random.default_rng(hour)
    weather = np.random.default_rng(hour // 48).normal(size=(2, CELLS))
    noise = generator.normal(size=(2, CELLS))
    cycle = np.cos(2 * np.pi * (hour % 24) / 24)
    values = STD[:, None] * (3.0 + cycle + weather + 0.5 * noise)
    values[generator.random((2, CELLS)) < 0.1] = np.nan
    values[0, 2] = np.nan if hour % 24 == 9 else values[0, 2]
    return values.astype(np.float32)


def stream(wanted: Callable[[np.ndarray], np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    hours = np.array(HOURS)
    for hour in hours[wanted(hours)].tolist():
        yield hour, values_at(hour)[:, None]


def read(hour: int) -> baselines.Observed:
    values = values_at(hour) if hour in HOURS else np.full((2, CELLS), np.nan, np.float32)
    nothing = np.full((3, 2, 1, CELLS), np.nan, np.float32)
    return baselines.Observed(values[:, None], None, nothing)


def truth(hour: int) -> np.ndarray:
    return read(hour).targets


@pytest.fixture(scope="module")
def simple() -> baselines.Baselines:
    return baselines.fit(stream, TIMES, read, truth, GRID, LEADS, TIMES)


@pytest.fixture(scope="module")
def fitted(simple: baselines.Baselines) -> Distributions:
    return distributions.fit(stream, TIMES, truth, simple, STD, LEVELS)


def test_climatological_quantiles_are_those_of_the_month_and_hour(fitted: Distributions):
    for month, hour in ((0, 0), (6, 21)):
        rows = [values_at(time) for time in HOURS if month_of(time) == month and time % 24 == hour]
        expected = np.nanquantile(np.stack(rows), LEVELS, axis=0, method="weibull")
        np.testing.assert_allclose(fitted.climate[month, hour], expected, rtol=1e-5)


def test_cell_without_a_value_at_an_hour_gets_the_spread_of_the_others(
    fitted: Distributions, simple: baselines.Baselines
):
    spread = (fitted.climate[4, 9] - simple.climatology.means[4, 9])[:, 0]
    np.testing.assert_allclose(spread[:, 2], spread[:, :2].mean(1), rtol=1e-4)
    # hours that nobody observed have that of all hours about the mean of the month
    assert np.isfinite(fitted.climate[:, 10]).all()
    assert (np.diff(fitted.climate, axis=2) > 0).all()


def test_error_quantiles_are_those_of_the_training_errors(
    fitted: Distributions, simple: baselines.Baselines
):
    errors: list[list[np.ndarray]] = [[], []]
    for time in TIMES.tolist():
        guess = simple.forecasts(time, read(time))["damped_anomaly"]
        for row, lead in enumerate(LEADS):
            errors[row].append(read(time + lead).targets[:, 0] - guess[row])
    expected = np.stack([np.nanquantile(np.stack(part), LEVELS, axis=0) for part in errors], 1)
    atol = 0.03 * STD[:, None]
    assert (np.abs(fitted.errors - expected) <= atol + 0.03 * np.abs(expected)).all()


def test_quantiles_of_an_input_time_follow_its_target_times(
    fitted: Distributions, simple: baselines.Baselines
):
    hour = FIRST + 31 * 24 - 9  # the lead times end in February
    observed = read(hour)
    observed.targets[0, 0, 0] = np.nan
    point = simple.forecasts(hour, observed)
    found = fitted.quantiles(hour, point)
    assert set(found) == set(distributions.NAMES)
    assert {values.shape for values in found.values()} == {(5, 2, 2, CELLS)}
    np.testing.assert_array_equal(found["climatology"][:, 1], fitted.climate[1, 15])
    damped = found["damped_anomaly"]
    assert np.isnan(damped[:, :, 0, 0]).all()
    middle = np.median(damped[:, :, 1] - point["damped_anomaly"][:, 1].astype(np.float32), axis=0)
    np.testing.assert_allclose(middle, fitted.errors[2, :, 1], rtol=1e-3, atol=1e-4)


def test_months_of_other_ranks_are_added(
    simple: baselines.Baselines, fitted: Distributions, monkeypatch: pytest.MonkeyPatch
):
    """The sum over two ranks, each alone with its own months, is the whole."""
    parts = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "sum_", lambda tensor: parts.append(tensor.clone()))
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        distributions.fit(stream, TIMES, truth, simple, STD, LEVELS)
    climate, counts = parts[0] + parts[2], parts[1] + parts[3]
    np.testing.assert_array_equal(climate.numpy(), fitted.climate)
    whole = [distributions._of_counts(part, LEVELS) * STD[:, None] for part in counts.numpy()]
    np.testing.assert_array_equal(np.stack(whole, 1).astype(np.float32), fitted.errors)
