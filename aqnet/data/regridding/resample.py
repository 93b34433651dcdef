"""Fields on a coarser (or finer) grid of the same rows and columns, missing values left out.

Target cell (i, j) covers source rows i H/H' to (i+1) H/H' and columns j W/W' to (j+1) W/W', in the
index space of the source's own projection: nothing is bent, and its coordinates go the same way.
Weights are one table per axis of a few source rows (columns) for each target row (column).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aqnet.grid import Floats, cell_areas, continuous

ENOUGH = 0.5  # share of a target cell's area that must hold values
_ROUNDING = 1e-9


class Axis(NamedTuple):
    """Target row i is the sum over k of `weight[k, i]` times source row `take[k, i]`."""

    take: NDArray[np.int64]
    weight: Floats


def area_axis(size: int, target: int) -> Axis:
    """How much of each source row lies in a target row: overlaps, in source rows."""
    edges = np.arange(target + 1) * (size / target)
    first = np.floor(edges[:-1] + _ROUNDING).astype(np.int64)
    taps = int((np.ceil(edges[1:] - _ROUNDING) - first).max())
    index = first + np.arange(taps)[:, None]
    overlap = np.minimum(index + 1, edges[1:]) - np.maximum(index, edges[:-1])
    return Axis(np.minimum(index, size - 1), np.where(index < size, overlap.clip(0), 0.0))


def bilinear_axis(size: int, target: int, extrapolate: bool = False) -> Axis:
    """The two source rows around the centre of a target row; beyond the outermost row (which only
    happens on finer grids) that row, or the straight line through the last two."""
    place = (np.arange(target) + 0.5) * (size / target) - 0.5
    place = place if extrapolate else np.clip(place, 0, size - 1)
    below = np.clip(np.floor(place).astype(np.int64), 0, max(size - 2, 0))
    share = place - below
    return Axis(np.stack((below, np.minimum(below + 1, size - 1))), np.stack((1 - share, share)))


class Resampler:
    """From the grid of `lat`, `lon` [H, W] (degrees) to `shape` = (H', W')."""

    def __init__(
        self, method: Literal["area", "bilinear"], lat: Floats, lon: Floats, shape: tuple[int, int]
    ) -> None:
        self.shape, self._method = shape, method
        self._areas = cell_areas(lat, lon)
        pairs = list(zip(lat.shape, shape, strict=True))
        self._area = [area_axis(size, target) for size, target in pairs]
        self._linear = [bilinear_axis(size, target) for size, target in pairs]
        self._cover = _applied(self._area, self._areas)
        places = [bilinear_axis(size, target, extrapolate=True) for size, target in pairs]
        self.lat = _applied(places, lat)
        self.lon = _applied(places, continuous(lon))

    def mean(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Fields [..., H, W] (NaN = missing) on the target grid, float32 [..., H', W'].

        `area`: the area-weighted mean of what is present, so that a field without missing values
        keeps its integral; `bilinear`: interpolated to the centres. NaN where what is present
        covers less than half.
        """
        flat = values.reshape(-1, *values.shape[-2:])
        result = np.empty((len(flat), *self.shape), np.float32)
        for at, field in enumerate(flat):
            result[at] = self._mean(field.astype(np.float64))
        return result.reshape(*values.shape[:-2], *self.shape)

    def total(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Counts per cell [H, W] (people) added up, shares of divided cells by area."""
        present = np.isfinite(values)
        total = _applied(self._area, np.where(present, values, 0.0))
        return np.where(self._enough(present), total, np.nan).astype(np.float32)

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Cells of which at least half is inside `mask` [H, W]."""
        return self._enough(mask)

    def _mean(self, field: Floats) -> Floats:
        present = np.isfinite(field)
        if self._method == "bilinear":
            axes, weights, cover = self._linear, np.ones_like(field), np.ones(self.shape)
        else:
            axes, weights, cover = self._area, self._areas, self._cover
        if present.all():
            return _applied(axes, field * weights) / cover
        found = _applied(axes, present * weights)
        total = _applied(axes, np.where(present, field, 0.0) * weights)
        enough = found >= (ENOUGH - _ROUNDING) * cover
        return np.where(enough, total / np.where(enough, found, 1.0), np.nan)

    def _enough(self, present: NDArray[np.bool_]) -> NDArray[np.bool_]:
        found = _applied(self._area, present * self._areas)
        return np.asarray(found >= (ENOUGH - _ROUNDING) * self._cover)


def _applied(axes: list[Axis], field: Floats) -> Floats:
    rows, columns = axes
    by_rows = sum(field[take] * weight[:, None] for take, weight in zip(*rows, strict=True))
    assert not isinstance(by_rows, int)
    pairs = zip(*columns, strict=True)
    return np.asarray(sum(by_rows[:, take] * weight for take, weight in pairs))
