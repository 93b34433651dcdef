"""What the report and the terminal say of a model's odds."""

from __future__ import annotations

import math
from typing import Any

from aqnet.evaluation.odds.odds import FORECASTS
from aqnet.evaluation.report.page import by_lead_time, heading, lead_table, limits, whole_of

Rows = list[dict[str, Any]]


def line(rows: Rows) -> str:
    """Coverage of the widest interval and CRPS against the climatological distribution, over the
    whole domain and all pollutants and lead times, in a line of text."""
    ours = [row for row in whole_of(rows) if row["forecast"] == "aqnet"]
    parts = []
    for name in _intervals(ours)[:1]:
        held = [row[f"coverage_{name}"] for row in ours]
        parts.append(
            f"the {name} % interval holds {sum(held) / len(held):.1%} of the truth "
            f"({min(held):.1%} to {max(held):.1%})"
        )
    skills = [row["crps_skill_climatology"] for row in ours]
    known = [skill for skill in skills if skill is not None and skill < 1.0]
    if known:
        mean = 1.0 - math.exp(sum(math.log(1.0 - skill) for skill in known) / len(known))
        better = sum(skill > 0.0 for skill in known)
        parts.append(
            f"CRPS is {mean:.1%} below that of the climatological distribution (lower in {better} "
            f"of {len(known)})"
        )
    return "odds: " + "; ".join(parts)


def html(rows: Rows) -> str:
    """The report's section: skill, CRPS and coverage; empty where there are no odds."""
    if "crps" not in rows[0]:
        return ""
    whole = whole_of(rows)
    return (
        "<h2>Odds</h2><p>CRPS says how far the whole distribution lies from what came, skill by "
        "how much less than that of the climatological distribution and of damped anomaly "
        "persistence; then the share of the truth inside the central intervals and their mean "
        "width, and the Brier score of reaching the event threshold.</p>"
        + "".join(_scores(name, whole) for name in dict.fromkeys(row["pollutant"] for row in whole))
    )


def _intervals(rows: Rows) -> list[str]:
    """The central intervals that were scored, widest first."""
    names = [key.removeprefix("width_") for key in rows[0] if key.startswith("width_")]
    return sorted(names, key=float, reverse=True)


def _scores(pollutant: str, whole: Rows) -> str:
    groups = by_lead_time([row for row in whole if row["pollutant"] == pollutant])
    ours = [group["aqnet"] for group in groups.values()]
    lines = []
    for name in FORECASTS[1:]:
        title = f"skill against {name.replace('_', ' ')}"
        lines.append((title, [_skill(row, f"crps_skill_{name}") for row in ours]))
    for name in FORECASTS:
        values = [_number(group[name]["crps"]) for group in groups.values()]
        lines.append((f"CRPS {name.replace('_', ' ')}", values))
    for name in _intervals(ours):
        lines.append(
            (f"{name} % interval holds", [_share(row[f"coverage_{name}"]) for row in ours])
        )
        lines.append(("its width", [_number(row[f"width_{name}"]) for row in ours]))
    lines.append(("Brier score", [_number(row["brier"], 4) for row in ours]))
    title = "its skill against climatology"
    lines.append((title, [_skill(row, "brier_skill_climatology") for row in ours]))
    known = [(name, cells) for name, cells in lines if any(cell != "-" for cell in cells)]
    cells = [(name, [f"<td>{cell}</td>" for cell in row]) for name, row in known]
    return lead_table(heading(ours[0], ours[0].get("weather")), groups, cells)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _skill(row: dict[str, Any], key: str) -> str:
    return _number(row[key], 3) + limits(row, key)
