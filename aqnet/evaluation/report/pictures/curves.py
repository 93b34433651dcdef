"""Skill, reliability, coverage, places and training as curves; needs matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib import dates
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from aqnet.config import Config
from aqnet.evaluation import metrics
from aqnet.evaluation.baselines import SIMPLE
from aqnet.evaluation.histograms import Records
from aqnet.evaluation.odds import probabilities
from aqnet.evaluation.report import names
from aqnet.evaluation.report.page import Rows, whole_of
from aqnet.evaluation.report.places import Series

Values = NDArray[np.float64]
# Okabe and Ito (2008): told apart with any colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "os^Dvp"
BANDS = ("#d4e6f3", "#97c4e0")  # of the two widest intervals
LOWEST_SKILL = -1.0  # that is drawn
FEWEST_PAIRS = 100  # in a bin of the forecast, for a share to be drawn
RAREST = 1e-3  # share of forecasts in a class of probability, for it to be drawn


def skill(table: Rows) -> Figure:
    """Skill of every forecast that is not a simple one, a panel per pollutant."""
    whole = whole_of(table)
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
            look = _look(number, 4)
            label = f"{model} against best simple"
            _with_limits(axes, at, rows, "skill_best_simple", {**look, "label": label})
            look |= {"linestyle": "--", "alpha": 0.6, "label": f"{model} against persistence"}
            axes.plot(at, _column(rows, "skill_persistence"), **look)
        axes.set_xticks(range(len(leads)), [f"{lead} h" for lead in leads])
        axes.set_ylabel("skill")
        if axes.get_ylim()[0] < LOWEST_SKILL:
            axes.set_ylim(LOWEST_SKILL, 1.0)
    _legend(figure, panels)
    return figure


def reliability(
    records: Records, config: Config, units: dict[str, str], events: Sequence[str]
) -> Figure:
    """How often the truth of each target of `events` reached its threshold, by the forecast."""
    figure, panels = _panels(events)
    for name, axes in panels.items():
        target = config.data.targets.index(name)
        edges = records.edges()[target]
        middles = np.sqrt(edges[1:] * edges[:-1])
        for row, lead in enumerate(config.data.lead_times):
            pairs = records.pairs[row, target].sum(1)
            enough = pairs >= FEWEST_PAIRS
            enough[[0, -1]] = False  # the open bins have no middle
            share = records.exceeded[row, target][enough] / pairs[enough]
            axes.plot(middles[enough], share, label=f"+{lead} h", linewidth=1, **_look(row, 3))
        axes.axvline(metrics.EVENT_THRESHOLDS[name], color="black", linestyle=":")
        logarithmic(axes, "x")
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(f"forecast [{names.unit(units[name])}]")
        axes.set_ylabel("share that reached it")
    _legend(figure, panels)
    return figure


def coverage(table: Rows, intervals: Sequence[str]) -> Figure:
    """Share of the truth inside the model's central intervals, with 95 % intervals, by lead
    time."""
    rows = [row for row in whole_of(table) if row["forecast"] == "aqnet"]
    leads = sorted(_distinct(rows, "lead_time_hours"))
    figure, panels = _panels(_distinct(rows, "pollutant"))
    for name, axes in panels.items():
        found = {row["lead_time_hours"]: row for row in rows if row["pollutant"] == name}
        at = np.array([leads.index(lead) for lead in found])
        for number, interval in enumerate(intervals):
            look = _look(number, 4)
            label = f"{interval} % interval"
            _with_limits(axes, at, found, f"coverage_{interval}", {**look, "label": label})
            look |= {"linestyle": ":", "marker": "", "label": f"promised: {interval} %"}
            axes.plot(range(len(leads)), [float(interval) / 100] * len(leads), **look)
        axes.set_xticks(range(len(leads)), [f"{lead} h" for lead in leads])
        axes.set_ylim(0.0, 1.0)
        axes.set_ylabel("share of the truth inside")
    _legend(figure, panels)
    return figure


def promises_of(table: Rows, kind: str) -> Rows:
    """Of the rows of reliability.csv what is drawn of a kind, `event` or `quantile`."""
    rows = [row for row in whole_of(table) if (row["forecast"], row["kind"]) == ("aqnet", kind)]
    return [row for row in rows if row["share_of_forecasts"] >= RAREST]


def promised(table: Rows, kind: str) -> Figure:
    """What came of what the model promised, a panel per pollutant, a curve per lead time; of the
    `promises_of` that kind."""
    rows = promises_of(table, kind)
    leads = _distinct(rows, "lead_time_hours")
    figure, panels = _panels(_distinct(rows, "pollutant"))
    for name, axes in panels.items():
        axes.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=0.8, label="reliable")
        for number, lead in enumerate(leads):
            key = name, lead
            found = [row for row in rows if (row["pollutant"], row["lead_time_hours"]) == key]
            said, came = ([row[part] for row in found] for part in ("promised", "observed"))
            axes.plot(said, came, label=f"+{lead} h", linewidth=1, **_look(number, 3))
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), box_aspect=1)
        axes.set_xlabel("promised" if kind == "event" else "level of the quantile")
        axes.set_ylabel("came true" if kind == "event" else "share of the truth below")
    _legend(figure, panels)
    return figure


def place(series: Series, at: int, config: Config, units: dict[str, str]) -> Figure:
    """Truth, forecast and its central intervals at one place of a series, a panel per target."""
    targets = config.data.targets
    figure = Figure(figsize=(4.6, 1.35 * len(targets) + 0.6), layout="constrained")
    rows = figure.subplots(len(targets), 1, sharex=True, squeeze=False)[:, 0]
    panels = dict(zip(targets, rows, strict=True))
    when = series.hours.astype("datetime64[h]")
    intervals = probabilities.intervals(config.model.quantiles)
    for row, (name, axes) in enumerate(panels.items()):
        for shade, (number, (low, high)) in zip(BANDS, intervals.items(), strict=False):
            ends = series.quantiles[:, low, row, at], series.quantiles[:, high, row, at]
            axes.fill_between(when, *ends, color=shade, linewidth=0, label=f"{number} % interval")
        axes.plot(when, series.forecast[:, row, at], color=COLOURS[0], label="forecast")
        axes.plot(when, series.truth[:, row, at], color="black", linewidth=1, label="truth")
        axes.set_ylabel(f"{names.in_picture(name)} [{names.unit(units[name])}]", fontsize=8)
        axes.set_xlim(when[0], when[-1])
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(dates.DayLocator())
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
    logarithmic(axes, "y")
    axes.set(xlabel="optimizer step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _panels(targets: Iterable[str]) -> tuple[Figure, dict[str, Any]]:
    """A figure with a titled panel per target, two in a row, so that a phone shows it well."""
    targets = list(targets)
    columns = min(2, len(targets))
    rows = -(-len(targets) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.4 * rows + 0.4), layout="constrained")
    flat = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in flat[len(targets) :]:
        spare.remove()
    panels = dict(zip(targets, flat, strict=False))
    for name, axes in panels.items():
        axes.set_title(names.in_picture(name), fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    return figure, panels


def logarithmic(axes: Any, which: str, ticks: tuple[float, ...] = (1.0, 2.0, 5.0)) -> None:
    """Log axes with plain numbers at these ticks of every decade."""
    for name in which:
        getattr(axes, f"set_{name}scale")("log")
        axis = getattr(axes, f"{name}axis")
        axis.set_major_locator(LogLocator(subs=ticks, numticks=6))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(NullLocator())


def _legend(figure: Figure, panels: dict[str, Any]) -> None:
    handles, labels = next(iter(panels.values())).get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(5, len(labels)), fontsize=8
    )


def _look(number: int, size: int) -> dict[str, Any]:
    """Colour and marker of a panel's curve."""
    return {"color": COLOURS[number % 6], "marker": MARKERS[number % 6], "markersize": size}


def _with_limits(
    axes: Any, at: Values, rows: dict[int, dict[str, Any]], key: str, look: dict[str, Any]
) -> None:
    """Draw a score of the rows with its 95 % intervals."""
    value, low, high = (_column(rows, f"{key}{end}") for end in ("", "_low", "_high"))
    ends = [np.maximum(value - low, 0.0), np.maximum(high - value, 0.0)]
    axes.errorbar(at, value, ends, capsize=3, **look)


def _distinct(rows: Rows, key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def _column(rows: dict[int, dict[str, Any]], key: str) -> Values:
    return np.array([np.nan if row[key] is None else row[key] for row in rows.values()])
