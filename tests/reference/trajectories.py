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
    wind: tuple[Field, Field],
    hours: list[int],
    speed: float,
    turn: float,
) -> Field:
    """Row and column [K, 2, H, W] of the air that reaches each cell, by a steady wind (u, v)."""
    angle = math.radians(turn)
    u, v = filled(lat, lon, mask, *wind)
    u, v = (
        speed * (math.cos(angle) * u - math.sin(angle) * v),
        speed * (math.sin(angle) * u + math.cos(angle) * v),
    )
    rows, columns = per_hour(lat, lon, u, v)
    result = np.empty((len(hours), 2, *lat.shape))
    for row, column in np.ndindex(*lat.shape):
        at, time = (float(row), float(column)), 0
        for hour in sorted(hours):
            for step in steps(time, hour):
                at = stepped(at, rows, columns, step)
            result[hours.index(hour), :, row, column] = at
            time = hour
    return result


def stepped(at: tuple[float, float], rows: Field, columns: Field, step: float) -> tuple[float, ...]:
    """One midpoint step back."""
    first = (read(rows, *at), read(columns, *at))
    middle = (at[0] - step / 2 * first[0], at[1] - step / 2 * first[1])
    second = (read(rows, *middle), read(columns, *middle))
    return tuple(
        min(max(place - step * rate, 0.0), size - 1.0)
        for place, rate, size in zip(at, second, rows.shape, strict=True)
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
        far = [angle(lat, lon, (row, column), (r, c)) for r, c in domain]
        r, c = domain[int(np.argmin(far))]
        if mask[row, column]:
            r, c = row, column
        for field, values in zip(result, (u, v), strict=True):
            if known[r, c]:
                field[row, column] = values[r, c]
            else:
                field[row, column] = values[inside].mean() if inside.any() else 0.0
    return result


def angle(lat: Field, lon: Field, one: tuple[int, int], other: tuple[int, int]) -> float:
    """Between two cells, radians."""
    dot = float(np.dot(place(lat[one], lon[one]), place(lat[other], lon[other])))
    return math.acos(min(1.0, max(-1.0, dot)))


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
