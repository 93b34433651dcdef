"""Two runs scored over the same pairs: paired differences and whether they are more than chance."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aqnet.errors import AqnetError
from aqnet.evaluation import daily_sums, metrics
from aqnet.evaluation.daily_sums import Daily
from aqnet.evaluation.report import page, table

Values = NDArray[np.float64]

LEVEL = 0.05  # of significance


def run(first: Path, second: Path, output: Path) -> None:
    """Compare two scored runs in `output`/compare.csv and on the terminal."""
    runs = [daily_sums.read(_file(path)) for path in (first, second)]
    rows = _compared(first, second, runs)
    weather = [run.given for run in runs]
    if any(weather):
        rows = [{**row, "weather_a": weather[0], "weather_b": weather[1]} for row in rows]
    output.mkdir(parents=True, exist_ok=True)
    table.write_csv(output / "compare.csv", rows)
    names = [
        page.titled(f"{name}: {path}", given)
        for name, path, given in zip("AB", (first, second), weather, strict=True)
    ]
    if weather[0] != weather[1]:
        names.append(
            "whether A and B were given the same weather to come is not known: score them again"
            if daily_sums.UNKNOWN in weather
            else "A and B were not given the same weather to come: this compares that as well"
        )
    print(*names, text(rows), f"written: {output / 'compare.csv'}", sep="\n", flush=True)


def compare(first: Path, second: Path) -> list[dict[str, Any]]:
    """Rows per pollutant, lead time and region that both runs have, of MSE first minus second.

    Args:
        first, second: folders that evaluate.py wrote, or run directories with one in `evaluation`.
    Raises:
        AqnetError: one was never scored, or they were scored over different pairs.
    """
    return _compared(first, second, [daily_sums.read(_file(path)) for path in (first, second)])


def _compared(first: Path, second: Path, runs: list[Daily]) -> list[dict[str, Any]]:
    _check_same_times(first, second, *runs)
    rows = []
    for target in _shared(runs, "targets"):
        for lead in _shared(runs, "lead_times"):
            for region in _shared(runs, "regions"):
                _check_same_pairs(first, second, runs, target, lead, region)
                (ours, weights), (theirs, _) = (
                    _of(run, "aqnet", target, lead, region) for run in runs
                )
                if weights.sum() > 0:
                    about = {"pollutant": target, "lead_time_hours": int(lead), "region": region}
                    row = {**about, **difference(ours, theirs, weights)}
                    a, b = (_crps(run, target, lead, region) for run in runs)
                    if a is not None and b is not None:
                        row |= crps_difference(a, b, weights)
                    rows.append(row)
    if not rows:
        raise AqnetError(f"{first} and {second}: have no pollutant and lead time in common")
    return rows


def difference(first: Values, second: Values, weights: Values) -> dict[str, Any]:
    """Comparison of two forecasts of the same pairs.

    Args:
        first, second: sums of squared errors per consecutive day; weights: their weights, [D].
    """
    total = weights.sum()
    found = _tested(first, second, weights)
    return {
        "days": int((weights > 0).sum()),
        "rmse_a": math.sqrt(first.sum() / total),
        "rmse_b": math.sqrt(second.sum() / total),
        **{f"mse_{key}": found.pop(key) for key in list(found) if key.startswith("difference")},
        **found,
    }


def crps_difference(first: Values, second: Values, weights: Values) -> dict[str, Any]:
    """The same of sums of CRPS per day, as columns that begin with `crps_`."""
    total = weights.sum()
    means = {"a": float(first.sum() / total), "b": float(second.sum() / total)}
    return {
        f"crps_{key}": value for key, value in (means | _tested(first, second, weights)).items()
    }


def _tested(first: Values, second: Values, weights: Values) -> dict[str, Any]:
    """Mean difference of losses per day, its interval and test, and which run is better."""
    gap = float((first - second).sum() / weights.sum())
    low, high = metrics.intervals(np.stack([first - second, weights], axis=1))
    statistic = diebold_mariano(first - second, weights)
    days = int((weights > 0).sum())
    p_value = None if statistic is None else significance(statistic, days)
    known = np.isfinite(low)
    chance = p_value is None or p_value >= LEVEL or low <= 0.0 <= high
    return {
        "difference": gap,
        "difference_low": float(low) if known else None,
        "difference_high": float(high) if known else None,
        "diebold_mariano": statistic,
        "p_value": p_value,
        "better": "" if chance else ("B" if gap > 0 else "A"),
    }


def diebold_mariano(losses: Values, weights: Values) -> float | None:
    """Statistic of Diebold and Mariano (1995) for equal mean squared errors.

    The mean difference over its standard error, of which the variance allows for autocorrelation
    over BLOCK_DAYS days (Newey and West 1987: weights 1 - lag / (BLOCK_DAYS + 1)) and, days having
    unequal numbers of pairs, is that of a ratio of sums.

    Args:
        losses: sums of the difference of squared errors per consecutive day, 0 where the day has
            no pair; weights: of the pairs, shape [D].
    Returns:
        None where there are fewer than MIN_BLOCKS blocks of days, or no difference at all.
    """
    if len(metrics.blocks(np.stack([losses, weights], axis=1))) < metrics.MIN_BLOCKS:
        return None
    mean = losses.sum() / weights.sum()
    parts = (losses - mean * weights) / weights.mean()
    days = len(losses)
    variance = float(parts @ parts)
    for lag in range(1, metrics.BLOCK_DAYS + 1):
        share = 1.0 - lag / (metrics.BLOCK_DAYS + 1)
        variance += 2.0 * share * float(parts[lag:] @ parts[:-lag])
    return float(mean / (math.sqrt(variance) / days)) if variance > 0 else None


def significance(statistic: float, days: int) -> float:
    """Two-sided p-value of `diebold_mariano` over so many days with pairs.

    In units of an estimated standard error the mean strays further than a normal variable, the more
    so the larger a share b of the record its lags are: the 97.5 % point is that of Kiefer and
    Vogelsang (2005, Econometric Theory 21) for this kernel, to which the normal one is stretched.
    """
    b = min(1.0, (metrics.BLOCK_DAYS + 1) / days)
    point = 1.96 + 2.9694 * b + 0.4160 * b**2 - 0.5324 * b**3
    return math.erfc(abs(statistic) * 1.96 / point / math.sqrt(2.0))


def text(rows: list[dict[str, Any]]) -> str:
    """The rows of the whole domain as a table, with a summary."""
    whole = [row for row in rows if row["region"] == "all"]
    lines = [f"{'':8s}{'lead':>5s}{'RMSE A':>11s}{'RMSE B':>11s}  MSE A - B (95 %), p"]
    lines += [_line(row, ("rmse_a", "rmse_b"), "mse_difference", "") for row in whole]
    with_odds = [row for row in whole if "crps_a" in row]
    if with_odds:
        lines.append(f"{'':8s}{'lead':>5s}{'CRPS A':>11s}{'CRPS B':>11s}  A - B (95 %), p")
        columns = ("crps_a", "crps_b"), "crps_difference", "crps_"
        lines += [_line(row, *columns) for row in with_odds]
    better = [sum(row["better"] == name for row in whole) for name in "AB"]
    lines.append(
        f"A is better in {better[0]}, B in {better[1]} of {len(whole)}; otherwise no difference "
        f"beyond chance (both tests at {LEVEL:.0%}; of 20 equal pairs about one is called better). "
        "Chance is that of the weather: another seed of the same settings may differ as much."
    )
    return "\n".join(lines)


def _line(row: dict[str, Any], scores: tuple[str, str], gap: str, prefix: str) -> str:
    """Two scores and the test of their difference, whose columns begin with `prefix`."""
    line = f"{row['pollutant']:8s}{row['lead_time_hours']:4d}h"
    line += f"{row[scores[0]]:11.3f}{row[scores[1]]:11.3f}  {row[gap]:.4g}"
    p_value, better = row[f"{prefix}p_value"], row[f"{prefix}better"]
    if p_value is not None and row[f"{gap}_low"] is not None:
        line += f" ({row[f'{gap}_low']:.4g} to {row[f'{gap}_high']:.4g})"
        line += f", p = {p_value:.3f}" if p_value >= 0.001 else ", p < 0.001"
    return line + (f"  {better} is better" if better else "")


def _crps(run: Daily, target: str, lead: int, region: str) -> Values | None:
    """Sums of the model's CRPS per day [D], None where the run has none."""
    if run.crps is None:
        return None
    at = [
        getattr(run, axis).tolist().index(name)
        for axis, name in (("lead_times", lead), ("targets", target), ("regions", region))
    ]
    found: Values = run.crps[:, at[0], at[1], at[2]]
    return found


def _file(path: Path) -> Path:
    inside = path / "evaluation" / "days.npz"
    return inside if inside.exists() else path / "days.npz"


def _check_same_times(first: Path, second: Path, a: Daily, b: Daily) -> None:
    if not np.array_equal(a.times, b.times):
        both = len(np.intersect1d(a.times, b.times))
        raise AqnetError(
            f"{first} was scored at {len(a.times)} input times and {second} at {len(b.times)}, "
            f"{both} of them the same; score both with the same --split, --max-samples and --seed"
        )


def _check_same_pairs(
    first: Path, second: Path, runs: list[Daily], target: str, lead: int, region: str
) -> None:
    """Refuse other cells, or another truth, of which the errors of persistence tell."""
    (errors, weights), (others, other_weights) = (
        _of(run, "persistence", target, lead, region) for run in runs
    )
    lack = None if np.allclose(weights, other_weights, rtol=1e-9) else "over other cells or pairs"
    # the truth went through the normalisation of the model in float32
    if lack is None and not np.allclose(errors.sum(), others.sum(), rtol=1e-3):
        lack = "against another truth"
    if lack is not None:
        raise AqnetError(
            f"{first} and {second}: {target} at {lead} h was scored {lack}; use the same stores, "
            "mask and regions for both"
        )


def _shared(runs: list[Daily], axis: str) -> list[Any]:
    first, second = (getattr(run, axis).tolist() for run in runs)
    return [name for name in first if name in second]


def _of(run: Daily, forecast: str, target: str, lead: int, region: str) -> tuple[Values, Values]:
    """Errors and weights of a forecast per day, each of shape [D]."""
    at = (
        slice(None),
        run.forecasts.tolist().index(forecast),
        run.lead_times.tolist().index(lead),
        run.targets.tolist().index(target),
        run.regions.tolist().index(region),
    )
    return run.errors[at], run.weights[at]
