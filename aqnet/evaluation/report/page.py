"""report.html: one self-contained page that says what was scored and how good it is."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

from aqnet.evaluation.daily_sums import UNKNOWN
from aqnet.evaluation.report import names, summary
from aqnet.files import replace_text

Rows = list[dict[str, Any]]
Groups = dict[int, dict[str, dict[str, Any]]]
Section = Literal["odds", "place", "training", "other"]
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 68rem; padding: 1rem; }
h1, h2, h3 { line-height: 1.2; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; margin-bottom: 1rem; }
td, th { border-bottom: 1px solid #bbb; padding: .2rem .6rem; text-align: right; }
td:first-child, th:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
td small { display: block; color: #444; font: .8em/1.2 system-ui, sans-serif; white-space: nowrap; }
.part { display: inline-block; vertical-align: top; margin-right: 1rem; max-width: 100%; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem .8rem; }
dt { color: #555; }
dd { margin: 0; overflow-wrap: anywhere; }
.facts { overflow-wrap: anywhere; }
.facts span { margin-right: 1.2em; display: inline-block; }
.facts i { color: #555; }
.best, .better { background: #d7ebf7; font-weight: 600; }
.worse { color: #8c2d04; font-weight: 600; }
.pair { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0 0 1.5rem; }
figcaption { font-size: .9rem; }
img { max-width: 100%; height: auto; }
@media (max-width: 40rem) { body { font-size: 15px; } td, th { padding: .2rem .35rem; } }
@media print {
  @page { margin: 1.2cm; }
  body { font-size: 9pt; max-width: none; padding: 0; }
  .wide { overflow: visible; }
  td, th { padding: .1rem .25rem; font-size: 8pt; }
  h2, h3 { break-after: avoid; }
  tr, .part, figure { break-inside: avoid; }
  img { max-height: 22cm; }
}
"""
_AT_A_PLACE = (
    "<h2>At a place</h2><p>Forecast and truth in single cells, in two weeks: the seven days of "
    "largest mean squared error of the first pollutant over the domain, and seven of median error, "
    "found among the input times that were scored. Every third hour of them (or the step of the "
    "data, where that is longer) was forecast for these pictures, scored or not.</p>"
)
_SECTIONS = {"data": "Data", "model": "Model", "train": "Training"}  # of the config


@dataclass(frozen=True)
class Picture:
    """A PNG file and what it shows; `title` is HTML, `section` where on the page it stands."""

    path: Path
    title: str
    caption: str
    section: Section = "other"


def given(weather: str | None) -> str:
    """Which weather to come a model was given, in words for titles; empty where it takes none."""
    known = {
        "analysed": "given analysed weather to come, an upper bound",
        "persisted": "given the input time's weather, held",
        "none": "without weather to come",
        UNKNOWN: "weather to come not known",
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
    whole = whole_of(table)
    pollutants = list(dict.fromkeys(row["pollutant"] for row in whole))
    weather = facts.get("weather")
    when = titled(f" in {', '.join(facts['periods'])}, scored", weather)

    plain = ", ".join(map(names.plain, pollutants))

    def drawn(section: Section) -> str:
        return "".join(_figure(picture) for picture in pictures if picture.section == section)

    parts = [
        f"<h1>Forecasts of {', '.join(map(names.in_html, pollutants))}{escape(when)}</h1>",
        _head(facts, settings),
        summary.html(whole),
        "<h2>Errors</h2><p>Root mean square error (RMSE) by lead time, the lowest marked. Skill is "
        "1 - MSE / MSE of the best of the simple forecasts, with its 95 % interval.</p>",
        *(_errors(name, whole, weather) for name in pollutants),
        odds,
        drawn("odds"),
        drawn("place") and f'{_AT_A_PLACE}<div class="pair">{drawn("place")}</div>',
        drawn("other") and f"<h2>Pictures</h2>{drawn('other')}",
        "<h2>Seasons, regions and sudden changes</h2><p>By how much aqnet's RMSE differs from that "
        "of the best simple forecast of that part; below 0 is better.</p>",
        *(_subsets(name, table, weather) for name in pollutants),
        "<h2>Other scores of aqnet</h2>",
        *(_scores(name, whole, weather) for name in pollutants),
        "<h2>What was scored</h2>",
        _facts({key: value for key, value in facts.items() if key != "notes"}),
        *(f"<h2>{title}</h2>{_facts(settings[key])}" for key, title in _SECTIONS.items()),
        drawn("training"),
        "<h2>Notes</h2><ul>",
        *(f"<li>{escape(note)}</li>" for note in facts["notes"]),
        "</ul>",
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(f'Forecasts of {plain}{when}')}</title>"
        f"<style>{_STYLE}</style></head><body>" + "\n".join(parts) + "</body></html>\n"
    )
    path = output / "report.html"
    replace_text(path, page)
    return path


def _head(facts: dict[str, Any], settings: dict[str, Any]) -> str:
    """Which model, data, period and weather."""
    data = settings["data"]
    sources = ", ".join(source["path"] for source in data.get("sources") or ())
    times = f"{facts['samples']:,} input times"
    if facts.get("max_samples") is not None:
        times += f", drawn (--max-samples {facts['max_samples']}, seed {facts['seed']})"
    values = {
        "Model": f"{facts['checkpoint']}, after {facts['global_step']:,} optimizer steps",
        "Data": f"{data['stores']}, prepared from {sources}" if sources else data["stores"],
        "Period": f"{', '.join(facts['periods'])}, split {facts['split']}; {times}",
        "Weather": given(facts.get("weather")) or "up to the input time; none to come is given",
    }
    lines = (f"<dt>{key}</dt><dd>{escape(value)}</dd>" for key, value in values.items())
    return f"<dl>{''.join(lines)}</dl>"


def _facts(values: dict[str, Any]) -> str:
    """Names and values in running text; what is not set is left out."""
    items = [
        f"<span><i>{escape(key.replace('_', ' '))}</i> {escape(_text(value))}</span>"
        for key, value in values.items()
        if value is not None and value != {} and value != []
    ]
    return f'<p class="facts">{" ".join(items)}</p>'


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    alt = re.sub("<[^>]*>", "", picture.title)
    return (
        f'<figure><h3>{picture.title}</h3><img alt="{alt}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def _errors(pollutant: str, whole: Rows, weather: str | None) -> str:
    """Skill of aqnet and RMSE of every forecast."""
    rows = [row for row in whole if row["pollutant"] == pollutant]
    groups = by_lead_time(rows)
    lines = [("skill of aqnet", [_skill(group["aqnet"]) for group in groups.values()])]
    for name in dict.fromkeys(row["forecast"] for row in rows):
        cells = []
        for group in groups.values():
            lowest = min(row["rmse"] for row in group.values())
            cells.append(_cell(group[name]["rmse"], lowest) if name in group else _cell())
        lines.append((name.replace("_", " "), cells))
    return lead_table(heading(rows[0], weather), groups, lines)


def _subsets(pollutant: str, table: Rows, weather: str | None) -> str:
    """Change of RMSE against the best simple forecast in each other subset and region than all."""
    found: dict[str, Rows] = {}
    for row in table:
        region, subset = row["region"], row["subset"]
        if row["pollutant"] == pollutant and (region, subset) != ("all", "all"):
            name = subset if region == "all" else f"{region}, {subset}"
            found.setdefault(name.replace("_", " "), []).append(row)
    parts = {name: by_lead_time(rows) for name, rows in found.items()}
    columns = sorted({lead for leads in parts.values() for lead in leads})
    lines = [
        (name, [_against(leads.get(lead)) for lead in columns]) for name, leads in parts.items()
    ]
    row = next(row for row in table if row["pollutant"] == pollutant)
    return lead_table(heading(row, weather, unit=False), columns, lines) if lines else ""


def _against(group: dict[str, dict[str, Any]] | None) -> str:
    """A cell: change of aqnet's RMSE against the best simple forecast."""
    if group is None or group["aqnet"]["skill_best_simple"] is None:
        return _cell()
    change = summary.change(group["aqnet"])
    return f'<td class="{"best" if change < 0 else "worse"}">{summary.percent(change)}</td>'


_SCORES = ("n", "mae", "bias", "r", "acc", "nmb", "fac2", "ioa", "hit_rate", "far", "csi")


def _scores(pollutant: str, whole: Rows, weather: str | None) -> str:
    rows = [row for row in whole if (row["pollutant"], row["forecast"]) == (pollutant, "aqnet")]
    leads = [row["lead_time_hours"] for row in rows]
    lines = [
        (key.replace("_", " "), [f"<td>{_score(row[key])}</td>" for row in rows]) for key in _SCORES
    ]
    return lead_table(heading(rows[0], weather), leads, lines)


def whole_of(rows: Rows) -> Rows:
    """The rows over all regions and subsets."""
    return [row for row in rows if row["region"] == "all" and row["subset"] == "all"]


def by_lead_time(rows: Rows) -> Groups:
    """A row of each forecast by lead time."""
    groups: Groups = {}
    for row in rows:
        groups.setdefault(row["lead_time_hours"], {})[row["forecast"]] = row
    return groups


def nearest_a_day(leads: Iterable[int]) -> int:
    """The lead time, of those, that is drawn where only one is."""
    return min(leads, key=lambda hours: abs(hours - 24))


def heading(row: dict[str, Any], weather: str | None, unit: bool = True) -> str:
    """The pollutant of a row with its unit and the weather that the model was given, as HTML."""
    name = names.in_html(row["pollutant"])
    name += f" [{escape(names.unit(row['unit']))}]" if unit else ""
    return with_weather(name, weather)


def with_weather(title: str, weather: str | None) -> str:
    """`titled` of HTML."""
    return title if weather is None else f"{title} ({escape(given(weather))})"


def lead_table(title: str, leads: Iterable[int], lines: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A titled table with a column per lead time, which a phone shows whole.

    Args:
        title: HTML; lines: a name and its cells, the cells HTML.
    """
    head = "".join(f"<th>{lead} h</th>" for lead in leads)
    rows = "".join(f"<tr><td>{escape(name)}</td>{''.join(cells)}</tr>" for name, cells in lines)
    table = f"<table><tr><th>lead time</th>{head}</tr>{rows}</table>"
    return f'<div class="part"><h3>{title}</h3><div class="wide">{table}</div></div>'


def _cell(value: float | None = None, best: float | None = None) -> str:
    if value is None:
        return "<td>-</td>"
    return f"<td{' class=best' if value == best else ''}>{value:.2f}</td>"


def _skill(row: dict[str, Any]) -> str:
    value = row["skill_best_simple"]
    if value is None:
        return _cell()
    kind = summary.verdict(row)
    return f'<td class="{kind}">{value:.3f}{limits(row, "skill_best_simple")}</td>'


def limits(row: dict[str, Any], key: str) -> str:
    """The 95 % interval of a score, small under it, as HTML; empty where there is none."""
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    return "" if low is None or high is None else f"<small>{low:.3f} to<br>{high:.3f}</small>"


def _score(value: float | None) -> str:
    return f"{value:.3f}" if isinstance(value, float) else _text(value)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_text(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.3g}"
    return f"{value:,}" if type(value) is int else str(value)
