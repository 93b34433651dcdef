"""Maps lie where they should, and every picture is made of any grid."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from aqnet.batch import Batch, Forecast, Statistics
from aqnet.evaluation import metrics
from aqnet.evaluation.baselines import SIMPLE, Observed, transport
from aqnet.evaluation.histograms import Records
from aqnet.evaluation.report import example_forecast, places, results
from aqnet.evaluation.report.pictures import air_paths, curves, maps, pictures
from aqnet.grid import Grid
from tests.conftest import run
from tests.data.worlds import config
from tests.evaluation.report.test_page import row

MEAN, STD = (60.0, 50.0), (20.0, 30.0)  # of o3, pm25


def degrees(rows: int, columns: int) -> Grid:
    lat, lon = torch.meshgrid(
        torch.linspace(50, 20, rows, dtype=torch.float64),
        torch.linspace(80, 130, columns, dtype=torch.float64),
        indexing="ij",
    )
    return Grid(lat, lon, 3000 * torch.rand(lat.shape), torch.rand(lat.shape) > 0.2)


def rotated(rows: int, columns: int) -> Grid:
    """A grid whose rows do not follow the parallels."""
    grid = degrees(rows, columns)
    return Grid(grid.lat + 0.2 * (grid.lon - 105), grid.lon, None, grid.mask)


def test_middle_of_a_projected_grid_has_true_distances_and_directions():
    chart = maps.Chart(rotated(7, 9))
    lat, lon = (np.array(value) for value in chart.middle)
    assert np.allclose(chart.project(lat, lon), 0.0)
    x, y = chart.project(lat + 1.0, lon)
    assert abs(x) < 1e-9 and y == pytest.approx(np.radians(1.0) * 6371.0, rel=1e-4)
    x, y = chart.project(lat, lon + 1.0)
    assert x == pytest.approx(np.radians(1.0) * 6371.0 * np.cos(np.radians(lat)), rel=1e-3)


def test_projection_keeps_areas():
    chart = maps.Chart(rotated(7, 9))
    for lat, lon in ((25.0, 85.0), (50.0, 130.0)):
        corners = [(lat, lon), (lat, lon + 0.1), (lat + 0.1, lon + 0.1), (lat + 0.1, lon)]
        x, y = np.array([chart.project(np.array(a), np.array(b)) for a, b in corners]).T
        area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
        sines = np.sin(np.radians(lat + 0.1)) - np.sin(np.radians(lat))
        assert area == pytest.approx(6371.0**2 * np.radians(0.1) * sines, rel=1e-4)


def test_arrows_point_along_the_ground():
    chart = maps.Chart(rotated(7, 9))
    ones, zeros = np.ones(chart.x.shape), np.zeros(chart.x.shape)
    here, step = np.stack([chart.x, chart.y]), 1e-3
    for u, v, lat, lon in ((zeros, ones, step, 0.0), (ones, zeros, 0.0, step)):
        there = np.stack(chart.project(chart.lat + lat, chart.lon + lon))
        moved = (there - here) / np.hypot(*(there - here))
        # east is only as perpendicular to north as an equal-area projection keeps angles
        assert np.abs(np.stack(chart.turned(u, v)) - moved).max() < (1e-9 if lat else 0.1)


def test_grid_across_the_date_line_is_drawn_in_one_piece():
    grid = degrees(3, 4)
    lon = (grid.lon + 75.0 + 180.0) % 360.0 - 180.0  # 155 to -155
    chart = maps.Chart(Grid(grid.lat, lon, None, grid.mask))
    assert np.all(np.diff(chart.x, axis=1) > 0)
    assert np.ptp(chart.limits[0]) < 70


def test_corners_surround_their_cells():
    chart = maps.Chart(degrees(3, 4))
    x, y = chart.corners
    assert x.shape == y.shape == (4, 5)
    assert np.allclose((x[1:, 1:] + x[:-1, :-1]) / 2, chart.x)
    assert np.allclose((y[1:, 1:] + y[:-1, :-1]) / 2, chart.y)


def test_outlines_lie_where_the_coasts_are():
    points = np.concatenate(maps.outlines()["coasts"])
    for name, lon, lat in (
        ("Shanghai", 121.9, 31.1),
        ("Lisbon", -9.4, 38.7),
        ("Cape", 20.0, -34.8),
    ):
        assert np.hypot(*(points - (lon, lat)).T).min() < 0.6, name
    for name, lon, lat in (("Tibet", 88.0, 32.0), ("Pacific", -140.0, 10.0)):
        assert np.hypot(*(points - (lon, lat)).T).min() > 5.0, name
    steps = [np.abs(np.diff(line[:, 0])).max(initial=0.0) for line in maps.outlines()["coasts"]]
    assert max(steps) < 30.0, "no line crosses the map"


def test_example_is_in_physical_units_and_hides_truth_outside_the_mask(tmp_path: Path):
    torch.manual_seed(0)
    truth, mask = torch.rand(1, 2, 2, 3, 4), torch.rand(1, 2, 2, 3, 4) > 0.3
    batch = Batch(torch.rand(1, 5, 3, 4), torch.tensor([7]), torch.tensor([[3, 24]]), truth, mask)
    statistics = Statistics(("o3", "pm25"), MEAN, STD)
    forecast = torch.full((1, 2, 2, 3, 4), 2.0)
    shown = example_forecast.of(
        batch, Forecast(forecast), statistics, config(tmp_path), lambda hour: None
    )
    assert shown.wind is None and shown.truth is not None
    assert np.allclose(shown.forecast[:, 0], 100.0) and np.allclose(shown.forecast[:, 1], 110.0)
    assert np.array_equal(np.isfinite(shown.truth), mask[0].numpy())
    assert np.nanmax(shown.truth[:, 0]) < 80.0


@pytest.mark.parametrize(
    "grid", [degrees(6, 9), rotated(5, 7), degrees(1, 4)], ids=["degrees", "rotated", "row"]
)
def test_every_picture_is_made_and_says_which_weather_was_given(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    generator = np.random.default_rng(0)
    settings = config(tmp_path)
    records = Records(settings, np.array(MEAN), np.array([160.0, 75.0]))
    records.count(*generator.lognormal(4, 1, (2, 2, 2, 500)), np.ones((2, 2, 500), dtype=bool))
    for time in range(0, 400, 12):
        sums = generator.random((7, 2, 2, 1, 2, len(metrics.SUMS)))
        records.keep(time, sums)
    table = [
        {**row(name, pollutant, 5.0), "lead_time_hours": lead, "best_simple": "persistence"}
        | {"skill_persistence": 0.1}
        for name in ("aqnet", *SIMPLE, "cams")
        for pollutant in ("o3", "pm25")
        for lead in (3, 24)
    ]
    fields = generator.lognormal(4, 1, (2, 2, 2, *grid.shape))
    fields[1, 0] = np.nan  # a lead time without any truth
    shown = example_forecast.Example(
        0, fields[0], fields[1], generator.normal(0, 5, (2, 2, *grid.shape))
    )
    row_, column = np.argwhere(grid.mask.numpy())[0].tolist()
    values, wind, *recent = generator.normal(0, 5, (5, 2, *grid.shape)).astype(np.float32)
    observed = Observed(values, wind, np.stack(recent))
    air = transport.Air(grid, (3, 24), np.ones(2), np.zeros(2))
    paths = air.paths(observed.wind, row_, column)
    origin = air_paths.Origin(shown, 1, row_, column, observed, paths, np.ones(2))
    units = dict.fromkeys(("o3", "pm25"), "ug m-3")
    history = [{"step": 1, "train/loss": 0.5}, {"step": 2, "train/loss": None}]
    values = generator.lognormal(4, 1, (7, 2, 2))
    week = places.Series(np.arange(0, 21, 3), values, values + 1, np.zeros((7, 0, 2, 2)))
    at = places.AtPlaces(24, [places.Place("<b>", 0), places.Place("B", 1)], [week, week])
    by_cell = generator.normal(0, 1, (2, 2, *grid.shape))
    folder = tmp_path / "pictures"
    given = settings, grid, records, table, [], units, shown, origin, at, by_cell, history
    above = []

    def save(figure: Figure, path: Path, text: str) -> None:
        above.append(text)
        real(figure, path, text)

    real = pictures.save
    monkeypatch.setattr(pictures, "save", save)
    told = pictures.draw_all(tmp_path / "told", *given, "persisted")
    assert set(above) == {"given the input time's weather, held"} and len(above) == len(told)
    assert all("given the input time&#x27;s weather, held" in picture.title for picture in told)
    above.clear()
    made = pictures.draw_all(folder, *given)
    assert set(above) == {""}
    names = ["skill", "map_o3", "map_pm25", "air_paths", "reliability"]
    names += ["place_1_worst", "place_1_usual", "place_2_worst", "place_2_usual"]
    names += ["skill_map", "density", "training"]
    assert made[5].title == "&lt;b&gt;: worst week, +24 h" and made[5].section == "place"
    assert made[5].caption == "1970-01-01 00:00 to 1970-01-01 18:00 UTC, forecast 24 h before."
    assert [picture.path.stem for picture in made] == names
    assert all(2_000 < picture.path.stat().st_size < 300_000 for picture in made)
    assert sorted(tmp_path.glob("pictures/*")) == sorted(picture.path for picture in made)


def test_paths_lead_from_the_cell_to_where_its_air_is_at_the_input_time():
    grid = degrees(41, 51)
    air = transport.Air(grid, (3, 24), np.array([1.0, 2.0]), np.array([0.0, 90.0]))
    wind = np.zeros((2, *grid.shape), np.float32)
    wind[1] = 10.0  # from the south; row 0 is the northern edge
    short, long = air.paths(wind, 20, 25)
    assert short[0].tolist() == long[0].tolist() == [20.0, 25.0]
    steps = 3 * 3600 * 10.0 / (np.radians(0.75) * 6_371_000.0)
    assert short[-1] == pytest.approx([20.0 + steps, 25.0], rel=1e-3)
    # turned counter-clockwise by 90 degrees it comes from the east, over twice as many metres
    assert long[-1][0] == pytest.approx(20.0, abs=0.1)
    metres = np.radians(1.0) * np.cos(np.radians(35.0)) * 6_371_000.0
    assert long[-1][1] == pytest.approx(25.0 + 2 * 24 * 3600 * 10.0 / metres, rel=1e-2)
    chart = maps.Chart(grid)
    x, y = air_paths._on_paper(chart, short)
    assert (x[0], y[0]) == pytest.approx((chart.x[20, 25], chart.y[20, 25]))
    assert y[-1] == pytest.approx(y[0] - 0.75 * steps, rel=1e-3)


def test_worst_time_is_that_of_largest_mean_error_with_enough_pairs(tmp_path: Path):
    records = Records(config(tmp_path), np.array(MEAN), np.array([160.0, 75.0]))
    for time, (weight, error) in {5: (10, 3.0), 6: (10, 9.0), 7: (10, 4.0), 8: (1, 50.0)}.items():
        sums = np.zeros((5, 2, 2, 1, 2, len(metrics.SUMS)))
        sums[..., metrics.SUMS.index("w")] = weight
        sums[0, :, 1, ..., metrics.SUMS.index("ee")] = error * weight
        records.keep(time, sums)
    assert records.worst_time(1) == 6


def test_interval_that_rounding_puts_beside_its_value_is_drawn():
    limits = {"skill_best_simple": 0.1, "skill_best_simple_low": 0.1 + 1e-16}
    limits |= {"skill_best_simple_high": 0.1 - 1e-16, "skill_persistence": 0.1}
    assert curves.skill([{**row("aqnet", "o3", 5.0), **limits}]).axes


def test_legend_of_the_skill_picture_names_both_lines_of_a_model():
    limits = dict.fromkeys(("skill_best_simple_low", "skill_best_simple_high"), 0.1)
    table = [{**row("aqnet", "o3", 5.0), **limits, "skill_persistence": 0.2}]
    (legend,) = curves.skill(table).legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert sorted(texts) == ["aqnet against best simple", "aqnet against persistence"]


def test_pictures_of_odds_show_what_was_promised_and_what_came():
    whole = {"forecast": "aqnet", "pollutant": "o3", "lead_time_hours": 12}
    whole |= {"region": "all", "subset": "all"}
    held = {"coverage_90": 0.8, "coverage_90_low": 0.7, "coverage_90_high": 0.85}
    (axes,) = curves.coverage([whole | held], ["90"]).axes
    labels = axes.get_legend_handles_labels()[1]
    assert sorted(labels) == ["90 % interval", "promised: 90 %"]
    rows = [
        {**whole, "kind": kind, "share_of_forecasts": share, "promised": said, "observed": came}
        for kind, share, said, came in (
            *(("event", 0.9, 0.1, 0.2), ("event", 1e-6, 0.9, 0.1), ("quantile", 1.0, 0.5, 0.4)),
            ("event", 0.1, 0.6, 0.7),
        )
    ]
    (axes,) = curves.promised(rows, "event").axes
    line = axes.get_lines()[1]
    assert line.get_xdata().tolist() == [0.1, 0.6] and line.get_ydata().tolist() == [0.2, 0.7]


def test_reliability_has_a_panel_per_pollutant_that_reached_its_threshold(tmp_path: Path):
    records = Records(config(tmp_path), np.array(MEAN), np.array([160.0, 75.0]))
    truth = np.full((2, 2, 500), 80.0)  # of o3, below its threshold; of pm25, above it
    records.count(truth, truth, np.ones(truth.shape, dtype=bool))
    units = dict.fromkeys(("o3", "pm25"), "ug m-3")
    figure = curves.reliability(records, config(tmp_path), units, ["pm25"])
    assert [axes.get_title() for axes in figure.axes] == ["PM$_{2.5}$"]
    assert figure.axes[0].get_xlabel() == "forecast [µg m⁻³]"


def test_training_history_does_without_a_line_that_is_cut(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    assert results.training_history(path) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "train/lo')
    assert results.training_history(path) == [{"step": 1}, {"step": 2}]


def test_without_matplotlib_evaluate_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not results.can_draw(wanted=True)
    assert capsys.readouterr().out.splitlines() == [
        "no pictures, because matplotlib is missing: pip install 'aqnet[maps]'"
    ]
    assert not results.can_draw(wanted=False)
    assert capsys.readouterr().out == ""
    run("-c", "import sys, evaluate, train; assert 'matplotlib' not in sys.modules")


def test_a_line_over_a_picture_is_in_the_file_and_moves_nothing_inside(tmp_path: Path):
    heights = []
    for name, above in (("plain", ""), ("told", "without weather to come")):
        figure = Figure(figsize=(3, 2))
        figure.add_axes((0.0, 0.0, 1.0, 1.0), xticks=[], yticks=[]).set_facecolor("black")
        pictures.save(figure, tmp_path / f"{name}.png", above)
        image = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))
        dark = np.flatnonzero((image < 128).mean(1) > 0.8)
        heights.append((len(image), len(dark), dark[0]))
    (plain, inside, _), (told, still, first) = heights
    assert told > plain + 5 and first > 5 and abs(still - inside) <= 2
