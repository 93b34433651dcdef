"""Bilinear interpolation from any grid with coordinates to points; missing values do not bleed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aqnet.grid import Floats, cell_before, continuous, located, meridians, wrapped

_LEAST_WEIGHT = 0.5  # of the corners that have a value


@dataclass(frozen=True)
class Interpolation:
    """Four corners and their weights for each of P points.

    Attributes:
        corners: places in the last axis of what is interpolated, shape [4, P].
        weights: shape [4, P]; 0 for corners that do not count, all 0 for points outside the grid.
    """

    corners: NDArray[np.int64]
    weights: Floats

    def __call__(self, values: NDArray[np.floating]) -> Floats:
        """`values` [..., cells] at the points [..., P]: the weighted mean of the corners that have
        a value, NaN where these have less than half of the weight."""
        total = np.zeros((*values.shape[:-1], self.corners.shape[1]))
        weight = np.zeros_like(total)
        for corner, share in zip(self.corners, self.weights, strict=True):
            found = values[..., corner]
            known = np.isfinite(found)
            total += np.where(known, share * found, 0.0)
            weight += np.where(known, share, 0.0)
        enough = weight >= _LEAST_WEIGHT
        return np.where(enough, total / np.where(enough, weight, 1.0), np.nan)

    @property
    def inside(self) -> NDArray[np.bool_]:
        """Whether each point has a value where all cells have one, shape [P]."""
        inside: NDArray[np.bool_] = self.weights.sum(0) >= _LEAST_WEIGHT
        return inside

    def within(self, mask: NDArray[np.bool_]) -> Interpolation:
        """The same from the cells of a mask [H, W] alone, numbered in the order of its True."""
        number = np.cumsum(mask.flatten()) - 1
        weights = np.where(mask.flatten()[self.corners], self.weights, 0.0)
        return Interpolation(np.maximum(number[self.corners], 0), weights)


def bilinear(lat: Floats, lon: Floats, to_lat: Floats, to_lon: Floats) -> Interpolation:
    """How to interpolate from the cell centres of a grid to points.

    Bilinear in the grid's own rows and columns, so that projected grids do as well as degree
    grids. Longitudes may count from 0 or from -180.

    Args:
        lat, lon: of the grid, degrees, shape [H, W] (of a single row or column, such as a list of
            stations, points have values at its centres alone); to_lat, to_lon: shape [P].
    """
    height, width = lat.shape
    columns, east = np.arange(width), wrapped(lon - to_lon[0])
    if meridians(lon):  # put the seam of a global grid where no point is
        columns = np.argsort(east[0])
        lat, east = lat[:, columns], east[:, columns]
    elif width > 1:
        east = continuous(east)
    row, column = located(to_lat, to_lon - to_lon[0], lat, east)
    outside = np.isnan(row)
    row = np.where(outside, 0.0, row).clip(0, height - 1)
    column = np.where(outside, 0.0, column).clip(0, width - 1)
    top, left = cell_before(row, height), cell_before(column, width)
    down, right = row - top, column - left
    parts = [(0, 0), (0, 1), (1, 0), (1, 1)]
    corners = [(top + y) * width + columns[left + x] for y, x in parts]
    weights = [np.abs(1 - y - down) * np.abs(1 - x - right) for y, x in parts]
    return Interpolation(np.stack(corners), np.where(outside, 0.0, np.stack(weights)))
