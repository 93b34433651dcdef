"""Sums per day of a scored run, in OUTPUT/days.npz: what paired comparisons of runs need."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aqnet.errors import AqnetError
from aqnet.evaluation.run import Scorer

Values = NDArray[np.float64]


class Daily(NamedTuple):
    """Sums over the pairs of each day of input times.

    Attributes:
        forecasts [F], targets [T], lead_times [K], regions [R]: the names of the axes.
        times: every input time scored, hours since 1970 UTC, ascending, shape [N].
        days: days since 1970, consecutive, shape [D].
        errors: squared errors in the square of the target's unit, times the cells' weights, shape
            [D, F, K, T, R]; weights: the sums of the cells' weights, the same shape.
    """

    forecasts: NDArray[np.str_]
    targets: NDArray[np.str_]
    lead_times: NDArray[np.int64]
    regions: NDArray[np.str_]
    times: NDArray[np.int64]
    days: NDArray[np.int64]
    errors: Values
    weights: Values


def of(scorer: Scorer) -> Daily:
    """The sums of a scorer that has scored something."""
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
    )


def write(path: Path, daily: Daily) -> None:
    """Write a new file, atomically."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **daily._asdict())
    partial.replace(path)


def read(path: Path) -> Daily:
    """The inverse of `write`.

    Raises:
        AqnetError: there is no such file, or it holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return Daily(**{name: file[name] for name in Daily._fields})
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise AqnetError(
            f"{path}: cannot read the sums per day: {error}; evaluate.py writes them"
        ) from None
