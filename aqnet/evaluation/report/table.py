"""Rows of metrics.csv and metrics.json, from the sums of a scorer."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from aqnet.errors import AqnetError
from aqnet.evaluation import daily_sums, metrics
from aqnet.evaluation.run import Scorer
from aqnet.evaluation.stations.stations import StationScores
from aqnet.files import replace_text

_N = metrics.SUMS.index("n")


def rows(scorer: Scorer | StationScores, units: dict[str, str]) -> list[dict[str, Any]]:
    """One row per forecast, pollutant, lead time, region and subset that holds any pair.

    The forecasts of one pollutant, lead time, region and subset are all of the same pairs: one
    that lacks some of them has a row only in the subset common with it.
    """
    found = []
    sums = daily_sums.of(scorer) if isinstance(scorer, Scorer) and scorer.days else None
    for at in np.ndindex(scorer.totals.shape[1:5]):
        if _is_own(scorer, at) and scorer.totals[0][at][_N] > 0:
            numbers = scorer.totals[(slice(None), *at, _N)]
            same = np.flatnonzero(numbers == numbers[0])
            found += [_row(scorer, units, sums, int(number), at) for number in same]
    return found


def _is_own(scorer: Scorer | StationScores, at: tuple[int, ...]) -> bool:
    """Whether a subset is a fixed one, or common with a forecast that lacks pairs of `all`."""
    lead, target, region, subset = at
    common = subset - len(scorer.subsets) + len(scorer.forecasts)  # the forecast common with
    if common < scorer.own:
        return True
    numbers = scorer.totals[:, lead, target, region, 0, _N]
    return bool(numbers[common] != numbers[0])


def _row(
    scorer: Scorer | StationScores,
    units: dict[str, str],
    sums: daily_sums.Daily | None,
    number: int,
    at: tuple[int, ...],
) -> dict[str, Any]:
    lead, target, region, subset = at
    group = scorer.totals[:, lead, target, region, subset]
    best = 1 + int(np.argmin(group[1 : scorer.own, metrics.SUMS.index("ee")]))
    name = scorer.config.data.targets[target]
    row: dict[str, Any] = {
        "forecast": scorer.forecasts[number],
        "pollutant": name,
        "lead_time_hours": scorer.config.data.lead_times[lead],
        "region": scorer.regions[region],
        "subset": scorer.subsets[subset],
        "unit": units[name],
    }
    values = metrics.scores(group[number], float(scorer.mean[target]))
    first = ("n", "rmse", "mae", "bias", "r", "acc")
    row |= {key: values[key] for key in first}
    row["skill_persistence"] = metrics.skill(group[number], group[1])
    row["skill_best_simple"] = metrics.skill(group[number], group[best])
    row["best_simple"] = scorer.forecasts[best]
    row |= _interval_columns(sums, number, best, at)
    if isinstance(scorer, Scorer) and scorer.odds is not None:
        row |= scorer.odds.columns(scorer.forecasts[number], at)
    row |= {key: value for key, value in values.items() if key not in first}
    if name not in metrics.EVENT_THRESHOLDS:
        row |= dict.fromkeys((*metrics.COUNTED[1:], "far", "hit_rate", "csi"))
    return row


def reliability(scorer: Scorer) -> list[dict[str, Any]]:
    """Rows of reliability.csv; none without odds."""
    if scorer.odds is None:
        return []
    data, found = scorer.config.data, []
    for at in np.ndindex(scorer.odds.totals.shape[1:5]):
        lead, target, region, subset = at
        about = {
            "pollutant": data.targets[target],
            "lead_time_hours": data.lead_times[lead],
            "region": scorer.regions[region],
            "subset": scorer.subsets[subset],
        }
        found += [{**about, **row} for row in scorer.odds.reliability(at)]
    return found


def write(output: Path, facts: dict[str, Any], table: list[dict[str, Any]]) -> None:
    """metrics.json (`facts` and rows) and metrics.csv, atomically."""
    if not table:
        raise AqnetError(
            f"{output}: nothing to score: no pair of the split has a truth and an input value"
        )
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**facts, "rows": table}, indent=1, allow_nan=False)
    replace_text(output / "metrics.json", text + "\n")
    write_csv(output / "metrics.csv", table)


def write_csv(path: Path, table: list[dict[str, Any]]) -> None:
    """Rows under a header, atomically; an empty file where there is none."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(table[0]) if table else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    replace_text(path, buffer.getvalue())


_SHORT = {"persistence": "persist", "climatology": "climat"}
_SHORT |= {
    "damped_persistence": "damped",
    "damped_anomaly": "damp.anom",
    "recent_anomaly": "recent.an",
}


def skill_table(table: list[dict[str, Any]]) -> str:
    """RMSE of every forecast and aqnet's skill against the best simple one, as text; once more
    for each forecast that lacks pairs, over the pairs that it has."""
    subsets = dict.fromkeys(row["subset"] for row in table if row["region"] == "all")
    lines = _skill_lines(table, "all")
    for subset in (name for name in subsets if name.startswith("common_")):
        other = subset.removeprefix("common_")
        lines += ["", f"over the pairs alone that {other} has:", *_skill_lines(table, subset)]
    return "\n".join(lines)


def _skill_lines(table: list[dict[str, Any]], subset: str) -> list[str]:
    groups: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in table:
        if row["region"] == "all" and row["subset"] == subset:
            key = row["pollutant"], row["lead_time_hours"]
            groups.setdefault(key, {})[row["forecast"]] = row
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    heads = "".join(f"{_SHORT.get(name, name)[:10]:>11s}" for name in names)
    lines = [f"{'RMSE':8s}{'unit':8s}{'lead':>5s}{heads}  skill against the best simple one"]
    beaten = 0
    order = list(dict.fromkeys(pollutant for pollutant, _ in groups))
    for (name, lead), group in sorted(
        groups.items(), key=lambda x: (order.index(x[0][0]), x[0][1])
    ):
        errors = [f"{group[key]['rmse']:11.2f}" if key in group else f"{'-':>11s}" for key in names]
        ours = group["aqnet"]
        skill = ours["skill_best_simple"]
        beaten += skill is not None and skill > 0
        best = "" if skill is None else f"  {skill:6.3f}  {ours['best_simple']}"
        lines.append(f"{name:8s}{ours['unit']:8s}{lead:4d}h{''.join(errors)}{best}")
    lines.append(f"aqnet is better than the best simple forecast in {beaten} of {len(groups)}")
    return lines


def _interval_columns(
    sums: daily_sums.Daily | None, number: int, best: int, at: tuple[int, ...]
) -> dict[str, float | None]:
    """Limits of a forecast's RMSE and of its skill against forecast `best`, in subset `all`."""
    lead, target, region, subset = at
    keys = ("rmse_low", "rmse_high", "skill_best_simple_low", "skill_best_simple_high")
    if sums is None or subset != 0:
        return dict.fromkeys(keys)
    errors, weights = (part[:, :, lead, target, region] for part in (sums.errors, sums.weights))
    mse = metrics.intervals(np.stack([errors[:, number], weights[:, number]], axis=1))
    ratio = metrics.intervals(np.stack([errors[:, number], errors[:, best]], axis=1))
    values = (*np.sqrt(mse), *(1.0 - ratio[::-1]))
    found = [float(value) if np.isfinite(value) else None for value in values]
    return dict(zip(keys, found, strict=True))
