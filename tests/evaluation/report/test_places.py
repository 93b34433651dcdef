"""Places of the config, the two weeks that are drawn, and what is forecast for them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aqnet.batch import Batch, Forecast, Statistics
from aqnet.config import Report
from aqnet.errors import AqnetError
from aqnet.evaluation.report import places
from aqnet.grid import Grid
from tests.data.worlds import config
from tests.evaluation.report.pictures.test_pictures import MEAN, STD, degrees


def full(rows: int, columns: int) -> Grid:
    grid = degrees(rows, columns)
    return Grid(grid.lat, grid.lon, None, torch.ones(rows, columns, dtype=torch.bool))


def test_place_is_the_nearest_cell_of_the_domain_and_one_far_from_it_is_named(tmp_path: Path):
    grid = full(31, 51)  # 50 to 20 north, 80 to 130 east, a cell a degree
    grid.mask[10] = False
    settings = config(tmp_path)
    report = Report({"Beijing": (39.9, 116.4), "same": (39.9, 116.4 - 360.0)})
    found = places.named(replace(settings, report=report), grid)
    assert found == [places.Place("Beijing", 11 * 51 + 36), places.Place("same", 11 * 51 + 36)]
    assert places.named(settings, grid) == []
    report = Report({"Beijing": (116.4, 39.9)})
    with pytest.raises(AqnetError, match=r"report.places.Beijing \[116.4, 39.9\] lies outside"):
        places.named(replace(settings, report=report), grid)


def test_default_places_are_the_highest_cells_that_are_no_neighbours():
    grid = full(31, 51)
    mean = np.zeros((31, 51))
    mean[10, 20], mean[11, 21], mean[10, 23], mean[0, 0], mean[30, 0] = 9, 8, 7, 6, 5
    mean[30, 50] = 4
    found = places.highest(mean.ravel(), grid)
    cells = [(10, 20), (10, 23), (0, 0), (30, 0), (30, 50)]
    assert [place.cell for place in found] == [51 * row + column for row, column in cells]
    assert found[0].name == "40.0° N, 100.0° E"


def test_weeks_are_that_of_largest_error_and_one_of_median_error_with_enough_pairs():
    times = np.arange(0, 40 * 24, 6)
    weight, error = np.ones(len(times)), np.ones(len(times))
    error[(times >= 12 * 24) & (times < 19 * 24)] = 5.0
    error[times >= 19 * 24] = 0.5
    error[times >= 33 * 24] = 0.1
    worst, usual = places.weeks(times, weight, error)
    assert worst == 12 and usual in range(19, 27), "0.5 is the median of the others"
    weight[times < 8 * 24] = 1e-3  # hardly any pair: a mean of 1,000 does not count
    assert places.weeks(times, weight, error)[0] == 12
    assert places.weeks(times[:20], weight[:20], error[:20]) == [0], "no seven other days"


@pytest.mark.parametrize(("own", "step"), [(1, 3), (2, 4), (3, 3), (6, 6)])
def test_hours_of_a_week_are_evenly_spaced(own: int, step: int):
    times = np.arange(24 * 9 + own, 24 * 40, own)
    found = places.hours_of(10, times)
    assert found[0] == 240 and set(np.diff(found)) == {step} and 400 < found[-1] < 24 * 17


def test_series_is_in_physical_units_and_missing_where_there_is_no_input(tmp_path: Path):
    settings = config(tmp_path)
    settings = replace(settings, model=replace(settings.model, quantiles=(0.1, 0.9)))
    asked: list[list[int]] = []

    def make(hours: Sequence[int]) -> Iterator[tuple[Batch, Forecast]]:
        asked.append(list(hours))
        for part in (hours[:2], hours[2:]):
            time = torch.tensor(part)
            values = time.float()[:, None, None, None, None].expand(-1, 2, 2, 3, 4).clone()
            values[:, 0], values[..., 1, 1] = 99.0, -values[..., 1, 1]  # another lead time, cell
            mask = torch.ones(values.shape, dtype=torch.bool)
            mask[:, :, 1] = False
            batch = Batch(values[:, 0], time, torch.tensor([[3, 24]]), values + 1, mask)
            yield batch, Forecast(values, torch.stack([values - 1, values + 1], dim=1))

    statistics = Statistics(("o3", "pm25"), MEAN, STD)
    hours, inputs = np.array([24, 27, 30, 33]), np.array([0, 1, 2, 3, 9])
    chosen = [places.Place("a", 0), places.Place("b", 5)]
    found = places.series(hours, 1, inputs, chosen, settings, statistics, make)
    assert asked == [[0, 3, 9]]
    expected = MEAN + np.array([0.0, 3.0, np.nan, 9.0])[:, None] * STD
    np.testing.assert_allclose(found.forecast[..., 0], expected)
    other = np.maximum(2 * np.array(MEAN) - expected, 0.0)  # a concentration is not below 0
    np.testing.assert_allclose(found.forecast[..., 1], other)
    np.testing.assert_allclose(found.truth[:, 0, 0], expected[:, 0] + STD[0])
    assert np.isnan(found.truth[:, 1]).all()
    np.testing.assert_allclose(found.quantiles[:, 1, :, 0], expected + STD)
