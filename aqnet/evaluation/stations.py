"""Forecasts against stations: a CSV of id, lat, lon, time, pollutant, value."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aqnet.config import Config
from aqnet.errors import AqnetError
from aqnet.evaluation import metrics
from aqnet.evaluation.forecasts.zarr_files import OffTheHour, hour_of
from aqnet.evaluation.interpolation import Interpolation, bilinear
from aqnet.grid import Grid

Values = NDArray[np.float64]
Fields = NDArray[np.float32]

COLUMNS = ("id", "lat", "lon", "time", "pollutant", "value")
_MISSING = ("", "nan", "-999", "-999.0")


@dataclass
class Observations:
    """Values at stations inside the domain.

    Attributes:
        names: ids, in the order of the file.
        points: interpolation from the cells of the domain to the stations.
        values: by hour since 1970 UTC, in the unit of the target, NaN where there is none [T, P].
        left_out: how many lines of the file do not count, by reason.
    """

    names: tuple[str, ...]
    points: Interpolation
    values: dict[int, Fields]
    left_out: dict[str, int]


def read(path: str, config: Config, grid: Grid, wanted: NDArray[np.int64]) -> Observations:
    """Read a file of observations.

    Args:
        path: CSV with a header line that has all of COLUMNS; times are ISO 8601, UTC where they
            name no zone; values are in the unit of the target.
        wanted: hours that will be asked for; others are left out.
    Raises:
        AqnetError: it cannot be read, a number is none, or a station is in two places (file and
            line are named), or no line counts.
    """
    left_out: Counter[str] = Counter()
    places: dict[str, tuple[float, float]] = {}
    found: dict[tuple[str, int, str], float] = {}
    hours = set(wanted.tolist())
    for number, row in _lines(path):
        where = f"{path}, line {number}"
        place = _number(row, "lat", where), _number(row, "lon", where)
        if places.setdefault(row["id"], place) != place:
            raise AqnetError(f"{where}: station {row['id']} was at {places[row['id']]} before")
        reason = _add(row, where, config.data.targets, hours, found)
        if reason:
            left_out[reason] += 1
    if not places:
        raise AqnetError(f"{path}: holds no line below its header")
    lat, lon = np.array(list(places.values())).T
    points = bilinear(grid.lat.numpy(), grid.lon.numpy(), lat, lon).within(grid.mask.numpy())
    number_of = {name: at for at, name in enumerate(np.array(list(places))[points.inside].tolist())}
    values: dict[int, Fields] = {}
    for (name, hour, target), value in found.items():
        if name not in number_of:
            left_out["stations outside the domain"] += 1
            continue
        if hour not in values:
            values[hour] = np.full((len(config.data.targets), len(number_of)), np.nan, np.float32)
        values[hour][config.data.targets.index(target), number_of[name]] = value
    if not values:
        raise AqnetError(
            f"{path}: no line counts at the times evaluated in the domain; left out: "
            + (", ".join(f"{n} {reason}" for reason, n in left_out.items()) or "none")
        )
    inside = Interpolation(points.corners[:, points.inside], points.weights[:, points.inside])
    return Observations(tuple(number_of), inside, values, dict(sorted(left_out.items())))


class StationScores:
    """Sums at stations, which count alike; rows of them are made as those of a `run.Scorer`, but
    without intervals, because stations are few and near each other.

    Attributes:
        regions: `all` stations together, then each id.
        own: how many forecasts have a value wherever any has; they come first.
        totals: shape [F, K, T, R, S, M] as a scorer's, the subsets being `all` and the common ones.
    """

    def __init__(
        self,
        observations: Observations,
        config: Config,
        mean: Values,
        thresholds: Values,
        forecasts: tuple[str, ...],
        own: int,
    ) -> None:
        """`forecasts`: names, of which the first `own` have a value wherever any has."""
        self.observations, self.config, self.mean = observations, config, mean
        self._thresholds, self.forecasts, self.own = thresholds, forecasts, own
        self._climatology = forecasts.index("climatology")
        self.regions = ("all", *observations.names)
        self.subsets = ("all", *(f"common_{name}" for name in forecasts[own:]))
        k, t = len(config.data.lead_times), len(config.data.targets)
        sizes = len(self.regions), len(self.subsets), len(metrics.SUMS)
        self.totals = np.zeros((len(forecasts), k, t, *sizes))

    def add(self, time: int, forecasts: Fields) -> None:
        """Add the forecasts at the stations [F, K, T, P] of an input time, in time order."""
        none = np.full(forecasts.shape[2:], np.nan, np.float32)
        leads = self.config.data.lead_times
        observed = np.stack([self.observations.values.get(time + lead, none) for lead in leads])
        values, truth = forecasts.astype(np.float64), observed.astype(np.float64)
        known = np.isfinite(values)
        complete = np.isfinite(truth) & known[: self.own].all(0)
        for number, lead, target in np.ndindex(values.shape[:3]):
            at = lead, target
            numbers = float(self.mean[target]), float(self._thresholds[target])
            climate = np.nan_to_num(values[self._climatology][at])
            pairs = complete[at] & known[number][at]
            for subset in range(len(self.subsets)):
                both = pairs if subset == 0 else pairs & known[self.own + subset - 1][at]
                sums = metrics.terms_of(values[number][at], both, truth[at], climate, *numbers).T
                total = self.totals[number][at]
                total[1:, subset] += sums
                total[0, subset] += sums.sum(0)


def read_if(
    path: str | None, config: Config, grid: Grid, times: NDArray[np.int64]
) -> Observations | None:
    """`read`, if there is a file, for the target times of some input times; says what it found."""
    if path is None:
        return None
    wanted = np.unique(times[:, None] + np.array(config.data.lead_times))
    found = read(path, config, grid, wanted)
    print(f"{path}: {len(found.names)} stations in the domain", flush=True)
    for reason, number in found.left_out.items():
        print(f"{path}: {number} lines left out: {reason}", flush=True)
    return found


def _lines(path: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and the columns of each line below the header."""
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            lacking = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if lacking:
                raise AqnetError(f"{path}: lacks the columns {', '.join(lacking)} in its header")
            for row in reader:
                if any(row[name] is None for name in COLUMNS):
                    where = f"{path}, line {reader.line_num}"
                    raise AqnetError(f"{where}: fewer columns than the header")
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AqnetError(f"{path}: cannot read the stations: {error}") from None


def _add(
    row: dict[str, str],
    where: str,
    targets: Sequence[str],
    hours: set[int],
    found: dict[tuple[str, int, str], float],
) -> str | None:
    """Add a line's value to `found`; why it does not count, if so."""
    if row["pollutant"] not in targets:
        return f"unknown pollutant {row['pollutant']}"
    if row["value"].strip().lower() in _MISSING:
        return "without a value"
    value = _number(row, "value", where)
    if value < 0:
        return "negative values"
    try:
        hour = hour_of(row["time"])
    except OffTheHour:
        return "times that are no whole hour"
    except AqnetError as error:
        raise AqnetError(f"{where}: {error}") from None
    if hour not in hours:
        return "at other times"
    key = row["id"], hour, row["pollutant"]
    if key in found:
        return "duplicates" if found[key] == value else "duplicates with another value"
    found[key] = value
    return None


def _number(row: dict[str, str], name: str, where: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise AqnetError(f"{where}: {name} is {row[name]!r}, no number")
    return value
