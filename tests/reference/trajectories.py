"""Paths of the air, cell by cell and step by step, in Python's floats."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

EARTH_RADIUS = 6_371_000.0
SMALLEST_WEIGHT = 1e-3
Field = NDArray[np.float64]


def departures(
    lat: Field,
    lon: Field,
    mask: NDArray[np.bool_],
    winds: dict[int, tuple[Field, Field]],
    hours: list[int],
    speed: float,
    turn: float,
) -> Field:
    """Row and column [K, 2, H, W] of the air that reaches each cell after `hours`, by winds (u, v)
    at some hours, ascending: a single one is held."""
    angle = math.radians(turn)
    rates: dict[int, tuple[Field, Field]] = {}
    for time, wind in winds.items():
        u, v = filled(lat, lon, mask, *wind)
        turned = (
            speed * (math.cos(angle) * u - math.sin(angle) * v),
            speed * (math.sin(angle) * u + math.cos(angle) * v),
        )
        if rates and not (np.isfinite(wind[0]) & np.isfinite(wind[1]) & mask).any():
            rates[time] = list(rates.values())[-1]  # the wind of the hour before
        else:
            rates[time] = per_hour(lat, lon, *turned)
    follow = held if len(winds) == 1 else varying
    result = np.empty((len(hours), 2, *lat.shape))
    for cell in np.ndindex(*lat.shape):
        for hour, at in follow((float(cell[0]), float(cell[1])), rates, sorted(hours)).items():
            result[(hours.index(hour), slice(None), *cell)] = at
    return result


Rates = dict[int, tuple[Field, Field]]
Place = tuple[float, ...]


def held(at: Place, rates: Rates, hours: list[int]) -> dict[int, Place]:
    """The path to a later hour goes on from that to the one before."""
    found, time = {}, 0
    (rate,) = rates.values()
    for hour in hours:
        for step in steps(time, hour):
            at = stepped(at, rate, rate, step)
        found[hour], time = at, hour
    return found


def varying(start: Place, rates: Rates, hours: list[int]) -> dict[int, Place]:
    """Each path from its own hour."""
    found = {}
    for number, hour in enumerate(hours):
        at = start
        for first, last in reversed(list(zip([0, *hours][: number + 1], hours, strict=False))):
            time = float(last)
            for step in steps(first, last):
                at = stepped(at, at_time(rates, time), at_time(rates, time - step / 2), step)
                time -= step
        found[hour] = at
    return found


def at_time(rates: Rates, time: float) -> tuple[Field, Field]:
    """Linear between the hours, held beyond."""
    before = [hour for hour in rates if hour <= time]
    after = [hour for hour in rates if hour > time]
    if not before or not after:
        return rates[before[-1] if before else after[0]]
    share = (time - before[-1]) / (after[0] - before[-1])
    one, other = rates[before[-1]], rates[after[0]]
    rows, columns = ((1 - share) * a + share * b for a, b in zip(one, other, strict=True))
    return rows, columns


def stepped(
    at: Place, arriving: tuple[Field, Field], halfway: tuple[Field, Field], step: float
) -> Place:
    """One midpoint step back."""
    middle = [place - step / 2 * read(rate, *at) for place, rate in zip(at, arriving, strict=True)]
    return tuple(
        min(max(place - step * read(rate, *middle), 0.0), size - 1.0)
        for place, rate, size in zip(at, halfway, arriving[0].shape, strict=True)
    )


def steps(first: int, last: int) -> list[float]:
    number = math.ceil((last - first) / max(1.0, last / 12))
    return [(last - first) / number] * number


def corners(shape: tuple[int, ...], row: float, column: float) -> Iterator[tuple[int, int, float]]:
    """The cells around a place, clamped to the grid, and their bilinear weights."""
    row, column = min(max(row, 0.0), shape[0] - 1.0), min(max(column, 0.0), shape[1] - 1.0)
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(column), math.floor(column) + 1):
            weight = (1 - abs(row - r)) * (1 - abs(column - c))
            if weight > 0:
                yield r, c, weight


def read(field: Field, row: float, column: float) -> float:
    """From the cells that have a value; NaN where they have next to no weight."""
    total = share = 0.0
    for r, c, weight in corners(field.shape, row, column):
        if math.isfinite(field[r, c]):
            total += weight * float(field[r, c])
            share += weight
    return total / share if share >= SMALLEST_WEIGHT else math.nan


def filled(
    lat: Field, lon: Field, mask: NDArray[np.bool_], u: Field, v: Field
) -> tuple[Field, Field]:
    """Missing wind: that of the nearest cell of the domain, else the domain's mean, else none."""
    known = np.isfinite(u) & np.isfinite(v)
    inside = known & mask
    result = (u.copy(), v.copy())
    domain = np.argwhere(mask)
    for row, column in np.argwhere(~known):
        near = [closeness(lat, lon, (row, column), (r, c)) for r, c in domain]
        r, c = domain[int(np.argmax(near))]  # the first of those as near as each other
        if mask[row, column]:
            r, c = row, column
        for field, values in zip(result, (u, v), strict=True):
            if known[r, c]:
                field[row, column] = values[r, c]
            else:
                field[row, column] = values[inside].mean() if inside.any() else 0.0
    return result


def closeness(lat: Field, lon: Field, one: tuple[int, int], other: tuple[int, int]) -> float:
    """Cosine of the angle between two cells."""
    return round(float(np.dot(place(lat[one], lon[one]), place(lat[other], lon[other]))), 12)


def place(lat: float, lon: float) -> Field:
    phi, theta = math.radians(lat), math.radians(lon)
    return np.array(
        [math.cos(phi) * math.cos(theta), math.cos(phi) * math.sin(theta), math.sin(phi)]
    )


def per_hour(lat: Field, lon: Field, u: Field, v: Field) -> tuple[Field, Field]:
    """Rows and columns per hour: the inverse of what a row and a column are on the ground."""
    points = np.array([place(*both) for both in zip(lat.flat, lon.flat, strict=True)])
    points = points.reshape(*lat.shape, 3)
    by_row, by_column = (np.gradient(points, axis=axis, edge_order=2) for axis in (0, 1))
    rows, columns = np.empty_like(u), np.empty_like(u)
    for at in np.ndindex(*lat.shape):
        phi, theta = math.radians(lat[at]), math.radians(lon[at])
        east = [-math.sin(theta), math.cos(theta), 0.0]
        north = [-math.sin(phi) * math.cos(theta), -math.sin(phi) * math.sin(theta), math.cos(phi)]
        jacobian = EARTH_RADIUS * np.array(
            [[by_row[at] @ e, by_column[at] @ e] for e in (east, north)]
        )
        rows[at], columns[at] = 3600 * np.linalg.solve(jacobian, [u[at], v[at]])
    return rows, columns
