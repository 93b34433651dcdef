"""Maps of forecast, truth and error with coasts, wind and terrain; needs matplotlib."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from aqnet.config import Config
from aqnet.config.periods import hour_text
from aqnet.evaluation.metrics import EVENT_THRESHOLDS
from aqnet.evaluation.report import names
from aqnet.evaluation.report.example_forecast import Example
from aqnet.grid import Grid, continuous, wrapped

Values = NDArray[np.float64]
EARTH_RADIUS_KM = 6371.0
TERRAIN_LEVELS = (1000.0, 2000.0, 3000.0, 4000.0, 5000.0)  # m
ARROWS = 16  # along the longer side
ARROW_SCALE = 150.0  # m/s that would be as long as the chart is wide
SHADES, ERROR_SHADES = "YlGnBu", "PuOr_r"  # light is low, so that lines and arrows can be seen
LEVELS = 21  # of colour: steps can be told apart, and the file is small
OUTSIDE = "0.8"  # grey
# of the maps' figure, in inches
PANEL, GAP, LEFT, TOP, BELOW, BAR = 3.0, 0.1, 0.4, 0.25, 0.4, 0.85


class Chart:
    """Where cells, coasts and arrows lie on paper.

    A degree grid is drawn in degrees, stretched as at its middle latitude; any other grid in km on
    the Lambert azimuthal equal-area projection about its middle.
    """

    def __init__(self, grid: Grid) -> None:
        self.lat, lon = grid.lat.numpy(), grid.lon.numpy()
        self.lon = continuous(lon)
        self.middle = tuple((part.min() + part.max()) / 2 for part in (self.lat, self.lon))
        self.degrees = grid.on_degrees
        self.aspect = 1.0 / np.cos(np.radians(self.middle[0])) if self.degrees else 1.0
        self.mask = grid.mask.numpy()
        self.elevation = None if grid.elevation is None else grid.elevation.double().numpy()
        self.x, self.y = self.project(self.lat, self.lon)
        self.corners = _corners(self.x), _corners(self.y)
        self.limits = [(part.min(), part.max()) for part in self.corners]
        self.outlines = {name: self._visible(lines) for name, lines in outlines().items()}

    def project(self, lat: Values, lon: Values) -> tuple[Values, Values]:
        """Degrees to x, y of the paper."""
        lat_c, lon_c = self.middle
        away = wrapped(lon - lon_c)
        if self.degrees:
            return lon_c + away, lat
        phi, phi_c, dlon = np.radians(lat), np.radians(lat_c), np.radians(away)
        cosine = np.sin(phi_c) * np.sin(phi) + np.cos(phi_c) * np.cos(phi) * np.cos(dlon)
        scale = EARTH_RADIUS_KM * np.sqrt(2.0 / np.maximum(1.0 + cosine, 1e-6))
        x = scale * np.cos(phi) * np.sin(dlon)
        y = np.cos(phi_c) * np.sin(phi) - np.sin(phi_c) * np.cos(phi) * np.cos(dlon)
        return x, scale * y

    def turned(self, u: Values, v: Values) -> tuple[Values, Values]:
        """East and north components [H, W] along x and y of the paper."""
        if self.degrees:
            return u, v
        step = 1e-3
        north = np.subtract(self.project(self.lat + step, self.lon), (self.x, self.y))
        angle = np.arctan2(-north[0], north[1])
        return u * np.cos(angle) - v * np.sin(angle), u * np.sin(angle) + v * np.cos(angle)

    def field(self, axes: Any, values: Values, shades: str, scale: Normalize) -> Any:
        """Draw values [H, W]: grey outside the domain, white where missing inside."""
        domain = np.ma.masked_where(~self.mask, np.ones(self.mask.shape))
        axes.set_facecolor(OUTSIDE)
        axes.pcolormesh(*self.corners, domain, cmap="gray", vmin=0, vmax=1, rasterized=True)
        shown = np.ma.masked_where(~self.mask | ~np.isfinite(values), values)
        image = axes.pcolormesh(
            *self.corners,
            shown,
            cmap=colormaps[shades].resampled(LEVELS),
            norm=scale,
            rasterized=True,
        )
        self._frame(axes)
        return image

    def arrows(self, axes: Any, wind: Values) -> None:
        """Draw u and v [2, H, W] with a key, thinned to at most ARROWS along a side."""
        every = max(1, -(-max(self.mask.shape) // ARROWS))
        part = (slice(every // 2, None, every),) * 2
        u, v = self.turned(*wind)
        look = {"pivot": "middle", "color": "0.1", "width": 0.004, "scale": ARROW_SCALE}
        arrows = axes.quiver(self.x[part], self.y[part], u[part], v[part], **look)
        place = {"labelpos": "W", "fontproperties": {"size": 7}, "labelsep": 0.05}
        axes.quiverkey(arrows, 0.95, -0.13, 10.0, "10 m/s", **place)

    def terrain(self, axes: Any) -> None:
        """Draw contours of elevation, labelled in m."""
        if self.elevation is None or min(self.mask.shape) < 2:
            return
        levels = [
            level
            for level in TERRAIN_LEVELS
            if np.nanmin(self.elevation) < level < np.nanmax(self.elevation)
        ]
        if levels:
            height = np.ma.masked_invalid(self.elevation)
            look = {"levels": levels, "colors": "0.35", "linewidths": 0.4}
            lines = axes.contour(self.x, self.y, height, **look)
            axes.clabel(lines, fmt="%g m", fontsize=5)

    def _visible(self, lines: list[Values]) -> list[Values]:
        """The lines of (longitude, latitude) that touch the chart, on paper."""
        (left, right), (low, high) = self.limits
        found = []
        for line in lines:
            x, y = self.project(line[:, 1], line[:, 0])
            if x.min() > right or x.max() < left or y.min() > high or y.max() < low:
                continue
            far = np.abs(np.diff(x)) > max(right - left, np.ptp(x) / 2)
            found += np.split(np.stack([x, y], axis=1), np.flatnonzero(far) + 1)
        return found

    def _frame(self, axes: Any) -> None:
        for name, width in (("coasts", 0.8), ("borders", 0.4)):
            lines = LineCollection(self.outlines[name], colors="black", linewidths=width)
            axes.add_collection(lines, autolim=False)
        axes.set_xlim(*self.limits[0])
        axes.set_ylim(*self.limits[1])
        axes.set_aspect(self.aspect)
        axes.tick_params(labelsize=7)
        if not self.degrees and min(self.mask.shape) > 1:
            self._graticule(axes)

    def _graticule(self, axes: Any) -> None:
        """Parallels and meridians instead of ticks in km."""
        axes.set(xticks=[], yticks=[])
        for degrees in (self.lat, self.lon):
            levels = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(degrees.min(), degrees.max())
            look = {"colors": "0.5", "linewidths": 0.4, "linestyles": "dotted"}
            lines = axes.contour(self.x, self.y, degrees, levels=levels, **look)
            axes.clabel(lines, fmt="%g°", fontsize=6)


@cache
def outlines() -> dict[str, list[Values]]:
    """Coasts and borders of the world: lines of (longitude, latitude) in degrees."""
    shapes = json.loads((Path(__file__).parent / "outlines.json").read_text())
    return {
        name: [np.cumsum(np.reshape(line, (-1, 2)), axis=0) / 100.0 for line in shapes[name]]
        for name in ("coasts", "borders")
    }


def draw(chart: Chart, shown: Example, target: int, config: Config, unit: str) -> Figure:
    """One target at the input time, where it is an input, then forecast, truth and error, a row per
    lead time; forecast alone where the truth is unknown.

    All rows share one scale, from the 0.5th to the 99.5th percentile of all their values, and one
    of errors, which is symmetric.
    """
    rows = _rows(chart, shown, target, config.data.lead_times)
    values = np.concatenate([part for _, *fields, _ in rows for part in _known(chart, *fields)])
    scale = Normalize(*(np.percentile(values, [0.5, 99.5]) if len(values) else (0.0, 1.0)))
    errors = np.concatenate(
        [
            part
            for _, ours, real, _ in rows
            if real is not None
            for part in _known(chart, ours - real)
        ]
        or [np.ones(1)]
    )
    top = float(np.percentile(np.abs(errors), 99.5))
    height = PANEL * np.ptp(chart.limits[1]) * chart.aspect / np.ptp(chart.limits[0])
    some_truth = any(real is not None for _, _, real, _ in rows)
    width = LEFT + PANEL + GAP + BAR + (2 * (PANEL + GAP) + BAR if some_truth else 0.0)
    total = len(rows) * (height + TOP + BELOW)
    figure = Figure(figsize=(width, total))

    def axes_at(row: int, left: float, size: float = PANEL) -> Any:
        bottom = (len(rows) - 1 - row) * (height + TOP + BELOW) + BELOW
        return figure.add_axes((left / width, bottom / total, size / width, height / total))

    for row, (when, ours, real, wind) in enumerate(rows):
        fields = [("input" if when.endswith("UTC") else "forecast", ours)]
        fields += [] if real is None else [("truth", real)]
        bar_at = LEFT + len(fields) * (PANEL + GAP)
        for column, (kind, field) in enumerate(fields):
            axes = axes_at(row, LEFT + column * (PANEL + GAP))
            image = chart.field(axes, field, SHADES, scale)
            axes.tick_params(labelleft=column == 0)
            axes.set_title(f"{kind}, {when}", fontsize=8)
            chart.terrain(axes)
        if wind is not None:
            chart.arrows(axes, wind)
        name = names.in_picture(config.data.targets[target])
        _bar(figure, image, axes_at(row, bar_at, 0.12), f"{name} [{names.unit(unit)}]")
        if real is not None:
            axes = axes_at(row, bar_at + BAR)
            axes.tick_params(labelleft=False)
            axes.set_title("error (forecast - truth)", fontsize=8)
            image = chart.field(axes, ours - real, ERROR_SHADES, Normalize(-top, top))
            _bar(figure, image, axes_at(row, width - BAR, 0.12), f"error [{names.unit(unit)}]")
    return figure


def _rows(
    chart: Chart, shown: Example, target: int, leads: Sequence[int]
) -> list[tuple[str, Values, Values | None, Values | None]]:
    """When, the field, its truth and the wind of each row of `draw`, None where unknown."""
    found: list[tuple[str, Values, Values | None, Values | None]] = []
    if shown.present is not None and np.isfinite(shown.present[target][chart.mask]).any():
        found.append((f"{hour_text(shown.time)} UTC", shown.present[target], None, None))
    for row, lead in enumerate(leads):
        truth = None if shown.truth is None else shown.truth[row, target]
        wind = None if shown.wind is None else shown.wind[row]
        when = f"{hour_text(shown.time + lead)} UTC (+{lead} h)"
        known = truth is not None and np.isfinite(truth[chart.mask]).any()
        windy = wind is not None and np.isfinite(wind).any()
        ours = shown.forecast[row, target]
        found.append((when, ours, truth if known else None, wind if windy else None))
    return found


def _known(chart: Chart, *fields: Values | None) -> list[Values]:
    """The values of fields in the domain, [N] each."""
    inside = [field[chart.mask] for field in fields if field is not None]
    return [values[np.isfinite(values)] for values in inside]


def draw_odds(chart: Chart, shown: Example, target: int, config: Config, unit: str) -> Figure:
    """Probability that one target reaches its event threshold, a row per lead time, from 0 to 1."""
    assert shown.exceedance is not None
    leads, name = config.data.lead_times, config.data.targets[target]
    height = PANEL * np.ptp(chart.limits[1]) * chart.aspect / np.ptp(chart.limits[0])
    row_height, width = height + TOP + BELOW, LEFT + PANEL + GAP + BAR
    total = len(leads) * row_height
    figure = Figure(figsize=(width, total))
    least = f"{EVENT_THRESHOLDS[name]:g} {names.unit(unit)}"
    for row, lead in enumerate(leads):
        low = ((len(leads) - 1 - row) * row_height + BELOW) / total
        axes = figure.add_axes((LEFT / width, low, PANEL / width, height / total))
        image = chart.field(axes, shown.exceedance[row, target], SHADES, Normalize(0.0, 1.0))
        axes.set_title(f"{hour_text(shown.time + lead)} UTC (+{lead} h)", fontsize=8)
        chart.terrain(axes)
        bar = figure.add_axes(((LEFT + PANEL + GAP) / width, low, 0.12 / width, height / total))
        figure.colorbar(image, cax=bar).set_label(
            f"odds of {names.in_picture(name)} $\\geq$ {least}", fontsize=8
        )
        bar.tick_params(labelsize=7)
    return figure


def _bar(figure: Figure, image: Any, axes: Any, text: str) -> None:
    figure.colorbar(image, cax=axes, extend="both").set_label(text, fontsize=8)
    axes.tick_params(labelsize=7)


def _corners(centres: Values) -> Values:
    """Corners [H + 1, W + 1] between centres [H, W]; the outer ones continue the inner steps."""
    for axis in (0, 1):
        moved = np.moveaxis(centres, axis, 0)
        if len(moved) == 1:
            # a single row or column has no step of its own: as wide as the other axis' steps
            step = np.abs(np.diff(np.moveaxis(centres, axis, 0), axis=1)).max(initial=1e-3)
            moved = np.concatenate([moved - step / 2, moved + step / 2])
        else:
            inner = (moved[1:] + moved[:-1]) / 2
            first, last = 2 * moved[:1] - inner[:1], 2 * moved[-1:] - inner[-1:]
            moved = np.concatenate([first, inner, last])
        centres = np.moveaxis(moved, 0, axis)
    return centres
