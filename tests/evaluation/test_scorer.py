"""Scorer and rows: which pairs count, seasons, other people's forecasts, against plain loops."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aqnet import config as configs
from aqnet.batch import Batch, Forecast, Statistics
from aqnet.errors import AqnetError
from aqnet.evaluation import baselines, metrics, run
from aqnet.evaluation.report import table
from aqnet.grid import Grid

TARGETS, LEADS, SHAPE = ("pm25", "no2"), (12, 24), (2, 4)
FIRST = int(np.datetime64("2018-02-27T00", "h").astype(int))
HOURS = range(FIRST, FIRST + 72, 6)
UNITS = dict.fromkeys(TARGETS, "ug m-3")
CONFIG = configs.from_dict(
    {
        "run_dir": "run",
        "data": {
            "stores": "stores",
            "variables": ["pm25", "no2", "temp"],
            "targets": list(TARGETS),
            "lead_times": list(LEADS),
            "split": {"train": ["2017"], "validation": ["2018-01"], "test": ["2018-02"]},
        },
        "model": {"scan": "raster", "transport": "off", "terrain": {"enabled": False}},
        "train": {"max_steps": 1},
    },
    "here",
)
MASK = torch.tensor([[True, True, False, True], [True, False, True, True]])
GRID = Grid(
    torch.tensor([30.0, 50.0], dtype=torch.float64)[:, None].expand(SHAPE),
    torch.tensor([100.0, 101.0, 102.0, 103.0], dtype=torch.float64).expand(SHAPE),
    None,
    MASK,
)
STATISTICS = Statistics(("pm25", "no2", "temp"), (60.0, 20.0, 280.0), (30.0, 10.0, 5.0))


def truth_at(hour: int) -> np.ndarray:
    values = np.random.default_rng(int(hour)).gamma(3.0, 25.0, (2, *SHAPE)).astype(np.float32)
    values[0, 0, 0] = np.nan if hour % 24 == 6 else values[0, 0, 0]
    return values


def observed_at(hour: int) -> baselines.Observed:
    wind = np.random.default_rng(int(hour) + 3).normal(0, 5, (2, *SHAPE)).astype(np.float32)
    nothing = np.full((3, 2, *SHAPE), np.nan, np.float32)
    return baselines.Observed(truth_at(hour), wind, nothing)


class ExternalForecast:
    """A forecast of PM2.5 alone, which has no value in the first cell at 12 h."""

    name = "cams"

    def forecast(self, time: int) -> np.ndarray:
        values = np.random.default_rng(int(time) + 9).gamma(3.0, 25.0, (2, 2, int(MASK.sum())))
        values[0, 0, 0] = np.nan
        values[:, 1] = np.nan
        return values


def fitted() -> baselines.Baselines:
    training = range(FIRST - 24 * 40, FIRST + 24 * 4)
    stream = lambda wanted: ((hour, truth_at(hour)) for hour in training)  # noqa: E731
    times = np.array(training)[:-24]
    return baselines.fit(stream, times, observed_at, truth_at, GRID, LEADS, np.array(HOURS))


def batches() -> Iterator[tuple[Batch, torch.Tensor]]:
    """Each input time with its normalised forecast."""
    mean, std = (part.float()[:, None, None] for part in STATISTICS.of(TARGETS))
    for hour in HOURS:
        truth = torch.from_numpy(np.stack([truth_at(hour + lead) for lead in LEADS]))
        targets = ((truth - mean) / std)[None]
        mask = targets.isfinite() & MASK
        batch = Batch(targets[:, 0], torch.tensor([hour]), torch.tensor([LEADS]), targets, mask)
        yield batch, (torch.from_numpy(model_at(hour)) - mean)[None] / std


def scored(simple: baselines.Baselines, others: tuple[ExternalForecast, ...] = ()) -> run.Scorer:
    regions = {"north": GRID.lat.numpy() > 40}
    scorer = run.Scorer(CONFIG, GRID, STATISTICS, simple, observed_at, run.Besides(regions, others))
    for batch, forecast in batches():
        for item in scorer.score(batch, Forecast(forecast)):
            scorer.add(item)
    return scorer


def model_at(hour: int) -> np.ndarray:
    return np.random.default_rng(int(hour) + 5).gamma(3.0, 25.0, (2, 2, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def simple() -> baselines.Baselines:
    return fitted()


@pytest.mark.parametrize("name", ["aqnet", "damped_persistence", "cams"])
def test_concentrations_forecast_below_0_count_as_0_whoever_made_them(
    simple: baselines.Baselines, name: str, monkeypatch: pytest.MonkeyPatch
):
    scores = {}
    for value in (-7.0, 0.0):
        like = np.full((2, 2, int(MASK.sum())), value)
        other = ExternalForecast()
        monkeypatch.setattr(other, "forecast", lambda time, like=like: like)
        weights = np.stack([np.full((2, 2), value), np.zeros((2, 2))], axis=-1)  # of 1 and x
        fitted = replace(simple, weights={**simple.weights, "damped_persistence": weights})
        besides = run.Besides({}, (other,))
        scorer = run.Scorer(CONFIG, GRID, STATISTICS, fitted, observed_at, besides)
        for batch, _ in batches():
            mean, std = (part.float()[:, None, None] for part in STATISTICS.of(TARGETS))
            forecast = ((value - mean) / std).expand_as(batch.targets)
            for item in scorer.score(batch, Forecast(forecast)):
                scorer.add(item)
        row = scorer.forecasts.index(name)
        scores[value] = scorer.totals[row, ..., 0, 0, :]
        if value < 0:  # every lead time, target and cell of every input time
            assert scorer.clipped.tolist() == [len(HOURS) * like.size, 0]
    np.testing.assert_allclose(scores[-7.0], scores[0.0], rtol=1e-6, atol=1e-6)
    assert scores[0.0][..., 0].all()  # there are pairs


def test_truth_below_0_is_scored_as_it_is(simple: baselines.Baselines):
    """Instruments report it; only forecasts are mended."""
    scorer = run.Scorer(CONFIG, GRID, STATISTICS, simple, observed_at, run.Besides({}, ()))
    mean, std = (part.float()[:, None, None] for part in STATISTICS.of(TARGETS))
    batch, _ = next(batches())
    truth = torch.where(batch.mask, (-2.0 - mean) / std, torch.nan)
    zero = (-mean / std).expand_as(truth)
    (item,) = scorer.score(batch._replace(targets=truth), Forecast(zero))
    scorer.add(item)
    sums = scorer.totals[scorer.forecasts.index("aqnet"), ..., 0, 0, :]
    errors = sums[..., metrics.SUMS.index("ee")] / sums[..., metrics.SUMS.index("w")]
    np.testing.assert_allclose(errors, 4.0, rtol=1e-5)


def looped(wanted: Callable[[int, int, int], bool], target: int, row: int) -> tuple[int, float]:
    """n and RMSE of the model by a loop over times and cells, weighted by cos(latitude)."""
    n, squares, weights = 0, 0.0, 0.0
    for hour in HOURS:
        for y, x in zip(*np.nonzero(MASK.numpy()), strict=True):
            truth, present = truth_at(hour + LEADS[row])[target, y, x], truth_at(hour)[target, y, x]
            if np.isnan(truth) or np.isnan(present) or not wanted(hour, y, x):
                continue
            weight = np.cos(np.radians(float(GRID.lat[y, x])))
            squares += weight * float(model_at(hour)[row, target, y, x] - truth) ** 2
            weights += weight
            n += 1
    return n, np.sqrt(squares / weights)


def find(rows: list[dict], **wanted: object) -> dict:
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


def test_rows_agree_with_a_loop_over_times_and_cells(simple: baselines.Baselines):
    rows = table.rows(scored(simple), UNITS)
    ours = {"forecast": "aqnet", "pollutant": "pm25", "lead_time_hours": 24}
    month = {"DJF": (12, 1, 2), "MAM": (3, 4, 5)}
    for region, subset in (("all", "all"), ("north", "all"), ("all", "DJF"), ("all", "MAM")):

        def wanted(hour: int, y: int, x: int, region: str = region, subset: str = subset) -> bool:
            inside = region == "all" or y == 1
            at = baselines.month_of(hour + 24) + 1
            return inside and (subset == "all" or at in month[subset])

        row = find(rows, **ours, region=region, subset=subset)
        assert (row["n"], row["rmse"]) == pytest.approx(looped(wanted, 0, 1), rel=1e-5)


def test_sudden_changes_are_high_and_differ_from_the_input_time(simple: baselines.Baselines):
    row = find(
        table.rows(scored(simple), UNITS),
        forecast="aqnet",
        pollutant="no2",
        lead_time_hours=12,
        region="all",
        subset="sudden_change",
    )

    def wanted(hour: int, y: int, x: int) -> bool:
        later, now = truth_at(hour + 12)[0, y, x], truth_at(hour)[0, y, x]
        return bool(later >= 75 and abs(later - now) >= 20)

    assert (row["n"], row["rmse"]) == pytest.approx(looped(wanted, 1, 0), rel=1e-5)


def test_forecast_that_lacks_pairs_is_never_beside_scores_of_other_pairs(
    simple: baselines.Baselines,
):
    alone, rows = (
        table.rows(scored(simple), UNITS),
        table.rows(scored(simple, (ExternalForecast(),)), UNITS),
    )
    common = [row for row in rows if row["subset"] == "common_cams"]
    # 24 h is whole, so it stands in every subset; 12 h lacks a cell; NO2 is not there at all
    assert {(row["pollutant"], row["lead_time_hours"]) for row in common} == {("pm25", 12)}
    assert {row["forecast"] for row in common} == {"aqnet", *baselines.SIMPLE, "cams"}
    groups: dict[tuple, set[int]] = {}
    for row in rows:
        keys = ("pollutant", "lead_time_hours", "region", "subset")
        groups.setdefault(tuple(row[key] for key in keys), set()).add(row["n"])
    assert all(len(numbers) == 1 for numbers in groups.values())
    whole = [row for row in rows if row["region"] == "all" and row["subset"] == "all"]
    cams = [row for row in whole if row["forecast"] == "cams"]
    assert [(row["pollutant"], row["lead_time_hours"]) for row in cams] == [("pm25", 24)]
    others = [row for row in rows if row["forecast"] != "cams" and row["subset"] != "common_cams"]
    assert others == alone

    text = table.skill_table(rows)
    assert "over the pairs alone that cams has" in text
    assert f"{find(common, forecast='cams', region='all')['rmse']:11.2f}" in text

    def wanted(hour: int, y: int, x: int) -> bool:
        return (y, x) != (0, 0)

    ours = find(common, forecast="aqnet", region="all")
    assert (ours["n"], ours["rmse"]) == pytest.approx(looped(wanted, 0, 0), rel=1e-5)


def test_regions_are_masks_by_name(tmp_path: Path):
    domain, path = MASK.numpy(), tmp_path / "regions.npz"
    assert run.read_regions(None, domain) == {}
    north = np.array([[0, 0, 0, 0], [1, 1, 1, 1]])
    np.savez(path, north=north)
    assert run.read_regions(str(path), domain)["north"].tolist() == (north == 1).tolist()
    for masks, said in (
        ({"west": north[:, :3]}, r"'west' has shape \(2, 3\), the grid \(2, 4\)"),
        ({"sea": ~domain}, "'sea' has no cell of the domain"),
        ({"all": north}, "'all' is the name of the whole domain"),
    ):
        np.savez(path, **masks)
        with pytest.raises(AqnetError, match=said):
            run.read_regions(str(path), domain)


@pytest.mark.parametrize("kind", ["none", "text", "array", "cut"])
def test_file_that_holds_no_regions_is_one_line(tmp_path: Path, kind: str):
    path = tmp_path / "regions.npz"
    if kind == "text":
        path.write_text("north")
    elif kind != "none":
        with path.open("wb") as file:
            np.save(file, MASK) if kind == "array" else np.savez(file, north=MASK)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(AqnetError, match=r"regions\.npz: cannot read the regions"):
        run.read_regions(str(path), MASK.numpy())


def test_draw_is_ascending_and_shared_by_models_with_other_input_times():
    times = FIRST + np.arange(2000)
    drawn = run.drawn(times, 50, seed=42)
    assert len(drawn) == 50 and (np.diff(drawn) > 0).all()
    np.testing.assert_array_equal(drawn, run.drawn(times, 50, seed=42))
    assert not np.array_equal(drawn, run.drawn(times, 50, seed=43))
    later = run.drawn(times[24:], 50, seed=42)  # a model that needs the day before
    assert set(drawn[drawn >= times[24]]) <= set(later)
    np.testing.assert_array_equal(run.drawn(times, 5000, seed=42), times)


def test_skill_of_a_cell_is_that_of_a_loop_over_times(simple: baselines.Baselines):
    scorer = scored(simple)
    ours = {"forecast": "aqnet", "pollutant": "no2", "lead_time_hours": 24}
    best = find(table.rows(scorer, UNITS), **ours, region="all", subset="all")["best_simple"]
    squares = np.zeros(2)
    for hour in HOURS:
        truth = truth_at(hour + 24)[1, 0, 3]  # the third cell of the domain
        reference = simple.forecasts(hour, observed_at(hour))[best][1, 1, 2]
        squares += np.square([model_at(hour)[1, 1, 0, 3] - truth, reference - truth])
    found = scorer.skill_by_cell()
    assert found[1, 1, 0, 3] == pytest.approx(1.0 - squares[0] / squares[1], rel=1e-4)
    assert found.shape == (2, 2, *SHAPE) and np.isnan(found[..., 0, 2]).all()
