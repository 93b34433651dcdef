"""What the report says of stations: a table per pollutant, and a map of skill; the map needs
matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aqnet.evaluation.report import names
from aqnet.evaluation.report.page import by_lead_time, heading, lead_table, nearest_a_day, whole_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from aqnet.evaluation.report.pictures.maps import Chart

Rows = list[dict[str, Any]]
LINES = "values", "aqnet", "best simple", "skill", "bias", "r"
NO_INTERVALS = (
    "There are no intervals: stations stand close together where people live, so that their errors "
    "are not independent, and how far they stand for the domain cannot be told from them."
)


def html(rows: Rows, weather: str | None) -> str:
    """The report's section; empty where there are no rows of stations.csv."""
    together = whole_of(rows)
    if not together:
        return ""
    stations = len({row["region"] for row in rows} - {"all"})
    parts = [
        f"<h2>Stations</h2><p>All {stations} stations in the domain together, forecasts "
        "interpolated to them; each alone stands in stations.csv. RMSE of aqnet and of the best "
        f"simple forecast. {NO_INTERVALS}</p>"
    ]
    for name in dict.fromkeys(row["pollutant"] for row in together):
        groups = by_lead_time([row for row in together if row["pollutant"] == name])
        ours = next(iter(groups.values()))["aqnet"]
        columns = zip(*map(_cells, groups.values()), strict=True)
        parts.append(lead_table(heading(ours, weather), groups, zip(LINES, columns, strict=True)))
    return "".join(parts)


def _cells(group: dict[str, dict[str, Any]]) -> list[str]:
    """Those of one lead time."""
    ours = group["aqnet"]
    best, skill = group[ours["best_simple"]]["rmse"], ours["skill_best_simple"]
    numbers = ours["rmse"], best, skill, ours["bias"], ours["r"]
    digits = 2, 2, 3, 2, 2
    texts = ["-" if n is None else f"{n:.{d}f}" for n, d in zip(numbers, digits, strict=True)]
    kind = "" if skill is None else ' class="best"' if skill > 0 else ' class="worse"'
    kinds = "", "", "", kind, "", ""
    texts = [str(ours["n"]), *texts]
    return [f"<td{kind}>{text}</td>" for kind, text in zip(kinds, texts, strict=True)]


def skill_map(
    chart: Chart, rows: Rows, places: dict[str, tuple[float, float]], leads: Sequence[int]
) -> tuple[int, Figure]:
    """Skill against the best simple forecast at each station, a panel per pollutant.

    Args:
        rows: of stations.csv; places: latitude and longitude of each station.
        leads: lead times, of which the one nearest to 24 h is drawn.
    Returns:
        That lead time, and the picture.
    """
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    from aqnet.evaluation.report.pictures import maps

    lead = nearest_a_day(leads)
    wanted = {"forecast": "aqnet", "subset": "all", "lead_time_hours": lead}
    own = [row for row in rows if wanted.items() <= row.items() and row["region"] in places]
    pollutants = list(dict.fromkeys(row["pollutant"] for row in own))
    columns = min(3, max(1, len(pollutants)))
    lines = -(-max(1, len(pollutants)) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.9 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for spare in panels[len(pollutants) :]:
        spare.remove()
    scale, nothing = Normalize(-1.0, 1.0), np.full(chart.mask.shape, np.nan)
    for name, axes in zip(pollutants, panels, strict=False):
        here = [row for row in own if row["pollutant"] == name]
        here = [row for row in here if row["skill_best_simple"] is not None]
        at: NDArray[np.float64] = np.array([places[row["region"]] for row in here]).reshape(-1, 2)
        skill = [row["skill_best_simple"] for row in here]
        chart.field(axes, nothing, maps.ERROR_SHADES, scale)
        look = {"cmap": maps.ERROR_SHADES, "norm": scale, "edgecolors": "black", "linewidths": 0.5}
        dots = axes.scatter(*chart.project(*at.T), c=skill, s=25, zorder=3, **look)
        axes.set_title(f"{names.in_picture(name)}, {len(here)} stations", fontsize=9)
    if pollutants:
        bar = figure.colorbar(dots, ax=list(panels[: len(pollutants)]), extend="min")
        bar.set_label("skill against the best simple forecast", fontsize=8)
    return lead, figure
