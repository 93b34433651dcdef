"""A picture of where the air over one city comes from; needs matplotlib."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from aqnet.config import Config
from aqnet.config.periods import hour_text
from aqnet.evaluation.baselines import Observed
from aqnet.evaluation.report import names
from aqnet.evaluation.report.example_forecast import Example
from aqnet.evaluation.report.pictures import maps
from aqnet.evaluation.run import Scorer
from aqnet.trajectories import sample

Values = NDArray[np.float64]
# of the lead times: seen on light and dark parts of the map
COLOURS = ("#B00020", "#E69F00", "#AA4499", "#000000")


@dataclass(frozen=True)
class Origin:
    """One forecast in one cell, and the air that comes there.

    Attributes:
        target: of the forecast's targets; row, column: the cell.
        observed: what is known at the input time.
        paths: row and column of the air that arrives by each lead time, from the cell back to the
            place at the input time, each of shape [P, 2].
        moved: the target at the end of each path, shape [K].
    """

    example: Example
    target: int
    row: int
    column: int
    observed: Observed
    paths: list[Values]
    moved: Values


def target_of(config: Config) -> int:
    """The target whose air is shown: PM2.5 where it is forecast, else the first."""
    targets = config.data.targets
    return targets.index("pm25") if "pm25" in targets else 0


def of(scorer: Scorer, example: Example) -> Origin | None:
    """The air over the cell of highest mean in the training years; None without stored wind."""
    air, observed = scorer.baselines.air, scorer.observed(example.time)
    if air is None or observed.wind is None:
        return None
    target = target_of(scorer.config)
    cell = int(scorer.baselines.climatology.mean(target).argmax())
    row, column = np.argwhere(scorer.cells)[cell].tolist()
    paths = air.paths(observed.wind, row, column)
    moved = air.moved(observed.targets, observed.wind)[:, target, cell]
    return Origin(example, target, row, column, observed, paths, moved)


def draw(chart: maps.Chart, origin: Origin, config: Config, unit: str) -> Figure:
    """The paths over the map of the target at the input time; beside it what came of it."""
    width, height = 5.6, 5.6 * np.ptp(chart.limits[1]) * chart.aspect / np.ptp(chart.limits[0])
    figure = Figure(
        figsize=(width + 4.4, max(height, 2.4) + 1.0), layout=ConstrainedLayoutEngine(w_pad=0.12)
    )
    left, right = figure.subplots(1, 2, width_ratios=(width + 0.6, 3.2))
    field = origin.observed.targets[origin.target].astype(np.float64)
    known = field[chart.mask & np.isfinite(field)]
    scale = Normalize(*(np.percentile(known, [0.5, 99.5]) if len(known) else (0.0, 1.0)))
    image = chart.field(left, field, maps.SHADES, scale)
    chart.terrain(left)
    assert origin.observed.wind is not None
    chart.arrows(left, origin.observed.wind.astype(np.float64))
    name = names.in_picture(config.data.targets[origin.target])
    left.set_title(f"{name} and wind, {hour_text(origin.example.time)} UTC", fontsize=9)
    bar = figure.colorbar(image, ax=left, extend="both", shrink=0.8)
    bar.set_label(f"{name} [{names.unit(unit)}]", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    _paths(left, chart, origin, config.data.lead_times)
    handles, labels = (part[::-1] for part in left.get_legend_handles_labels())
    look: dict[str, Any] = {"ncols": len(labels), "frameon": False, "fontsize": 8}
    figure.legend(handles, labels, loc="outside lower left", markerscale=0.6, **look)
    _values(right, origin, config.data.lead_times)
    right.set_title(f"{name} in the cell of the star [{names.unit(unit)}]", fontsize=9)
    return figure


def _paths(axes: Any, chart: maps.Chart, origin: Origin, leads: tuple[int, ...]) -> None:
    """Lines from the city back to where the air is at the input time, and the lead times there."""
    halo = [withStroke(linewidth=4.0, foreground="white")]
    for number, lead in reversed(list(enumerate(leads))):
        x, y = _on_paper(chart, origin.paths[number])
        look = {"color": COLOURS[number % len(COLOURS)], "zorder": 5}
        axes.plot(x, y, linewidth=1.8, path_effects=halo, **look)
        size = 7.0 + 2.5 * number  # ends that coincide are rings
        end = {"markersize": size, "markeredgecolor": "white", "linestyle": "none"}
        axes.plot(x[-1], y[-1], "o", label=f"air of +{lead} h", **end, **look)
    x, y = _on_paper(chart, origin.paths[0][:1])
    star = {"markersize": 13, "color": "white", "markeredgecolor": "black", "zorder": 6}
    axes.plot(x, y, "*", **star)


def _values(axes: Any, origin: Origin, leads: tuple[int, ...]) -> None:
    """Truth and forecast in the city, and what the air held where it came from."""
    at = origin.target, origin.row, origin.column
    now = float(origin.observed.targets[at])
    hours = (0, *leads)
    forecast = origin.example.forecast[:, *at]
    lines = {"aqnet": (forecast, "#0072B2", "s-"), "where the air was": (origin.moved, "0.4", "^:")}
    if origin.example.truth is not None:
        lines = {"truth": (origin.example.truth[:, *at], "black", "o-"), **lines}
    for name, (values, colour, style) in lines.items():
        axes.plot(hours, [now, *values], style, color=colour, label=name, markersize=4)
    axes.set_xticks(hours)
    axes.set_xlabel("hours after the input time", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _on_paper(chart: maps.Chart, points: Values) -> tuple[Values, Values]:
    """x and y on the chart of rows and columns [P, 2]."""
    places = torch.from_numpy(np.stack([chart.x, chart.y]))[None].double()
    at = torch.from_numpy(points).T[None, None, :, None]
    x, y = sample(places, at)[0, 0, :, 0].numpy()
    return x, y


def caption(chart: maps.Chart, origin: Origin) -> str:
    """What the picture shows."""
    lat, lon = (float(part[origin.row, origin.column]) for part in (chart.lat, chart.lon))
    lon = (lon + 180.0) % 360.0 - 180.0
    north, east = "N" if lat >= 0 else "S", "E" if lon >= 0 else "W"
    city = f"{abs(lat):.1f} {north}, {abs(lon):.1f} {east}"
    return (
        f"Forecast of {hour_text(origin.example.time)} UTC, the input time of largest error. "
        f"Lines lead from the cell of highest mean in the training years ({city}; star) back to "
        "where the air that arrives there by each lead time is at the input time, as the simple "
        "forecast 'transport' has it: by the wind of the input time held, with the fitted speed "
        "and turn. Right: what came of it in that cell."
    )
