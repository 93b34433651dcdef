"""Static fields and masks of another grid on the model grid: first-order conservative.

Each source cell is cut into pieces smaller than a target cell, and each piece is given to the
target cell in which its centre lies, found by inverting the target's 2-D coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aqnet.data.regridding.resample import ENOUGH, cell_areas, continuous

_PIECES = 4  # across a target cell, at least
_AT_ONCE = 500_000  # pieces
_ITERATIONS = 12

Floats = NDArray[np.float64]


def regridded(
    values: NDArray[Any],
    lat: Floats,
    lon: Floats,
    target_lat: Floats,
    target_lon: Floats,
    counts: bool = False,
) -> Floats:
    """A field [h, w] (NaN = missing) of the grid `lat`, `lon` on the target grid, [H, W].

    Args:
        counts: numbers per cell (people), which are added up; otherwise the area-weighted mean.
    Returns:
        NaN where what is present covers less than half of what the source covers, or nothing.
    """
    areas, flat = cell_areas(lat, continuous(lon)).reshape(-1), values.reshape(-1)
    sums = np.zeros((3, target_lat.size))  # of values, of the area present, of the area covered
    for place, source, share in _pieces(lat, lon, target_lat, target_lon):
        sums += _sums(flat[source], areas[source], share, place, target_lat.size, counts)
    return _result(sums, counts).reshape(target_lat.shape)


class Regridder:
    """`regridded` for many fields of one pair of grids.

    Attributes:
        covered: cells of the target that the source covers, bool, [H, W].
    """

    def __init__(self, lat: Floats, lon: Floats, target_lat: Floats, target_lon: Floats) -> None:
        self._shape = target_lat.shape
        pairs, shares = [], []
        for place, source, share in _pieces(lat, lon, target_lat, target_lon):
            pair, count = np.unique(place * lat.size + source, return_counts=True)
            pairs.append(pair)
            shares.append(count * share)
        self._place, self._source = np.divmod(np.concatenate(pairs), lat.size)
        self._share = np.concatenate(shares)
        self._areas = cell_areas(lat, continuous(lon)).reshape(-1)[self._source] * self._share
        size = target_lat.size
        self.covered = np.bincount(self._place, minlength=size).reshape(self._shape) > 0

    def __call__(self, values: NDArray[Any], counts: bool = False) -> NDArray[np.float32]:
        """Fields [..., h, w] on the target grid, float32 [..., H, W]; see `regridded`."""
        flat = values.reshape(-1, values.shape[-2] * values.shape[-1])
        size = self.covered.size
        result = np.empty((len(flat), size), np.float32)
        for at, field in enumerate(flat):
            taken = field[self._source]
            sums = _sums(taken, self._areas, self._share, self._place, size, counts)
            result[at] = _result(sums, counts)
        return result.reshape(*values.shape[:-2], *self._shape)


def _pieces(
    lat: Floats, lon: Floats, target_lat: Floats, target_lon: Floats
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], float]]:
    """The cell of the target in which each piece of a source cell lies, that cell, and the share of
    it that a piece is, some rows of the source at once; cells are counted through."""
    grid, target = np.stack((lat, continuous(lon))), np.stack((target_lat, continuous(target_lon)))
    middle = float(target[1, target_lon.shape[0] // 2, target_lon.shape[1] // 2])
    down, across = _cuts(grid, target)
    column = (np.arange(lat.shape[1] * across) + 0.5) / across - 0.5
    step = max(1, _AT_ONCE // (down * len(column)))
    for first in range(0, len(lat), step):
        count = min(step, len(lat) - first) * down
        row = first + (np.arange(count) + 0.5) / down - 0.5
        rows, columns = (part.ravel() for part in np.meshgrid(row, column, indexing="ij"))
        piece_lat, piece_lon = _interpolated(grid, rows, columns)[0]
        piece_lon = middle + (piece_lon - middle + 180) % 360 - 180
        y, x = located(piece_lat, piece_lon, *target)
        inside = np.isfinite(y)
        place = np.rint(y[inside]).astype(np.int64) * target_lat.shape[1]
        place += np.rint(x[inside]).astype(np.int64)
        cell = np.rint(rows).astype(np.int64) * lat.shape[1] + np.rint(columns).astype(np.int64)
        yield place, cell[inside], 1.0 / (down * across)


def _sums(
    values: NDArray[Any],
    areas: Floats,
    share: float | Floats,
    place: NDArray[np.int64],
    size: int,
    counts: bool,
) -> Floats:
    """Per target cell: of values, of the area present, of the area covered, [3, size]."""
    value = values.astype(np.float64)
    present = np.isfinite(value)
    weights = (
        np.where(present, value, 0) * (share if counts else areas),
        present * areas,
        areas,
    )
    return np.stack([np.bincount(place, weight, minlength=size) for weight in weights])


def _result(sums: Floats, counts: bool) -> Floats:
    total, found, cover = sums
    enough = (found > 0) & (found >= ENOUGH * cover)
    return np.where(enough, total if counts else total / np.where(enough, found, 1.0), np.nan)


def located(lat: Floats, lon: Floats, grid_lat: Floats, grid_lon: Floats) -> tuple[Floats, Floats]:
    """Fractional row and column of points in a grid [H, W] with 2-D coordinates (degrees).

    Newton's method on the bilinear interpolation of the coordinates; NaN for points outside the
    cells of the grid. Longitudes must be continuous over grid and points.
    """
    height, width = grid_lat.shape
    result = np.full((2, lat.size), np.nan)
    near = np.ones(lat.size, bool)
    for points, grid in ((lat.ravel(), grid_lat), (lon.ravel(), grid_lon)):
        margin = np.ptp(grid) / min(height, width) + 1e-6
        near &= (points > grid.min() - margin) & (points < grid.max() + margin)
    wanted = np.stack((lat.ravel()[near], lon.ravel()[near]))
    grid = np.stack((grid_lat, grid_lon))
    y, x = _guess(wanted, grid)
    for _ in range(_ITERATIONS):
        here, by_row, by_column = _interpolated(grid, y, x)
        miss = wanted - here
        scale = by_row[0] * by_column[1] - by_row[1] * by_column[0]
        scale = np.where(abs(scale) > 1e-12, scale, 1e-12)
        move_y = (miss[0] * by_column[1] - miss[1] * by_column[0]) / scale
        move_x = (by_row[0] * miss[1] - by_row[1] * miss[0]) / scale
        y = np.clip(y + move_y, -2, height + 1)
        x = np.clip(x + move_x, -2, width + 1)
        if y.size == 0 or max(abs(move_y).max(), abs(move_x).max()) < 1e-6:
            break
    found = (y > -0.5) & (y < height - 0.5) & (x > -0.5) & (x < width - 0.5)
    found &= abs(wanted - _interpolated(grid, y, x)[0]).max(axis=0) < 1e-3
    result[0, near], result[1, near] = np.where(found, y, np.nan), np.where(found, x, np.nan)
    return result[0].reshape(lat.shape), result[1].reshape(lat.shape)


def _guess(wanted: Floats, grid: Floats) -> tuple[Floats, Floats]:
    """Rows and columns by a quadratic fit of the grid's own over its coordinates."""
    middle, spread = grid.mean(axis=(1, 2)), np.maximum(grid.std(axis=(1, 2)), 1e-9)

    def powers(points: Floats) -> Floats:
        a, b = (points - middle[:, None]) / spread[:, None]
        return np.stack((np.ones_like(a), a, b, a * a, a * b, b * b), axis=1)

    rows, columns = np.indices(grid.shape[1:])
    places = np.stack((rows.ravel(), columns.ravel()), axis=1).astype(np.float64)
    fit, *_ = np.linalg.lstsq(powers(grid.reshape(2, -1)), places, rcond=None)
    found = powers(wanted) @ fit
    return found[:, 0], found[:, 1]


def _interpolated(grid: Floats, y: Floats, x: Floats) -> tuple[Floats, Floats, Floats]:
    """Both coordinates at (y, x), continued beyond the edges, and their slopes along y and x."""
    row = np.clip(np.floor(y), 0, grid.shape[1] - 2).astype(np.int64)
    column = np.clip(np.floor(x), 0, grid.shape[2] - 2).astype(np.int64)
    fy, fx = y - row, x - column
    a, b = grid[:, row, column], grid[:, row, column + 1]
    c, d = grid[:, row + 1, column], grid[:, row + 1, column + 1]
    by_row = (c - a) * (1 - fx) + (d - b) * fx
    by_column = (b - a) * (1 - fy) + (d - c) * fy
    return a + by_row * fy + (b - a) * fx, by_row, by_column


def _cuts(grid: Floats, target: Floats) -> tuple[int, int]:
    """Pieces along rows and columns into which a source cell is cut; grids are [2, H, W]."""
    shrink = np.array([1.0, np.cos(np.radians(target[0].mean()))])

    def size(of: Floats, axis: int) -> float:
        return float(np.median(np.linalg.norm(np.diff(of, axis=axis).T * shrink, axis=-1)))

    smallest = min(size(target, 1), size(target, 2))
    down, across = (max(1, int(np.ceil(_PIECES * size(grid, axis) / smallest))) for axis in (1, 2))
    return down, across
