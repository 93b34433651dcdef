"""Static fields and masks of another grid on the model grid: first-order conservative.

Each source cell is cut into pieces smaller than a target cell, and each piece is given to the
target cell in which its centre lies, found by inverting the target's 2-D coordinates.
"""

from __future__ import annotations

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
    grid, target = np.stack((lat, continuous(lon))), np.stack((target_lat, continuous(target_lon)))
    areas, flat = cell_areas(*grid).reshape(-1), values.reshape(-1)
    down, across = _cuts(grid, target)
    column = (np.arange(lat.shape[1] * across) + 0.5) / across - 0.5
    size = target_lat.size
    sums = np.zeros((3, size))  # of values, of the area present, of the area covered
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
        source = cell[inside]
        area, value = areas[source], flat[source].astype(np.float64)
        present = np.isfinite(value)
        share = 1.0 / (down * across) if counts else area
        for at, weight in enumerate((np.where(present, value, 0) * share, present * area, area)):
            sums[at] += np.bincount(place, weight, minlength=size)
    total, found, cover = sums
    enough = (found > 0) & (found >= ENOUGH * cover)
    result = total if counts else total / np.where(enough, found, 1.0)
    return np.where(enough, result, np.nan).reshape(target_lat.shape)


def _cuts(grid: Floats, target: Floats) -> tuple[int, int]:
    """Pieces along rows and columns into which a source cell is cut; grids are [2, H, W]."""
    shrink = np.array([1.0, np.cos(np.radians(target[0].mean()))])

    def size(of: Floats, axis: int) -> float:
        return float(np.median(np.linalg.norm(np.diff(of, axis=axis).T * shrink, axis=-1)))

    smallest = min(size(target, 1), size(target, 2))
    down, across = (max(1, int(np.ceil(_PIECES * size(grid, axis) / smallest))) for axis in (1, 2))
    return down, across
