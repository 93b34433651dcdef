"""Odds beside the simple forecasts' distributions: scores by a loop, files, comparison."""

import copy
import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray

from aqnet import config as configs
from aqnet.batch import Forecast
from aqnet.evaluation import daily_sums, run
from aqnet.evaluation.baselines import distributions
from aqnet.evaluation.forecasts import zarr_files
from aqnet.evaluation.odds import odds as odds_scores
from aqnet.evaluation.odds import probabilities
from aqnet.evaluation.odds.odds import FORECASTS
from aqnet.evaluation.report import odds_section, table
from aqnet.evaluation.studies import compare
from tests.evaluation.test_scorer import (
    CONFIG,
    GRID,
    HOURS,
    LEADS,
    MASK,
    STATISTICS,
    TARGETS,
    UNITS,
    batches,
    fitted,
    observed_at,
    truth_at,
)

LEVELS = (0.05, 0.5, 0.95)
SPREAD = np.array([-30.0, 0.0, 30.0])
WITH = configs.from_dict(
    {**configs.to_dict(CONFIG), "model": {**configs.to_dict(CONFIG)["model"], "quantiles": LEVELS}},
    "here",
)


def with_quantiles(mean: torch.Tensor) -> Forecast:
    """The normalised mean [B, K, T, H, W] with quantiles 30 ug/m3 below and above it."""
    std = STATISTICS.of(TARGETS)[1]
    steps = torch.from_numpy(SPREAD)[:, None] / std
    return Forecast(mean, mean.unsqueeze(1) + steps[:, None, :, None, None].to(mean))


@pytest.fixture(scope="module")
def scorer() -> run.Scorer:
    simple = fitted()
    cells = int(MASK.sum())
    generator = np.random.default_rng(4)
    climate = np.sort(generator.gamma(3.0, 25.0, (12, 24, 3, 2, cells)), axis=2)
    errors = np.sort(generator.normal(0.0, 40.0, (3, 2, 2, cells)), axis=0)
    fitted_odds = distributions.Distributions(
        LEADS, LEVELS, climate.astype(np.float32), errors.astype(np.float32)
    )
    regions = {"north": GRID.lat.numpy() > 40}
    besides = run.Besides(regions, distributions=fitted_odds)
    result = run.Scorer(WITH, GRID, STATISTICS, simple, observed_at, besides)
    for batch, forecast in batches():
        for item in result.score(batch, with_quantiles(forecast)):
            result.add(item)
    return result


def looped(scorer: run.Scorer, region: str, subset: str) -> tuple[float, float, float]:
    """CRPS, coverage and width of the model's PM2.5 at 24 h by a loop over times and cells."""
    scores, inside, width, weights = 0.0, 0.0, 0.0, 0.0
    cells = list(zip(*np.nonzero(MASK.numpy()), strict=True))
    for batch, forecast in batches():
        hour = int(batch.time[0])
        month = (np.datetime64(hour + 24, "h").astype("datetime64[M]").astype(int)) % 12 + 1
        for y, x in cells:
            truth, present = truth_at(hour + 24)[0, y, x], truth_at(hour)[0, y, x]
            known = not (np.isnan(truth) or np.isnan(present))
            within = region == "all" or y == 1
            if not known or not within or (subset == "MAM") != (month in (3, 4, 5)):
                continue
            mean = float(forecast[0, 1, 0, y, x]) * 30.0 + 60.0
            weight = np.cos(np.radians(float(GRID.lat[y, x])))
            quantiles = np.maximum(mean + SPREAD, 0.0)[:, None]
            width += weight * float(quantiles[-1, 0] - quantiles[0, 0])
            scores += weight * probabilities.crps(quantiles, np.array([truth]), LEVELS)[0]
            inside += weight * (abs(truth - mean) <= 30.0)
            weights += weight
    return scores / weights, inside / weights, width / weights


@pytest.mark.parametrize(("region", "subset"), [("all", "MAM"), ("north", "MAM"), ("all", "DJF")])
def test_rows_hold_the_scores_of_a_loop_over_times_and_cells(
    scorer: run.Scorer, region: str, subset: str
):
    wanted = {"forecast": "aqnet", "pollutant": "pm25", "lead_time_hours": 24}
    wanted |= {"region": region, "subset": subset}
    (row,) = [
        row
        for row in table.rows(scorer, UNITS)
        if all(row[key] == value for key, value in wanted.items())
    ]
    crps, coverage, width = looped(scorer, region, subset)
    assert row["crps"] == pytest.approx(crps, rel=1e-5)
    assert row["coverage_90"] == pytest.approx(coverage, rel=1e-9)
    assert row["width_90"] == pytest.approx(width, rel=1e-5)


def test_skill_is_against_the_simple_distributions_and_others_have_no_odds(scorer: run.Scorer):
    rows = [row for row in table.rows(scorer, UNITS) if row["subset"] == row["region"] == "all"]
    for name in TARGETS:
        group = {
            row["forecast"]: row
            for row in rows
            if row["pollutant"] == name and row["lead_time_hours"] == 12
        }
        ours = group["aqnet"]
        for reference in distributions.NAMES:
            expected = 1 - ours["crps"] / group[reference]["crps"]
            assert ours[f"crps_skill_{reference}"] == pytest.approx(expected)
        assert group["persistence"]["crps"] is None
        assert group["climatology"]["crps_skill_climatology"] == pytest.approx(0.0)
        assert set(group["persistence"]) == set(ours)


def test_a_score_that_is_none_has_no_interval(scorer: run.Scorer, monkeypatch: pytest.MonkeyPatch):
    assert scorer.odds is not None
    # these few days are too few for an interval
    monkeypatch.setattr(odds_scores, "_limits", lambda *_: (0.1, 0.2))
    odds, pm25 = copy.copy(scorer.odds), (0, 0, 0, 0)
    name = "brier_skill_climatology"
    keys = [name, f"{name}_low", f"{name}_high"]
    assert None not in [odds.columns("aqnet", pm25)[key] for key in keys]
    odds.totals = odds.totals.copy()
    odds.totals[..., -probabilities.RELIABILITY_BINS :] = 0.0  # nothing reached the threshold
    row = odds.columns("aqnet", pm25)
    assert [row[key] for key in keys] == [None] * 3
    assert None not in [row["brier"], row["brier_low"], row["brier_high"]]


def test_reliability_promises_what_was_forecast(scorer: run.Scorer):
    rows = [row for row in table.reliability(scorer) if row["subset"] == row["region"] == "all"]
    assert {row["forecast"] for row in rows} == set(FORECASTS)
    events = [row for row in rows if row["kind"] == "event" and row["forecast"] == "aqnet"]
    assert all(0.0 <= row["observed"] <= 1.0 for row in events)
    assert sum(row["share_of_forecasts"] for row in events) == pytest.approx(len(TARGETS) * 2)
    levels = [row["promised"] for row in rows if row["kind"] == "quantile"]
    assert set(levels) == set(LEVELS)
    page = odds_section.html(table.rows(scorer, UNITS))
    assert "<h2>Odds</h2>" in page and "PM<sub>2.5</sub>" in page
    assert "<td>90 % interval holds</td>" in page and "Brier score" in page
    said = odds_section.line(table.rows(scorer, UNITS))
    assert said.startswith("odds: the 90 % interval holds ") and "CRPS is" in said


def test_two_runs_are_compared_by_crps_where_both_have_odds(scorer: run.Scorer, tmp_path: Path):
    daily = daily_sums.of(scorer)
    assert daily.crps is not None
    better, plain = tmp_path / "better", tmp_path / "plain"
    for path, crps in ((tmp_path / "a", daily.crps), (better, 0.5 * daily.crps), (plain, None)):
        path.mkdir()
        daily_sums.write(path / "days.npz", daily._replace(crps=crps))
    rows = compare.compare(tmp_path / "a", better)
    assert rows[0]["crps_b"] == pytest.approx(0.5 * rows[0]["crps_a"])
    assert rows[0]["crps_difference"] == pytest.approx(rows[0]["crps_b"])
    assert "CRPS A" in compare.text(rows)
    assert "crps_a" not in compare.compare(tmp_path / "a", plain)[0]
    compare.run(tmp_path / "a", better, tmp_path / "out")
    with (tmp_path / "out" / "compare.csv").open() as file:
        assert "crps_difference_low" in next(csv.reader(file))


def test_forecast_files_and_exceedances_hold_no_concentration_below_0(tmp_path: Path):
    path, times = tmp_path / "forecasts.zarr", np.array(list(HOURS)[:1])
    zarr_files.create(path, times, WITH, GRID, UNITS)
    batch, forecast = next(batches())
    low = torch.full_like(forecast, -2.5)  # standard deviations: -15 and -5 ug/m3
    zarr_files.Writer(path, times, WITH, GRID, STATISTICS).write(batch, with_quantiles(low))
    zarr_files.commit(path)
    found = xarray.open_zarr(path).isel(time=0)
    assert (found["pm25"].values[:, MASK.numpy()] == 0).all()
    assert np.isnan(found["pm25"].values[:, ~MASK.numpy()]).all()
    quantiles = found["pm25_quantile"].values[..., MASK.numpy()]
    np.testing.assert_allclose(quantiles, np.broadcast_to([[0], [0], [15]], quantiles.shape))


def test_quantiles_of_the_simple_distributions_are_not_below_0_either(scorer: run.Scorer):
    assert scorer.odds is not None
    time, shape = HOURS[0], (2, 2, int(MASK.sum()))
    truth, pairs = np.full(shape, 2.0), np.ones(shape, bool)
    simple = {"damped_anomaly": np.full(shape, -1000.0)}
    quantiles, subsets = np.zeros((3, *shape)), np.ones((1, 2, shape[-1]), bool)
    sums = scorer.odds.of(time, quantiles, simple, pairs, truth, subsets)
    ours, damped = sums[0], sums[FORECASTS.index("damped_anomaly")]
    np.testing.assert_allclose(damped, ours)  # both say 0 at every level


def test_forecast_files_hold_quantiles_and_probabilities(tmp_path: Path):
    path, times = tmp_path / "forecasts.zarr", np.array(list(HOURS))
    zarr_files.create(path, times, WITH, GRID, UNITS)
    writer = zarr_files.Writer(path, times, WITH, GRID, STATISTICS)
    for batch, forecast in batches():
        writer.write(batch, with_quantiles(forecast))
    zarr_files.commit(path)
    found = xarray.open_zarr(path)
    assert found["quantile"].values.tolist() == list(LEVELS)
    assert found["pm25_quantile"].dims == ("time", "lead_time", "quantile", "lat", "lon")
    spread = (found["pm25_quantile"] - found["pm25"]).isel(quantile=2).values
    np.testing.assert_allclose(spread[:, :, MASK.numpy()], 30.0, rtol=1e-4)
    odds = found["pm25_exceedance"]
    assert odds.attrs["threshold"] == 75.0 and odds.attrs["units"] == "1"
    assert np.isnan(odds.values[:, :, ~MASK.numpy()]).all()
    inside = odds.values[:, :, MASK.numpy()]
    mean = found["pm25"].values[:, :, MASK.numpy()]
    np.testing.assert_allclose(
        inside, np.clip(0.5 + (mean - 75) * 0.45 / 30, 0.05, 0.95), atol=0.05
    )
