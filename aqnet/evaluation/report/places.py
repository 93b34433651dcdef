"""Forecasts at single places in two weeks of all hours, as the report draws them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aqnet.batch import Batch, Forecast, Statistics
from aqnet.config import Config
from aqnet.errors import AqnetError
from aqnet.grid import Grid
from aqnet.physical import in_units, physical
from aqnet.trajectories import EARTH_RADIUS

Values = NDArray[np.float64]
Hours = NDArray[np.int64]
Make = Callable[[Sequence[int]], Iterable[tuple[Batch, Forecast]]]

STEP = 3  # hours between the target times that are drawn
DEFAULT_PLACES, CELLS_APART = 5, 3


class Place(NamedTuple):
    """A cell of the domain: its number among the flattened grid's cells."""

    name: str
    cell: int


class Series(NamedTuple):
    """What was forecast for N target times in a row, and what came, at P places; NaN where there is
    none.

    Attributes:
        hours: target times since 1970 UTC, evenly spaced, shape [N].
        forecast, truth: shape [N, T, P]; quantiles: [N, Q, T, P], Q is 0 without
            `model.quantiles`.
    """

    hours: Hours
    forecast: Values
    truth: Values
    quantiles: Values


class AtPlaces(NamedTuple):
    """Series at the same places, forecast so many hours ahead: the worst week, and a usual one
    where there is one."""

    lead_time: int
    places: list[Place]
    weeks: list[Series]


def named(config: Config, grid: Grid) -> list[Place]:
    """The cells of the domain nearest to `report.places`.

    Raises:
        AqnetError: a place lies outside the domain.
    """
    lat, lon = grid.lat.numpy(), grid.lon.numpy()
    found = []
    for name, (at, along) in config.report.places.items():
        away = _metres(at, along, lat, lon)
        cell = int(np.where(grid.mask.numpy(), away, np.inf).argmin())
        where = float(lat.flat[cell]), float(lon.flat[cell])
        spacing = np.sort(_metres(*where, lat, lon).ravel())[1:5].max(initial=0.0)
        if away.flat[cell] > max(spacing, 1.0):
            raise AqnetError(
                f"report.places.{name} [{at:g}, {along:g}] lies outside the domain: the nearest of "
                f"its cells, at [{where[0]:.2f}, {where[1]:.2f}], is {away.flat[cell] / 1000:.0f} "
                "km away; give latitude and longitude in this order, or leave the place out"
            )
        found.append(Place(name, cell))
    return found


def highest(mean: Values, grid: Grid) -> list[Place]:
    """The five cells of highest `mean` [N over the domain], each at least CELLS_APART rows or
    columns from those before, as neighbours would show the same."""
    cells = np.argwhere(grid.mask.numpy())
    chosen: list[int] = []
    for number in np.argsort(-mean, kind="stable").tolist():
        away = np.abs(cells[chosen] - cells[number]).max(axis=1, initial=0)
        if len(chosen) < DEFAULT_PLACES and (away >= CELLS_APART).all():
            chosen.append(number)
    found = []
    for row, column in cells[chosen].tolist():
        lat, lon = float(grid.lat[row, column]), float(grid.lon[row, column])
        ends = "N" if lat >= 0 else "S", "E" if lon >= 0 else "W"
        name = f"{abs(lat):.1f}° {ends[0]}, {abs(lon):.1f}° {ends[1]}"
        found.append(Place(name, row * grid.shape[1] + column))
    return found


def weeks(times: Hours, weight: Values, error: Values) -> list[int]:
    """First days (since 1970) of the seven of largest mean squared error, and of seven others of
    median error, where there are any that share no day with these.

    Weeks with less than half of the fullest week's pairs do not count.

    Args:
        times: target times, ascending; weight, error: their sums of weights and squared errors.
    """
    first = int(times[0] // 24)
    weights, errors = (np.bincount(times // 24 - first, part) for part in (weight, error))
    span = np.ones(min(7, len(weights)))
    pairs, squares = (np.convolve(part, span, mode="valid") for part in (weights, errors))
    mean = np.where(pairs >= max(pairs.max() / 2, 1e-9), squares / np.maximum(pairs, 1e-9), -1.0)
    worst = int(mean.argmax())
    others = np.flatnonzero((mean >= 0) & (np.abs(np.arange(len(mean)) - worst) >= 7))
    usual = others[np.argsort(mean[others], kind="stable")[len(others) // 2 :][:1]]
    return [first + worst, *(first + usual).tolist()]


def hours_of(week: int, times: Hours) -> Hours:
    """Evenly spaced hours, some STEP apart, of the seven days from day `week`, beginning with the
    first of those of `times` that lie there, which are ascending."""
    inside = times[(times // 24 >= week) & (times // 24 < week + 7)]
    own = int(np.diff(inside).min()) if len(inside) > 1 else STEP
    return np.arange(inside[0], inside[-1] + 1, own * -(-STEP // own))


def series(
    hours: Hours,
    lead: int,
    inputs: Hours,
    places: Sequence[Place],
    config: Config,
    statistics: Statistics,
    make: Make,
) -> Series:
    """What a model forecasts for `hours`.

    Args:
        lead: place in `data.lead_times` of the lead time at which it does.
        inputs: input times that there are; make: forecasts those it is given, in batches.
    """
    earlier = hours - config.data.lead_times[lead]
    rows = np.flatnonzero(np.isin(earlier, inputs))
    cells = torch.tensor([place.cell for place in places])
    targets = config.data.targets

    def at_places(values: Tensor) -> Tensor:
        """Of values [..., K, T, H, W], [..., T, P]."""
        return values[..., lead, :, :, :].flatten(-2).cpu()[..., cells]

    blank = np.full((len(hours), len(targets), len(places)), np.nan)
    levels = len(config.model.quantiles)
    quantiles = np.full((len(hours), levels, *blank.shape[1:]), np.nan)
    result = Series(hours, blank, blank.copy(), quantiles)
    for batch, forecast in make(earlier[rows].tolist()):
        now, rows = rows[: len(batch.time)], rows[len(batch.time) :]
        result.forecast[now] = physical(at_places(forecast.mean), targets, statistics)
        truth = at_places(torch.where(batch.mask, batch.targets, torch.nan))
        result.truth[now] = in_units(truth, targets, statistics)
        if forecast.quantiles is not None:
            result.quantiles[now] = physical(at_places(forecast.quantiles), targets, statistics)
    return result


def _metres(lat: float, lon: float, lats: Values, lons: Values) -> Values:
    """Distances on the sphere."""
    phi, phis, away = np.radians(lat), np.radians(lats), np.radians(lons - lon)
    half = np.sin((phis - phi) / 2) ** 2 + np.cos(phi) * np.cos(phis) * np.sin(away / 2) ** 2
    metres: Values = 2.0 * EARTH_RADIUS * np.arcsin(np.sqrt(np.minimum(half, 1.0)))
    return metres
