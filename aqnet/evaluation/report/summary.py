"""What a reader in a hurry takes from an evaluation: where forecasts beat simple ones."""

from __future__ import annotations

import math
from typing import Any, Literal

from aqnet.evaluation.report import names

Rows = list[dict[str, Any]]


def html(whole: Rows) -> str:
    """The section, as HTML.

    Args:
        whole: rows of metrics.json over all regions and subsets.
    """
    rows = [row for row in whole if row["forecast"] == "aqnet"]
    rows = [row for row in rows if row["skill_best_simple"] is not None]
    if not rows:
        return ""
    leads = sorted({row["lead_time_hours"] for row in rows})
    groups = {lead: [row for row in rows if row["lead_time_hours"] == lead] for lead in leads}
    each = ", ".join(f"{percent(_mean(group))} at {lead} h" for lead, group in groups.items())
    mean = _mean(rows)
    parts = [
        "<h2>In short</h2>",
        f"<p>The error of the forecasts (RMSE) is on average <b>{abs(100 * mean):.0f} % "
        f"{'lower' if mean < 0 else 'higher'}</b> than that of the best simple forecast "
        f"({each}). The best simple forecast is picked for each pollutant and lead time with "
        "these scores in sight, which makes it a hard one to beat.</p><ul>",
        _places("Better", "the 95 % interval lies below 0", rows, "better"),
        _places("No difference shown", "the interval holds 0", rows, "open"),
        _places("Worse", "the interval lies above 0", rows, "worse"),
        "</ul>",
    ]
    if all(row["skill_best_simple_low"] is None for row in rows):
        parts.append("<p>There are no intervals, because too few days were scored.</p>")
    head = "".join(f"<th>{lead} h</th>" for lead in leads)
    parts.append(f'<div class="wide"><table><tr><th>change of error</th>{head}</tr>')
    for name in dict.fromkeys(row["pollutant"] for row in rows):
        found = {row["lead_time_hours"]: row for row in rows if row["pollutant"] == name}
        cells = "".join(_cell(found.get(lead)) for lead in leads)
        parts.append(f"<tr><td>{names.in_html(name)}</td>{cells}</tr>")
    parts.append("</table></div><p>In brackets: no difference shown.</p>")
    return "".join(parts)


def verdict(row: dict[str, Any]) -> Literal["better", "worse", "open"]:
    """Whether the 95 % interval of the skill against the best simple forecast lies above 0, below
    it, or holds it (or is unknown)."""
    low, high = row["skill_best_simple_low"], row["skill_best_simple_high"]
    if low is not None and low > 0:
        return "better"
    return "worse" if high is not None and high < 0 else "open"


def change(row: dict[str, Any]) -> float:
    """By what share the RMSE differs from that of the best simple forecast; below 0 is better."""
    return math.sqrt(1.0 - row["skill_best_simple"]) - 1.0


def percent(share: float) -> str:
    """A share as `-12 %`, with a minus sign and a space that does not break."""
    number = round(100 * share)
    sign = "" if number == 0 else "+" if number > 0 else "\N{MINUS SIGN}"
    return f"{sign}{abs(number)}\N{NO-BREAK SPACE}%"


def _mean(rows: Rows) -> float:
    """Geometric mean of the changes."""
    logs = [math.log(max(1.0 + change(row), 1e-9)) for row in rows]
    return math.exp(sum(logs) / len(logs)) - 1.0


def _places(kind: str, meaning: str, rows: Rows, wanted: str) -> str:
    """The pollutants and lead times of a verdict."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if verdict(row) == wanted:
            found.setdefault(row["pollutant"], []).append(f"{row['lead_time_hours']}")
    number = sum(map(len, found.values()))
    every = len({row["lead_time_hours"] for row in rows})
    each = []
    for name, leads in found.items():
        when = "all lead times" if len(leads) == every else f"{', '.join(leads)} h"
        each.append(f"{names.in_html(name)} at {when}")
    text = f": {'; '.join(each)}" if each else ""
    return f"<li><b>{kind}</b> in {number} of {len(rows)} ({meaning}){text}.</li>"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "<td>-</td>"
    kind, text = verdict(row), percent(change(row))
    return f'<td class="{kind}">{f"({text})" if kind == "open" else text}</td>'
