"""What the report and the terminal say of a model's odds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import Any

from aqnet.evaluation.odds import FORECASTS
from aqnet.evaluation.report.page import titled, titled_table

Rows = list[dict[str, Any]]


def line(rows: Rows) -> str:
    """Coverage of the widest interval and CRPS against the climatological distribution, over the
    whole domain and all pollutants and lead times, in a line of text."""
    ours = [row for row in _whole(rows) if row["forecast"] == "aqnet"]
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


def html(rows: Rows, promises: Rows) -> str:
    """The report's section: coverage and CRPS, then reliability; empty where there are no odds."""
    whole = _whole(rows)
    if not promises:
        return ""
    kept = [row for row in _whole(promises) if row["forecast"] == "aqnet"]
    pollutants = list(dict.fromkeys(row["pollutant"] for row in whole))
    parts = [
        "<h2>Odds</h2><p>Share of the truth inside the central intervals and their mean width; "
        "CRPS with its skill against the climatological distribution and damped anomaly "
        "persistence; Brier score of reaching the event threshold.</p>",
        *(_scores(name, whole) for name in pollutants),
        "<p>Reliability: what was promised, and in brackets how often it came true. First the "
        "quantiles, of which the truth should lie below as often as their level says; then the "
        "probabilities of reaching the event threshold, in ten classes.</p>",
        *(_reliability(name, kept) for name in pollutants),
    ]
    return "".join(parts)


def _whole(rows: Rows) -> Rows:
    return [row for row in rows if row["region"] == "all" and row["subset"] == "all"]


def _intervals(rows: Rows) -> list[str]:
    """The central intervals that were scored, widest first."""
    names = [key.removeprefix("width_") for key in rows[0] if key.startswith("width_")]
    return sorted(names, key=float, reverse=True)


def _scores(pollutant: str, whole: Rows) -> str:
    rows = [row for row in whole if row["pollutant"] == pollutant]
    central, lines = _intervals(rows), []
    for lead in dict.fromkeys(row["lead_time_hours"] for row in rows):
        group = {row["forecast"]: row for row in rows if row["lead_time_hours"] == lead}
        ours = group["aqnet"]
        cells = [f"{lead} h"]
        for name in central:
            cells += [_share(ours[f"coverage_{name}"]), _number(ours[f"width_{name}"])]
        cells += [_number(group[name]["crps"]) for name in FORECASTS]
        cells += [_skill(ours, f"crps_skill_{name}") for name in FORECASTS[1:]]
        cells += [_number(ours["brier"], 4), _skill(ours, "brier_skill_climatology")]
        lines.append([f'<td class="one">{cell}</td>' for cell in cells])
    heads = ["lead time", *(f"{name} % {part}" for name in central for part in ("holds", "width"))]
    heads += [f"CRPS {name.replace('_', ' ')}" for name in FORECASTS]
    heads += [f"skill against {name.replace('_', ' ')}" for name in FORECASTS[1:]]
    heads += ["Brier", "skill against climatology"]
    title = titled(f"{pollutant} [{rows[0]['unit']}]", ours.get("weather"))
    return titled_table(title, heads, lines)


def _reliability(pollutant: str, kept: Rows) -> str:
    lines = [
        [f"<td>{lead} h, {kind}s</td>", *cells]
        for kind in ("quantile", "event")
        for lead, cells in _promised(pollutant, kind, kept)
    ]
    longest = max((len(cells) for cells in lines), default=1)
    heads = ["lead time", *(str(number) for number in range(1, longest))]
    if not lines:
        return ""
    return titled_table(titled(pollutant, kept[0].get("weather")), heads, lines)


def _promised(pollutant: str, kind: str, kept: Rows) -> Iterator[tuple[int, list[str]]]:
    """Lead times with their cells: promised (observed)."""
    rows = [row for row in kept if row["pollutant"] == pollutant and row["kind"] == kind]
    for lead in dict.fromkeys(row["lead_time_hours"] for row in rows):
        yield (
            lead,
            [
                f'<td class="one">{row["promised"]:.2f} ({row["observed"]:.2f})</td>'
                for row in rows
                if row["lead_time_hours"] == lead
            ],
        )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _skill(row: dict[str, Any], key: str) -> str:
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    limits = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
    return escape(_number(row[key], 3) + limits)
