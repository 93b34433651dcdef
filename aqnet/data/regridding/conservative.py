"""Static fields and masks of another grid on the model grid: first-order conservative.

Each source cell is cut into pieces smaller than a target cell, and each piece is given to the
target cell in which its centre lies, found by inverting the target's 2-D coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aqnet.data.regridding.resample import ENOUGH
from aqnet.grid import Floats, cell_areas, continuous, interpolated, located

_PIECES = 4  # across a target cell, at least
_AT_ONCE = 500_000  # pieces


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
    """The pieces of some rows of the source at once: number of the target cell in which each lies,
    number of the source cell it is of, and its share of that cell."""
    grid, target = np.stack((lat, continuous(lon))), np.stack((target_lat, continuous(target_lon)))
    down, across = _cuts(grid, target)
    column = (np.arange(lat.shape[1] * across) + 0.5) / across - 0.5
    step = max(1, _AT_ONCE // (down * len(column)))
    for first in range(0, len(lat), step):
        count = min(step, len(lat) - first) * down
        row = first + (np.arange(count) + 0.5) / down - 0.5
        rows, columns = (part.ravel() for part in np.meshgrid(row, column, indexing="ij"))
        y, x = located(*interpolated(grid, rows, columns)[0], *target)
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


def _cuts(grid: Floats, target: Floats) -> tuple[int, int]:
    """Pieces along rows and columns into which a source cell is cut; grids are [2, H, W]."""
    shrink = np.array([1.0, np.cos(np.radians(target[0].mean()))])

    def size(of: Floats, axis: int) -> float:
        return float(np.median(np.linalg.norm(np.diff(of, axis=axis).T * shrink, axis=-1)))

    smallest = min(size(target, 1), size(target, 2))
    down, across = (max(1, int(np.ceil(_PIECES * size(grid, axis) / smallest))) for axis in (1, 2))
    return down, across
