"""report.html: one self-contained page that says what was scored and how good it is."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aqnet.files import replace_text

Rows = list[dict[str, Any]]
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 62rem; padding: 1rem; }
h1, h2, h3 { line-height: 1.2; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; margin-bottom: 1rem; }
td, th { border-bottom: 1px solid #bbb; padding: .2rem .6rem; text-align: right; }
td:first-child, th:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
.facts { overflow-wrap: anywhere; }
.facts span { margin-right: 1.2em; display: inline-block; }
.facts i { color: #555; }
.one { white-space: nowrap; }
.best { background: #d7ebf7; font-weight: 600; }
.worse { color: #8c2d04; }
figure { margin: 0 0 1.5rem; }
figcaption { font-size: .9rem; }
img { max-width: 100%; height: auto; }
@media (max-width: 40rem) { body { font-size: 15px; } td, th { padding: .2rem .4rem; } }
@media print {
  @page { margin: 1.2cm; }
  body { font-size: 9pt; max-width: none; padding: 0; }
  .wide { overflow: visible; }
  td, th { padding: .1rem .25rem; font-size: 7.5pt; }
  h2, h3 { break-after: avoid; }
  tr, figure { break-inside: avoid; }
  img { max-height: 22cm; }
}
"""
_SECTIONS = {"data": "Data", "model": "Model", "train": "Training"}  # of the config


@dataclass(frozen=True)
class Picture:
    """A PNG file and what it shows."""

    path: Path
    title: str
    caption: str


def given(weather: str | None) -> str:
    """Which weather to come a model was given, in words for titles; empty where it takes none."""
    known = {
        "analysed": "given analysed weather to come, an upper bound",
        "persisted": "given the input time's weather, held",
        "none": "without weather to come",
    }
    return "" if weather is None else known.get(weather, f"given weather forecasts, {weather}")


def titled(title: str, weather: str | None) -> str:
    """A title that says which weather to come the model was given."""
    return f"{title} ({given(weather)})" if weather is not None else title


def write(
    output: Path,
    facts: dict[str, Any],
    table: Rows,
    settings: dict[str, Any],
    pictures: Sequence[Picture] = (),
    odds: str = "",
) -> Path:
    """Write `output`/report.html; every name is escaped, the page needs no network.

    Args:
        facts, table: those of metrics.json.
        settings: the config as nested dicts; odds: the section on them, as HTML.
    Returns:
        Its path.
    """
    whole = [row for row in table if row["region"] == "all" and row["subset"] == "all"]
    pollutants = list(dict.fromkeys(row["pollutant"] for row in whole))
    weather = facts.get("weather")
    parts = [
        f"<h1>{html.escape(titled('aqnet: forecasts scored', weather))}</h1>",
        f"<p>{html.escape(_summary(whole))}</p>",
        _facts({key: value for key, value in facts.items() if key != "notes"}),
        "<h2>RMSE</h2><p>The lowest of each row is marked. Skill is 1 - MSE / MSE of the best of "
        "the simple forecasts, with its 95 % interval.</p>",
        *(_errors(name, whole, weather) for name in pollutants),
        odds,
        "<h2>Pictures</h2>" if pictures else "",
        *(_figure(picture) for picture in pictures if picture.path.stem != "training"),
        "<h2>Seasons, regions and sudden changes</h2><p>RMSE of aqnet / of the best simple "
        "forecast of that part; marked where aqnet's is lower.</p>",
        *(_subsets(name, table, weather) for name in pollutants),
        "<h2>Other scores of aqnet</h2>",
        *(_scores(name, whole, weather) for name in pollutants),
        *(f"<h2>{title}</h2>{_facts(settings[key])}" for key, title in _SECTIONS.items()),
        *(_figure(picture) for picture in pictures if picture.path.stem == "training"),
        "<h2>Notes</h2><ul>",
        *(f"<li>{html.escape(note)}</li>" for note in facts["notes"]),
        "</ul>",
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>aqnet report</title><style>{_STYLE}</style></head><body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )
    path = output / "report.html"
    replace_text(path, page)
    return path


def _summary(whole: Rows) -> str:
    skills = [row for row in whole if row["forecast"] == "aqnet"]
    better = [row for row in skills if (row["skill_best_simple"] or 0) > 0]
    clearly = [row for row in better if (row["skill_best_simple_low"] or 0) > 0]
    return (
        f"aqnet is better than the best simple forecast in {len(better)} of {len(skills)} pairs of "
        f"pollutant and lead time, in {len(clearly)} of them with a 95 % interval above 0."
    )


def _facts(values: dict[str, Any]) -> str:
    """Names and values in running text; what is not set is left out."""
    items = [
        f"<span><i>{html.escape(key.replace('_', ' '))}</i> {html.escape(_text(value))}</span>"
        for key, value in values.items()
        if value is not None and value != {} and value != []
    ]
    return f'<p class="facts">{" ".join(items)}</p>'


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    title, caption = html.escape(picture.title), html.escape(picture.caption)
    return (
        f'<h3>{title}</h3><figure><img alt="{title}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _errors(pollutant: str, whole: Rows, weather: str | None) -> str:
    """RMSE of every forecast, one row per lead time."""
    rows = [row for row in whole if row["pollutant"] == pollutant]
    names = list(dict.fromkeys(row["forecast"] for row in rows))
    lines = []
    for lead in dict.fromkeys(row["lead_time_hours"] for row in rows):
        group = {row["forecast"]: row for row in rows if row["lead_time_hours"] == lead}
        lowest = min(row["rmse"] for row in group.values())
        cells = [_cell(group[name]["rmse"], lowest) if name in group else _cell() for name in names]
        lines.append([f"<td>{lead} h</td>", cells[0], _skill(group["aqnet"]), *cells[1:]])
    heads = ["lead time", names[0], "skill", *(name.replace("_", " ") for name in names[1:])]
    return titled_table(titled(f"{pollutant} [{rows[0]['unit']}]", weather), heads, lines)


def _subsets(pollutant: str, table: Rows, weather: str | None) -> str:
    """RMSE of aqnet and the best simple forecast in every other subset and region than all."""
    parts: dict[str, dict[int, dict[str, dict[str, Any]]]] = {}
    for row in table:
        region, subset = row["region"], row["subset"]
        if row["pollutant"] == pollutant and (region, subset) != ("all", "all"):
            name = subset if region == "all" else f"{region}, {subset}"
            leads = parts.setdefault(name.replace("_", " "), {})
            leads.setdefault(row["lead_time_hours"], {})[row["forecast"]] = row
    columns = sorted({lead for leads in parts.values() for lead in leads})
    lines = [
        [f"<td>{html.escape(name)}</td>", *(_against(leads.get(lead)) for lead in columns)]
        for name, leads in parts.items()
    ]
    unit = next(row["unit"] for row in table if row["pollutant"] == pollutant)
    heads = ["part", *(f"{lead} h" for lead in columns)]
    return titled_table(titled(f"{pollutant} [{unit}]", weather), heads, lines) if lines else ""


def _against(group: dict[str, dict[str, Any]] | None) -> str:
    """A cell: RMSE of aqnet / of the best simple forecast."""
    if group is None:
        return _cell()
    ours, simple = group["aqnet"]["rmse"], group[group["aqnet"]["best_simple"]]["rmse"]
    kind = "best" if ours < simple else "worse"
    return f'<td class="{kind} one">{ours:.2f} / {simple:.2f}</td>'


_COLUMNS = ("n", "mae", "bias", "r", "acc", "nmb", "fac2", "ioa", "hit_rate", "far", "csi")


def _scores(pollutant: str, whole: Rows, weather: str | None) -> str:
    lines = [
        [
            f"<td>{row['lead_time_hours']} h</td>",
            *(f"<td>{_text(row[key])}</td>" for key in _COLUMNS),
        ]
        for row in whole
        if row["pollutant"] == pollutant and row["forecast"] == "aqnet"
    ]
    heads = ["lead time", *(key.replace("_", " ") for key in _COLUMNS)]
    return titled_table(titled(pollutant, weather), heads, lines)


def titled_table(title: str, heads: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A titled table; the cells of `lines` are HTML, title and heads are not."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    rows = "".join(f"<tr>{''.join(cells)}</tr>" for cells in lines)
    return (
        f'<h3>{html.escape(title)}</h3><div class="wide"><table><tr>{head}</tr>{rows}</table></div>'
    )


def _cell(value: float | None = None, best: float | None = None) -> str:
    if value is None:
        return "<td>-</td>"
    return f"<td{' class=best' if value == best else ''}>{value:.2f}</td>"


def _skill(row: dict[str, Any]) -> str:
    value = row["skill_best_simple"]
    if value is None:
        return _cell()
    kind = "best" if value > 0 else "worse"
    low, high = row["skill_best_simple_low"], row["skill_best_simple_high"]
    limits = "" if low is None else f" ({low:.3f} to {high:.3f})"
    return f'<td class="{kind} one">{value:.3f}{limits}</td>'


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_text(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.3g}"
    return str(value)
