"""Curves, densities and time series of a scored model as PNG files; needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, dates
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray
from PIL import Image

from aqnet.config import Config
from aqnet.config.periods import hour_text
from aqnet.evaluation import metrics
from aqnet.evaluation.baselines import SIMPLE
from aqnet.evaluation.histograms import Records
from aqnet.evaluation.report import air_paths, maps, page
from aqnet.evaluation.report.example_forecast import Example
from aqnet.evaluation.report.page import Picture, Rows
from aqnet.files import write_beside
from aqnet.grid import Grid

# Okabe and Ito (2008): told apart with any colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "os^Dvp"
LOWEST_SKILL = -1.0  # that is drawn
LEFT_OUT = 5e-4  # share of values beyond each end of the density's axes
FEWEST_PAIRS = 100  # in a bin of the forecast, for a share to be drawn


def draw_all(
    folder: Path,
    config: Config,
    grid: Grid,
    records: Records,
    table: Rows,
    units: dict[str, str],
    shown: Example,
    origin: air_paths.Origin | None,
    history: Rows,
    weather: str | None = None,
) -> list[Picture]:
    """Write every picture below `folder`.

    Args:
        table: rows of metrics.json.
        shown: the forecast drawn on maps.
        origin: the air over a city, if the wind is known.
        history: records of the training's metrics.jsonl; may be empty.
        weather: to come, that the model was given; None where it takes none.
    """
    data = config.data
    folder.mkdir(parents=True, exist_ok=True)
    made = []

    def keep(name: str, title: str, caption: str, figure: Figure) -> None:
        path = folder / f"{name}.png"
        save(figure, path, page.given(weather))
        made.append(Picture(path, page.titled(title, weather), caption))

    caption = (
        "Skill against the best of the simple forecasts, 1 - MSE / MSE, with 95 % intervals; "
        f"dashed: against persistence. Values below {LOWEST_SKILL:.0f} lie off the panel."
    )
    keep("skill", "Skill against lead time", caption, skill(table))
    chart = maps.Chart(grid)
    what = (
        f"Forecast of {hour_text(shown.time)} UTC, the input time of median error. One scale for "
        "all times; grey: outside the domain; white: unknown"
    )
    what += "; arrows: wind at that time" if shown.wind is not None else ""
    what += "; thin lines: terrain every 1,000 m." if grid.elevation is not None else "."
    for target, name in enumerate(data.targets):
        figure = maps.draw(chart, shown, target, config, units[name])
        keep(f"map_{name}", f"Maps of {name}", what, figure)
    if origin is not None:
        name = data.targets[origin.target]
        figure = air_paths.draw(chart, origin, config, units[name])
        keep("air_paths", "Where the air comes from", air_paths.caption(chart, origin), figure)
    caption = (
        "Share of pairs whose truth reached the event threshold (dotted), by what was forecast. A "
        f"perfect forecast jumps from 0 to 1 there. Bins of at least {FEWEST_PAIRS} pairs."
    )
    if set(data.targets) & set(metrics.EVENT_THRESHOLDS):
        keep(
            "reliability", "Reliability of exceedance", caption, reliability(records, config, units)
        )
    caption = (
        "Number of pairs by forecast and truth, darker is more (logarithmic, one scale a row). The "
        f"lowest and highest {LEFT_OUT:.2%} of values lie off the panel."
    )
    keep("density", "Forecast against truth", caption, density(records, config, units))
    lead = min(range(len(data.lead_times)), key=lambda row: abs(data.lead_times[row] - 24))
    caption = (
        f"Mean over the domain at +{data.lead_times[lead]} h in the seven days of largest mean "
        "squared error."
    )
    figure = worst_week(records, config, units, table, lead)
    keep("worst_week", "Worst week of each pollutant", caption, figure)
    if any("train/loss" in record for record in history):
        caption = "Loss by optimizer step: mean squared error of normalised targets."
        keep("training", "Training curve", caption, training(history))
    return made


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


def skill(table: Rows) -> Figure:
    """Skill of every forecast that is not a simple one, a panel per pollutant."""
    whole = [row for row in table if row["region"] == "all" and row["subset"] == "all"]
    models = [name for name in _distinct(whole, "forecast") if name not in SIMPLE]
    leads = sorted(_distinct(whole, "lead_time_hours"))
    figure, panels = _panels(_distinct(whole, "pollutant"))
    for name, axes in panels.items():
        axes.axhline(0.0, color="0.5", linewidth=0.8)
        for number, model in enumerate(models):
            rows = {
                row["lead_time_hours"]: row
                for row in whole
                if (row["forecast"], row["pollutant"]) == (model, name)
            }
            at = np.array([leads.index(lead) for lead in rows]) + 0.08 * number
            look = {"color": COLOURS[number % 6], "marker": MARKERS[number % 6], "markersize": 4}
            value, low, high = (_column(rows, f"skill_best_simple{end}") for end in _LIMITS)
            below, above = np.maximum(value - low, 0.0), np.maximum(high - value, 0.0)
            axes.errorbar(at, value, [below, above], capsize=3, label=model, **look)
            axes.plot(at, _column(rows, "skill_persistence"), linestyle="--", alpha=0.6, **look)
        axes.set_xticks(range(len(leads)), [f"{lead} h" for lead in leads])
        axes.set_ylabel("skill")
        if axes.get_ylim()[0] < LOWEST_SKILL:
            axes.set_ylim(LOWEST_SKILL, 1.0)
    _legend(figure, panels)
    return figure


_LIMITS = ("", "_low", "_high")


def reliability(records: Records, config: Config, units: dict[str, str]) -> Figure:
    """How often the truth reached the event threshold, by the forecast value."""
    names = [name for name in config.data.targets if name in metrics.EVENT_THRESHOLDS]
    figure, panels = _panels(names)
    for name, axes in panels.items():
        target = config.data.targets.index(name)
        edges = records.edges()[target]
        middles = np.sqrt(edges[1:] * edges[:-1])
        for row, lead in enumerate(config.data.lead_times):
            pairs = records.pairs[row, target].sum(1)
            enough = pairs >= FEWEST_PAIRS
            enough[[0, -1]] = False  # the open bins have no middle
            share = records.exceeded[row, target][enough] / pairs[enough]
            look = {"color": COLOURS[row % 6], "marker": MARKERS[row % 6], "markersize": 3}
            axes.plot(middles[enough], share, label=f"+{lead} h", linewidth=1, **look)
        axes.axvline(metrics.EVENT_THRESHOLDS[name], color="black", linestyle=":")
        _logarithmic(axes, "x")
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(f"forecast [{maps.unit_text(units[name])}]")
        axes.set_ylabel("share that reached it")
        if not records.exceeded[:, target].any():
            axes.text(0.5, 0.5, "never reached", transform=axes.transAxes, ha="center")
    _legend(figure, panels)
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
            _logarithmic(axes, "xy", ticks)
            axes.set(xlim=ends, ylim=ends, box_aspect=1)
            axes.tick_params(labelsize=7)
            axes.set_title(f"{maps.label(name)} +{lead} h", fontsize=8)
            axes.set_xlabel(f"truth [{maps.unit_text(units[name])}]", fontsize=7)
        grid[target][0].set_ylabel("forecast", fontsize=7)
        figure.colorbar(image, ax=list(grid[target]), shrink=0.8, label="pairs")
    return figure


def worst_week(
    records: Records, config: Config, units: dict[str, str], table: Rows, lead: int
) -> Figure:
    """Domain means of truth, model and best simple forecast in the week of largest error."""
    data = config.data
    times = np.array(sorted(records.series))
    sums = np.stack([records.series[time][:, lead] for time in times])  # [N, F, T, 4]
    figure, panels = _panels(data.targets)
    for target, (name, axes) in enumerate(panels.items()):
        weight, x, y, error = np.moveaxis(sums[:, :, target], -1, 0)
        first = _worst_days(times, weight[:, 0], error[:, 0])
        week = (times // 24 >= first) & (times // 24 < first + 7) & (weight[:, 0] > 0)
        when = (times[week] + data.lead_times[lead]).astype("datetime64[h]")
        best = _best_simple(table, name, data.lead_times[lead])
        lines = [("truth", y[:, 0], "black"), ("aqnet", x[:, 0], COLOURS[0])]
        if best is not None:
            number = _distinct(table, "forecast").index(best)
            lines.append(("best simple forecast", x[:, number], COLOURS[1]))
        for kind, values, colour in lines:
            mean = values[week] / weight[week, 0] + records.mean[target]
            axes.plot(when, mean, label=kind, color=colour, marker=".", markersize=3, linewidth=1)
        axes.set_ylabel(f"[{maps.unit_text(units[name])}]")
        axes.xaxis.set_major_locator(dates.DayLocator(interval=2))
        axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(axes.xaxis.get_major_locator()))
    _legend(figure, panels)
    return figure


def training(history: Rows) -> Figure:
    """Training and validation loss by optimizer step."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(("train/loss", "validation/loss")):
        points = [(row["step"], row[name]) for row in history if row.get(name) is not None]
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(
                steps, values, color=COLOURS[number], marker=".", label=name.replace("/", " ")
            )
    _logarithmic(axes, "y")
    axes.set(xlabel="optimizer step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _worst_days(times: NDArray[np.int64], weight: maps.Values, error: maps.Values) -> int:
    """First of the seven days (of input times) of largest mean squared error.

    Weeks with less than half of the fullest week's pairs do not count.
    """
    days = times // 24 - times[0] // 24
    weights, errors = (np.bincount(days, part) for part in (weight, error))
    span = np.ones(min(7, len(weights)))
    pairs, squares = (np.convolve(part, span, mode="valid") for part in (weights, errors))
    mean = np.where(pairs >= max(pairs.max() / 2, 1e-9), squares / np.maximum(pairs, 1e-9), -1.0)
    return int(times[0] // 24 + mean.argmax())


def _best_simple(table: Rows, name: str, lead: int) -> str | None:
    wanted = {"forecast": "aqnet", "pollutant": name, "lead_time_hours": lead}
    wanted |= {"region": "all", "subset": "all"}
    rows = [row for row in table if wanted.items() <= row.items()]
    return rows[0]["best_simple"] if rows else None


def _panels(names: Iterable[str]) -> tuple[Figure, dict[str, Any]]:
    """A figure with a titled panel per name, three in a row."""
    names = list(names)
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows + 0.4), layout="constrained")
    flat = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in flat[len(names) :]:
        spare.remove()
    panels = dict(zip(names, flat, strict=False))
    for name, axes in panels.items():
        axes.set_title(maps.label(name), fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    return figure, panels


def _logarithmic(axes: Any, which: str, ticks: tuple[float, ...] = (1.0, 2.0, 5.0)) -> None:
    """Log axes with plain numbers at these ticks of every decade."""
    for name in which:
        getattr(axes, f"set_{name}scale")("log")
        axis = getattr(axes, f"{name}axis")
        axis.set_major_locator(LogLocator(subs=ticks, numticks=6))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(NullLocator())


def _legend(figure: Figure, panels: dict[str, Any]) -> None:
    handles, labels = next(iter(panels.values())).get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)


def _distinct(rows: Rows, key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def _column(rows: dict[int, dict[str, Any]], key: str) -> maps.Values:
    return np.array([np.nan if row[key] is None else row[key] for row in rows.values()])
