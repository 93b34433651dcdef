"""Sums per day of a scored run, in OUTPUT/days.npz: what paired comparisons of runs need."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aqnet.errors import AqnetError
from aqnet.evaluation import metrics
from aqnet.evaluation.run import Scorer
from aqnet.files import write_beside

Values = NDArray[np.float64]

UNKNOWN = "not known"


class Daily(NamedTuple):
    """Sums over the pairs of each day of input times.

    Attributes:
        forecasts [F], targets [T], lead_times [K], regions [R]: the names of the axes.
        times: every input time scored, hours since 1970 UTC, ascending, shape [N].
        days: days since 1970, consecutive, shape [D].
        errors: squared errors in the square of the target's unit, times the cells' weights, shape
            [D, F, K, T, R]; weights: the sums of the cells' weights, the same shape.
        crps: sums of the first forecast's CRPS in the target's unit, times weights, shape
            [D, K, T, R]; None without quantiles.
        weather: to come, that the first forecast was given, shape []; empty where it takes none;
            None in files from before it was kept.
    """

    forecasts: NDArray[np.str_]
    targets: NDArray[np.str_]
    lead_times: NDArray[np.int64]
    regions: NDArray[np.str_]
    times: NDArray[np.int64]
    days: NDArray[np.int64]
    errors: Values
    weights: Values
    crps: Values | None = None
    weather: NDArray[np.str_] | None = None

    @property
    def given(self) -> str | None:
        """The weather to come that the first forecast was given, as results name it: None where it
        takes none, `UNKNOWN` where the file does not say."""
        return UNKNOWN if self.weather is None else str(self.weather) or None


def of(scorer: Scorer, weather: str | None = None) -> Daily:
    """The sums of a scorer that has scored something, whose model was given `weather` to come."""
    data = scorer.config.data
    days = np.arange(min(scorer.days), max(scorer.days) + 1)
    none = np.zeros((*scorer.totals.shape[:4], 2))
    sums = np.stack([scorer.days.get(int(day), none) for day in days])
    return Daily(
        np.array(scorer.forecasts),
        np.array(data.targets),
        np.array(data.lead_times),
        np.array(scorer.regions),
        np.array(sorted(scorer.records.series)),
        days,
        sums[..., 0],
        sums[..., 1],
        None if scorer.odds is None else scorer.odds.crps_by_day(days.tolist()),
        np.array(weather or ""),
    )


def write(path: Path, daily: Daily) -> None:
    """Write days.npz."""
    with write_beside(path) as file:
        known = {name: part for name, part in daily._asdict().items() if part is not None}
        np.savez_compressed(file, **known)


def read(path: Path) -> Daily:
    """The inverse of `write`.

    Raises:
        AqnetError: there is no such file, or it holds something else.
    """
    beside = path.with_name("metrics.json")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = Daily(**{name: file[name] for name in file.files})
        if found.weather is None and beside.exists():  # older files leave it to metrics.json
            known = json.loads(beside.read_text(encoding="utf-8"))
            if "weather" in known:
                found = found._replace(weather=np.array(known["weather"] or ""))
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise AqnetError(
            f"{path}: cannot read the sums per day, or {beside.name} beside it: {error}; "
            "evaluate.py writes them"
        ) from None
    return found


def other_pairs(first: Daily, second: Daily) -> str | None:
    """In what the pairs differ over which two runs were scored, None where they are the same."""
    if not np.array_equal(first.times, second.times):
        return "input times"
    same = np.array_equal(first.weights[:, 0], second.weights[:, 0])
    return None if same else "cells"


def change_of_rmse(
    pairs: Sequence[tuple[Daily, Daily]], resamples: int = metrics.RESAMPLES
) -> tuple[Values, Values, Values, Values]:
    """How much the second run's RMSE of its first forecast differs from the first's, in per cent.

    Args:
        pairs: two runs each, of one seed, scored over the same times and cells.
    Returns:
        The change of each pair [P, K, T + 1], of all pairs' mean squared errors [K, T + 1], and its
        95 % limits by bootstrap of pairs and of blocks of 10 days (NaN where there are fewer than
        MIN_BLOCKS). The last column is the geometric mean over targets.
    Raises:
        AqnetError: the runs were scored over other times or cells.
    """
    first = pairs[0][0]
    for sums in (sums for pair in pairs for sums in pair):
        other = other_pairs(first, sums)
        if other is not None:
            raise AqnetError(f"runs that were scored over other {other} cannot be compared")
    errors = np.array([[sums.errors[:, 0, ..., 0] for sums in pair] for pair in pairs])
    blocks = metrics.blocks(np.moveaxis(errors, 2, 0))  # [B, P, 2, K, T]
    whole = blocks.sum(0)
    change = _per_cent(whole.swapaxes(0, 1)), _per_cent(whole.sum(0))
    if len(blocks) < metrics.MIN_BLOCKS:
        return *change, *np.full((2, *change[1].shape), np.nan)
    generator = np.random.default_rng(0)
    days = generator.multinomial(len(blocks), np.full(len(blocks), 1 / len(blocks)), resamples)
    seeds = generator.multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), resamples)
    drawn = np.einsum("rp,rb,bpckt->crkt", seeds, days, blocks, optimize=True)
    low, high = np.quantile(_per_cent(drawn), (0.025, 0.975), axis=0)
    return *change, low, high


def _per_cent(errors: Values) -> Values:
    """Change of RMSE from errors [2, ..., T], with the geometric mean over targets appended."""
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = 0.5 * np.log(errors[1] / errors[0])
    mean = np.mean(logs, axis=-1, keepdims=True)
    change: Values = 100.0 * np.expm1(np.concatenate([logs, mean], axis=-1))
    return change
