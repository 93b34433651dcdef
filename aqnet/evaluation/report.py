"""report.html: one self-contained page that says what was scored and how good it is."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from aqnet.checkpoint_files import replace_text

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
td, th { border-bottom: 1px solid #bbb; padding: .2rem .6rem; text-align: right; }
td:first-child, th:first-child { text-align: left; }
.best { background: #d7ebf7; font-weight: 600; }
.worse { color: #8c2d04; }
@media print { body { font-size: 10pt; max-width: none; } }
"""


def write(output: Path, facts: dict[str, Any], table: list[dict[str, Any]]) -> Path:
    """Write `output`/report.html from the facts and rows of metrics.json; returns its path.

    Every name is escaped; the page needs no network.
    """
    whole = [row for row in table if row["region"] == "all" and row["subset"] == "all"]
    pollutants = list(dict.fromkeys(row["pollutant"] for row in whole))
    body = [
        "<h1>aqnet: forecasts scored</h1>",
        _facts(facts),
        "<h2>RMSE</h2><p>The lowest of each row is marked. Skill is 1 - MSE / MSE of the best of "
        "the simple forecasts, with its 95 % interval.</p>",
        *(_errors(name, whole) for name in pollutants),
        "<h2>Other scores of aqnet</h2>",
        *(_scores(name, whole) for name in pollutants),
        "<h2>Notes</h2><ul>",
        *(f"<li>{html.escape(note)}</li>" for note in facts["notes"]),
        "</ul>",
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>aqnet report</title><style>{_STYLE}</style></head><body>"
        + "\n".join(body)
        + "</body></html>\n"
    )
    path = output / "report.html"
    replace_text(path, page)
    return path


def _facts(facts: dict[str, Any]) -> str:
    said = {key.replace("_", " "): _said(facts[key]) for key in facts if key != "notes"}
    rows = [
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>"
        for key, value in said.items()
    ]
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _errors(pollutant: str, whole: list[dict[str, Any]]) -> str:
    """RMSE of every forecast, one row per lead time."""
    rows = [row for row in whole if row["pollutant"] == pollutant]
    names = list(dict.fromkeys(row["forecast"] for row in rows))
    lines = []
    for lead in dict.fromkeys(row["lead_time_hours"] for row in rows):
        group = {row["forecast"]: row for row in rows if row["lead_time_hours"] == lead}
        lowest = min(row["rmse"] for row in group.values())
        cells = [
            f"<td{' class=best' if group[name]['rmse'] == lowest else ''}>"
            f"{group[name]['rmse']:.2f}</td>"
            for name in names
        ]
        lines.append(f"<tr><td>{lead} h</td>{''.join(cells)}{_skill(group['aqnet'])}</tr>")
    heads = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in names)
    return (
        f"<h3>{html.escape(pollutant)} [{html.escape(rows[0]['unit'])}]</h3>"
        f'<div class="wide"><table><tr><th>lead time</th>{heads}<th>skill</th></tr>'
        f"{''.join(lines)}</table></div>"
    )


def _skill(row: dict[str, Any]) -> str:
    value = row["skill_best_simple"]
    if value is None:
        return "<td>-</td>"
    kind = "best" if value > 0 else "worse"
    low, high = row["skill_best_simple_low"], row["skill_best_simple_high"]
    limits = "" if low is None else f" ({low:.3f} to {high:.3f})"
    return f"<td class={kind}>{value:.3f}{limits}</td>"


_COLUMNS = ("n", "mae", "bias", "r", "acc", "nmb", "fac2", "ioa", "hit_rate", "far", "csi")


def _scores(pollutant: str, whole: list[dict[str, Any]]) -> str:
    lines = [
        f"<tr><td>{row['lead_time_hours']} h</td>"
        + "".join(f"<td>{_said(row[name])}</td>" for name in _COLUMNS)
        + "</tr>"
        for row in whole
        if row["pollutant"] == pollutant and row["forecast"] == "aqnet"
    ]
    heads = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    return (
        f"<h3>{html.escape(pollutant)}</h3>"
        f'<div class="wide"><table><tr><th>lead time</th>{heads}</tr>{"".join(lines)}</table></div>'
    )


def _said(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
