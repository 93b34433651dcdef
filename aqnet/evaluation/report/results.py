"""Writes the results of an evaluation: tables, sums per day, stations, pictures, the report."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aqnet import config as configs
from aqnet.checkpoint.files import Loaded
from aqnet.config import Config
from aqnet.evaluation import daily_sums
from aqnet.evaluation.metrics import EVENT_THRESHOLDS
from aqnet.evaluation.report import odds_section, places, stations_section, table
from aqnet.evaluation.report import page as report
from aqnet.evaluation.report.example_forecast import Example
from aqnet.evaluation.report.places import AtPlaces, Place, Series
from aqnet.evaluation.run import Scorer
from aqnet.evaluation.stations.stations import StationScores
from aqnet.files import sync, writing
from aqnet.grid import Grid

NOTES = (
    "all forecasts are scored over the same pairs; excluded_pairs have a truth, but no value at "
    "the input time, which the simple forecasts need",
    "no concentration is below 0: in every forecast scored here, also those not aqnet's, 0 stands "
    "in for such values; values_below_0_clipped and quantiles_below_0_clipped count aqnet's",
    "event thresholds are 24-hour limits (O3: 8-hour) applied to hourly values",
    "ioa uses the training mean in place of the sample mean",
    "intervals: 95 %, bootstrap of blocks of 10 days",
)


# what one evaluation leaves in its folder, the report last
OUTPUTS = (
    *("metrics.json", "metrics.csv", "days.npz", "reliability.csv"),
    *("stations.csv", "pictures", "forecasts.zarr"),
)
REPORT = "report.html"


class Drawing(NamedTuple):
    """What makes the forecasts that pictures show.

    Attributes:
        example: of one input time.
        inputs: all input times of the split, of which some may be scored; places: those of the
            config; series: see `places.series`.
    """

    example: Callable[[int], Example]
    inputs: NDArray[np.int64]
    places: list[Place]
    series: Callable[[NDArray[np.int64], int, list[Place]], Series]


@contextlib.contextmanager
def beside(output: Path) -> Iterator[Path]:
    """An empty folder in `output` for all results until they are whole; `publish` takes them from
    there, and what is left of it goes."""
    partial = output / "new.partial"
    with writing(output):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish(partial: Path, output: Path) -> None:
    """Put finished results in place of those of an evaluation before, of which nothing stays.

    The report goes first and comes last: where there is one, all results are of one evaluation.
    """
    with writing(output):
        (output / REPORT).unlink(missing_ok=True)
        for name in OUTPUTS:
            old, new = output / name, partial / name
            if old.is_dir():
                shutil.rmtree(old)
            else:
                old.unlink(missing_ok=True)
            if new.exists():
                new.rename(old)
        sync(output)
        (partial / REPORT).rename(output / REPORT)
        sync(output)
    written = ", ".join(name for name in OUTPUTS if (output / name).exists())
    print(f"written: {output}: {written} and {REPORT}", flush=True)


def write(
    output: Path,
    loaded: Loaded,
    scorer: Scorer,
    units: dict[str, str],
    about: dict[str, Any],
    drawing: Drawing | None,
) -> None:
    """Write everything but the forecasts into a folder, and print the table.

    Args:
        about: which samples were scored, for metrics.json and the report.
        drawing: makes the forecasts that are drawn; None for no pictures.
    """
    weather = about.get("weather")
    rows = given(weather, table.rows(scorer, units))
    known = {
        "checkpoint": str(loaded.path),
        "global_step": loaded.state["global_step"],
        **about,
        "samples": scorer.samples,
        "excluded_pairs": scorer.excluded,
        "values_below_0_clipped": int(scorer.clipped[0]),
        "quantiles_below_0_clipped": int(scorer.clipped[1]) if scorer.odds else None,
        "station_lines_left_out": scorer.stations and scorer.stations.observations.left_out,
        "climatology_filled_from_month": scorer.baselines.climatology.filled[0],
        "climatology_filled_from_all_cells": scorer.baselines.climatology.filled[1],
        "notes": list(NOTES),
    }
    table.write(output, known, rows)
    daily_sums.write(output / "days.npz", daily_sums.of(scorer, weather))
    promises = given(weather, table.reliability(scorer))
    if scorer.odds is not None:
        table.write_csv(output / "reliability.csv", promises)
    at_stations: report.Rows = []
    if scorer.stations is not None:
        at_stations = given(weather, table.rows(scorer.stations, units))
        table.write_csv(output / "stations.csv", at_stations)
    drawn: list[Any] = []
    if drawing is not None:
        from aqnet.evaluation.report.pictures import air_paths, pictures

        what = scorer.config, scorer.grid, scorer.records, rows, promises, units
        history = training_history(loaded.path.resolve().parent.parent / "metrics.jsonl")
        typical = drawing.example(scorer.records.typical_time())
        worst = drawing.example(scorer.records.worst_time(air_paths.target_of(scorer.config)))
        shown = typical, air_paths.of(scorer, worst), at_places(scorer, drawing)
        skill = scorer.skill_by_cell()
        drawn = pictures.draw_all(output / "pictures", *what, *shown, skill, history, weather)
        if scorer.stations is not None and at_stations:
            drawn.append(_stations_map(output, scorer, scorer.stations, at_stations, weather))
    settings = configs.to_dict(scorer.config)
    sections = odds_section.html(rows) + stations_section.html(at_stations, weather)
    report.write(output, known, rows, settings, drawn, sections)
    if weather is not None:
        print(f"aqnet {report.given(weather)}:", flush=True)
    print(table.skill_table(rows), flush=True)
    if scorer.clipped[0]:
        print(f"{scorer.clipped[0]} values of aqnet were below 0 and count as 0", flush=True)
    if scorer.odds is not None:
        print(odds_section.line(rows), flush=True)


def at_places(scorer: Scorer, drawing: Drawing) -> AtPlaces:
    """Forecasts of the worst week and of a usual one, at the lead time nearest to a day."""
    leads = scorer.config.data.lead_times
    hours_ahead = report.nearest_a_day(leads)
    lead = leads.index(hours_ahead)
    times, weight, error = scorer.records.errors_of(lead, 0)
    chosen = drawing.places
    if not chosen:
        chosen = places.highest(scorer.baselines.climatology.mean(0), scorer.grid)
    hours = drawing.inputs + hours_ahead
    series = [
        drawing.series(places.hours_of(week, hours), lead, chosen)
        for week in places.weeks(times + hours_ahead, weight, error)
    ]
    return AtPlaces(hours_ahead, chosen, series)


def _stations_map(
    output: Path, scorer: Scorer, scores: StationScores, rows: report.Rows, weather: str | None
) -> report.Picture:
    from aqnet.evaluation.report.pictures import maps, pictures

    leads, places = scorer.config.data.lead_times, scores.observations.places
    lead, figure = stations_section.skill_map(maps.Chart(scorer.grid), rows, places, leads)
    path = output / "pictures" / "stations.png"
    pictures.save(figure, path, report.given(weather))
    caption = (
        f"Skill of aqnet at +{lead} h against the best simple forecast at each station, 1 - MSE / "
        "MSE; above 0 aqnet is better."
    )
    return report.Picture(path, report.titled("Stations", weather), caption)


def given(weather: str | None, rows: report.Rows) -> report.Rows:
    """Rows that say which weather to come the model's forecasts were given."""
    if weather is None:
        return rows
    return [row | {"weather": weather if row["forecast"] == "aqnet" else None} for row in rows]


def training_history(path: Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl, none where there is no such file."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]  # a kill may cut the last line
    return [json.loads(line) for line in whole.splitlines()]


def can_draw(wanted: bool) -> bool:
    """Whether to draw; prints that matplotlib is missing where that is why not."""
    missing = importlib.util.find_spec("matplotlib") is None
    if missing and wanted:
        print("no pictures, because matplotlib is missing: pip install 'aqnet[maps]'", flush=True)
    return wanted and not missing


def remove_maps(path: Path) -> None:
    """Remove the maps that `draw_maps` drew of an older forecast in the Zarr store `path`."""
    with writing(path):
        for picture in path.parent.glob(f"{path.stem}_*.png"):
            picture.unlink()


def draw_maps(
    path: Path,
    config: Config,
    grid: Grid,
    units: dict[str, str],
    one: Example,
    weather: str | None = None,
) -> None:
    """Maps of one forecast, given that `weather` to come, beside its Zarr store `path`, a file per
    target, and of its odds."""
    from aqnet.evaluation.report.pictures import maps, pictures

    chart = maps.Chart(grid)
    for target, name in enumerate(config.data.targets):
        picture = path.with_name(f"{path.stem}_{name}.png")
        figure = maps.draw(chart, one, target, config, units[name])
        pictures.save(figure, picture, report.given(weather))
        print(f"written: {picture}", flush=True)
        if one.exceedance is not None and name in EVENT_THRESHOLDS:
            picture = path.with_name(f"{path.stem}_{name}_odds.png")
            figure = maps.draw_odds(chart, one, target, config, units[name])
            pictures.save(figure, picture, report.given(weather))
            print(f"written: {picture}", flush=True)
