"""Everything that a report shows as PNG files; needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from PIL import Image

from aqnet.config import Config
from aqnet.config.periods import hour_text
from aqnet.evaluation import metrics
from aqnet.evaluation.histograms import Records
from aqnet.evaluation.odds import probabilities
from aqnet.evaluation.report import names, page
from aqnet.evaluation.report.example_forecast import Example
from aqnet.evaluation.report.page import Picture, Rows
from aqnet.evaluation.report.pictures import air_paths, curves, maps
from aqnet.evaluation.report.places import AtPlaces
from aqnet.files import write_beside
from aqnet.grid import Grid

Keep = Callable[..., None]
LEFT_OUT = 5e-4  # share of values beyond each end of the density's axes
SKILLS = "RdBu"  # blue is better


def draw_all(
    folder: Path,
    config: Config,
    grid: Grid,
    records: Records,
    table: Rows,
    promises: Rows,
    units: dict[str, str],
    shown: Example,
    origin: air_paths.Origin | None,
    at_places: AtPlaces,
    by_cell: maps.Values,
    history: Rows,
    weather: str | None = None,
) -> list[Picture]:
    """Write every picture below `folder`.

    Args:
        table: rows of metrics.json; promises: of reliability.csv, none without odds.
        shown: the forecast drawn on maps.
        origin: the air over a city, if the wind is known.
        by_cell: skill in each cell, shape [K, T, H, W].
        history: records of the training's metrics.jsonl; may be empty.
        weather: to come, that the model was given; None where it takes none.
    """
    data = config.data
    folder.mkdir(parents=True, exist_ok=True)
    made = []

    def keep(
        name: str, title: str, caption: str, figure: Figure, section: page.Section = "other"
    ) -> None:
        path = folder / f"{name}.png"
        save(figure, path, page.given(weather))
        made.append(Picture(path, page.with_weather(title, weather), caption, section))

    caption = (
        "Skill is 1 - MSE / MSE of the best of the simple forecasts, with its 95 % interval, or of "
        f"persistence. Values below {curves.LOWEST_SKILL:.0f} lie off the panel."
    )
    keep("skill", "Skill against lead time", caption, curves.skill(table))
    chart = maps.Chart(grid)
    what = (
        f"Forecast of {hour_text(shown.time)} UTC, the input time of median error. One scale for "
        "all times; grey: outside the domain; white: unknown"
    )
    what += "; arrows: wind at that time" if shown.wind is not None else ""
    what += "; thin lines: terrain every 1,000 m." if grid.elevation is not None else "."
    for target, name in enumerate(data.targets):
        figure = maps.draw(chart, shown, target, config, units[name])
        keep(f"map_{name}", f"Maps of {names.in_html(name)}", what, figure)
    if origin is not None:
        name = data.targets[origin.target]
        figure = air_paths.draw(chart, origin, config, units[name])
        keep("air_paths", "Where the air comes from", air_paths.caption(chart, origin), figure)
    known = [name for name in data.targets if name in metrics.EVENT_THRESHOLDS]
    often = records.exceeded.sum((0, 2)) >= curves.RAREST * records.pairs.sum((0, 2, 3))
    events = [name for name in known if often[data.targets.index(name)]]
    caption = (
        "Share of pairs whose truth reached the event threshold (dotted), by what was forecast. A "
        f"perfect forecast jumps from 0 to 1 there. Bins of at least {curves.FEWEST_PAIRS} pairs."
    )
    if never := [names.plain(name) for name in known if name not in events]:
        caption += f" Reached in less than {curves.RAREST:.1%}: {', '.join(never)}."
    if events:
        figure = curves.reliability(records, config, units, events)
        keep("reliability", "Reliability of exceedance", caption, figure)
    if promises:
        _odds(keep, table, promises, config)
    _places(keep, at_places, config, units)
    caption = (
        "Skill against the simple forecast that is best over the whole domain, in each cell over "
        "all scored times: blue where aqnet is better. In the titles: share of the cells where it "
        "is. With few scored times much of the pattern is chance."
    )
    keep("skill_map", "Where it helps", caption, skill_map(chart, by_cell, config))
    caption = (
        "Number of pairs by forecast and truth, darker is more (logarithmic, one scale a row). The "
        f"lowest and highest {LEFT_OUT:.2%} of values lie off the panel."
    )
    keep("density", "Forecast against truth", caption, density(records, config, units))
    if any("train/loss" in record for record in history):
        caption = "Loss by optimizer step: mean squared error of normalised targets."
        keep("training", "Training curve", caption, curves.training(history), "training")
    return made


def _odds(keep: Keep, table: Rows, promises: Rows, config: Config) -> None:
    """Coverage of intervals, and what came of what was promised."""
    if intervals := list(probabilities.intervals(config.model.quantiles)):
        caption = "Share of the truth inside the central intervals, with its 95 % interval."
        figure = curves.coverage(table, intervals)
        keep("coverage", "Coverage of the intervals", caption, figure, "odds")
    caption = "Share of the truth at or below each quantile; on the dotted line it is as promised."
    figure = curves.promised(promises, "quantile")
    keep("quantiles", "Reliability of the quantiles", caption, figure, "odds")
    shown = curves.promises_of(promises, "event")
    # a pollutant that is never promised more than the lowest class says would be a single point
    lowest = 1 / probabilities.RELIABILITY_BINS
    events = {row["pollutant"] for row in shown if row["promised"] >= lowest}
    shown = [row for row in shown if row["pollutant"] in events]
    if shown:
        caption = (
            "How often the event threshold was reached, by the probability that was forecast, in "
            f"classes of at least {curves.RAREST:.1%} of the forecasts; pollutants that have two."
        )
        figure = curves.promised(shown, "event")
        keep("odds", "Reliability of the probability of exceedance", caption, figure, "odds")


def _places(keep: Keep, at_places: AtPlaces, config: Config, units: dict[str, str]) -> None:
    """Two weeks at each place."""
    for number, place in enumerate(at_places.places):
        for week, series in zip(("worst", "usual"), at_places.weeks, strict=False):
            title = f"{escape(place.name)}: {week} week, +{at_places.lead_time} h"
            first, last = (hour_text(hour) for hour in series.hours[[0, -1]])
            caption = f"{first} to {last} UTC, forecast {at_places.lead_time} h before."
            figure = curves.place(series, number, config, units)
            keep(f"place_{number + 1}_{week}", title, caption, figure, "place")


def save(figure: Figure, path: Path, above: str = "") -> None:
    """Write a PNG of at most 256 colours, a third of the size of one of all colours; `above` is a
    line over the figure."""
    buffer = io.BytesIO()
    look: dict[str, Any] = {}
    if above:  # outside the figure, so that no layout has to make room for it
        figure.text(0.5, 1.0, above, ha="center", va="bottom", fontsize=8)
        look = {"bbox_inches": "tight"}
    figure.savefig(buffer, dpi=100, **look)
    image = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    with write_beside(path) as file:
        image.save(file, format="PNG", optimize=True)


def skill_map(chart: maps.Chart, by_cell: maps.Values, config: Config) -> Figure:
    """Skill [K, T, H, W] of each cell: a row per target, a column per lead time, one scale."""
    data, scale = config.data, Normalize(-1.0, 1.0)
    height = 2.2 * np.ptp(chart.limits[1]) * chart.aspect / np.ptp(chart.limits[0])
    rows, columns = len(data.targets), len(data.lead_times)
    figure = Figure(figsize=(2.4 * columns, (height + 0.28) * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for (row, column), axes in np.ndenumerate(grid):
        values = by_cell[column, row]
        image = chart.field(axes, np.clip(values, -1.0, 1.0), SKILLS, scale)
        axes.set(xticks=[], yticks=[])
        known = values[np.isfinite(values)]
        better = f", better in {(known > 0).mean():.0%}" if len(known) else ""
        name = names.in_picture(data.targets[row])
        axes.set_title(f"{name} +{data.lead_times[column]} h{better}", fontsize=8)
    bar = figure.colorbar(
        image, ax=grid, extend="min", location="bottom", shrink=0.5, aspect=40, pad=0.01
    )
    bar.set_label("skill", fontsize=8)
    return figure


def density(records: Records, config: Config, units: dict[str, str]) -> Figure:
    """Pairs by forecast and truth: a row per pollutant, a column per lead time."""
    data = config.data
    size = 2.2 * len(data.lead_times) + 1.0, 2.1 * len(data.targets) + 0.3
    figure = Figure(figsize=size, layout="constrained")
    rows, columns = len(data.targets), len(data.lead_times)
    grid = figure.subplots(rows, columns, squeeze=False, sharey="row")
    shades = colormaps[maps.SHADES].with_extremes(bad="white")
    for target, name in enumerate(data.targets):
        pairs, edges = records.pairs[:, target], records.edges()[target]
        values = np.cumsum(pairs.sum((0, 1)) + pairs.sum((0, 2)))
        first, last = np.searchsorted(values, values[-1] * np.array([LEFT_OUT, 1.0 - LEFT_OUT]))
        ends = edges[first], edges[last + 1]
        extent = ends[1] / ends[0]
        ticks = (1.0, 2.0, 5.0) if extent < 10 else (1.0, 3.0) if extent < 300 else (1.0,)
        for row, lead in enumerate(data.lead_times):
            axes = grid[target][row]
            scale = LogNorm(1, max(2, pairs.max()))
            counts = np.ma.masked_equal(pairs[row], 0)
            image = axes.pcolormesh(edges, edges, counts, cmap=shades, norm=scale, rasterized=True)
            axes.plot(ends, ends, color="black", linewidth=0.6)
            curves.logarithmic(axes, "xy", ticks)
            axes.set(xlim=ends, ylim=ends, box_aspect=1)
            axes.tick_params(labelsize=7)
            axes.set_title(f"{names.in_picture(name)} +{lead} h", fontsize=8)
            axes.set_xlabel(f"truth [{names.unit(units[name])}]", fontsize=7)
        grid[target][0].set_ylabel("forecast", fontsize=7)
        figure.colorbar(image, ax=list(grid[target]), shrink=0.8, label="pairs")
    return figure
