"""Forecasts against stations: files of id, lat, lon, time, pollutant, value."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aqnet.config import Config
from aqnet.errors import AqnetError
from aqnet.evaluation import metrics
from aqnet.evaluation.interpolation import Interpolation, bilinear
from aqnet.evaluation.stations import station_files
from aqnet.evaluation.stations.station_files import COLUMNS, InOurUnit, LeftOut, Line
from aqnet.grid import Grid

Values = NDArray[np.float64]
Fields = NDArray[np.float32]

_METRES = 0.005  # degrees, some 500 m: less is no move


@dataclass
class Observations:
    """Values at stations inside the domain.

    Attributes:
        places: latitude and longitude of each station by its id, in the order of the file.
        points: interpolation from the cells of the domain to the stations.
        values: by hour since 1970 UTC, in the unit of the target, NaN where there is none [T, P].
        left_out: how many lines of the files do not count, by reason.
        tolerated: how many lines count though something is odd, by what.
    """

    places: dict[str, tuple[float, float]]
    points: Interpolation
    values: dict[int, Fields]
    left_out: dict[str, int]
    tolerated: dict[str, int]

    @property
    def names(self) -> tuple[str, ...]:
        """The ids."""
        return tuple(self.places)


def read(
    paths: str, config: Config, grid: Grid, wanted: NDArray[np.int64], convert: InOurUnit
) -> Observations:
    """Read files of observations.

    Args:
        paths: CSV, several separated by commas, each with a header line; times are ISO 8601, UTC
            where they name no zone, values in the unit of the target where no column says another.
            A file without values says where stations are.
        wanted: hours that will be asked for; others are left out.
        convert: brings a value to the unit of the target.
    Raises:
        AqnetError: one cannot be read, a number is none, or a station is in two places (file and
            line are named), or no line counts.
    """
    counts: Counter[str] = Counter()
    tolerated: Counter[str] = Counter()
    places: dict[str, tuple[float, float]] = {}
    found: dict[tuple[str, int, str], float] = {}
    hours = set(wanted.tolist())
    opened = [(path, *station_files.lines(path)) for path in paths.split(",")]
    # where stations are is read first
    for path, columns, each in sorted(opened, key=lambda file: "value" in file[1]):
        needed = set(COLUMNS)
        if len(opened) > 1:
            needed -= {"lat", "lon"} if "value" in columns else {"time", "pollutant", "value"}
        if lacking := [name for name in COLUMNS if name in needed - columns]:
            raise AqnetError(_lacks(path, lacking))
        for line in each:
            if "lat" in columns and line.texts["lat"]:
                _place(line, places, tolerated)
            if "value" not in columns:
                continue
            reason = _add(line, config.data.targets, hours, places, convert, found)
            if reason:
                counts[reason] += 1
    if not places:
        raise AqnetError(f"{paths}: holds no line below its header")
    lat, lon = np.array(list(places.values())).T
    points = bilinear(grid.lat.numpy(), grid.lon.numpy(), lat, lon).within(grid.mask.numpy())
    number_of = {name: at for at, name in enumerate(np.array(list(places))[points.inside].tolist())}
    values: dict[int, Fields] = {}
    for (name, hour, target), value in found.items():
        if name not in number_of:
            counts["stations outside the domain"] += 1
            continue
        if hour not in values:
            values[hour] = np.full((len(config.data.targets), len(number_of)), np.nan, np.float32)
        values[hour][config.data.targets.index(target), number_of[name]] = value
    if not values:
        raise AqnetError(
            f"{paths}: no line counts at the times evaluated in the domain; left out: "
            + (", ".join(f"{n} {reason}" for reason, n in counts.items()) or "none")
        )
    inside = Interpolation(points.corners[:, points.inside], points.weights[:, points.inside])
    left_out = dict(sorted(counts.items()))
    kept = {name: places[name] for name in number_of}
    return Observations(kept, inside, values, left_out, dict(tolerated))


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
    paths: str | None,
    config: Config,
    grid: Grid,
    times: NDArray[np.int64],
    convert: InOurUnit,
) -> Observations | None:
    """`read`, if there are files, for the target times of some input times; says what it found."""
    if paths is None:
        return None
    wanted = np.unique(times[:, None] + np.array(config.data.lead_times))
    found = read(paths, config, grid, wanted, convert)
    print(f"{paths}: {len(found.names)} stations in the domain", flush=True)
    for reason, number in found.left_out.items():
        print(f"{paths}: {number} lines left out: {reason}", flush=True)
    for reason, number in found.tolerated.items():
        print(f"{paths}: {number} lines: {reason}", flush=True)
    return found


def _lacks(path: str, columns: list[str]) -> str:
    text = f"{path}: lacks the columns {', '.join(columns)} in its header"
    if set(columns) <= {"lat", "lon"}:
        text += "; where it holds none, as EEA's, add a file that does: --stations DATA,PLACES"
    return text


def _place(line: Line, places: dict[str, tuple[float, float]], tolerated: Counter[str]) -> None:
    """
    Raises:
        AqnetError: the station was elsewhere before.
    """
    name, place = line.texts["id"], (line.number("lat"), line.number("lon"))
    before = places.setdefault(name, place)
    if place == before:
        return
    if max(abs(a - b) for a, b in zip(place, before, strict=True)) > _METRES:
        raise AqnetError(f"{line.where}: station {name} was at {before} before")
    tolerated["a station moved by metres; its first place is taken"] += 1


def _add(
    line: Line,
    targets: tuple[str, ...],
    hours: set[int],
    places: dict[str, tuple[float, float]],
    convert: InOurUnit,
    found: dict[tuple[str, int, str], float],
) -> str | None:
    """Add a line's value to `found`; why it does not count, if so."""
    try:
        target, hour, value = station_files.observation(line, targets, convert)
    except LeftOut as reason:
        return str(reason)
    name = line.texts["id"]
    if hour not in hours:
        return "at other times"
    if name not in places:
        return "stations whose place is not known"
    key = name, hour, target
    if key in found:
        return "duplicates" if found[key] == value else "duplicates with another value"
    found[key] = value
    return None
