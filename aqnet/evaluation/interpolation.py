"""Bilinear interpolation from any grid with coordinates to points; missing values do not bleed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Places = NDArray[np.int64]

_BEYOND = 0.5  # cells: how far a point may lie outside the outermost centres, that is on their cell
_LEAST_WEIGHT = 0.5  # of the corners that have a value
_CLOSE = 1e-5  # degrees, about a metre


@dataclass(frozen=True)
class Interpolation:
    """Four corners and their weights for each of P points.

    Attributes:
        corners: places in the last axis of what is interpolated, shape [4, P].
        weights: shape [4, P]; 0 for corners that do not count, all 0 for points outside the grid.
    """

    corners: Places
    weights: Values

    def __call__(self, values: NDArray[np.floating]) -> Values:
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


def bilinear(lat: Values, lon: Values, to_lat: Values, to_lon: Values) -> Interpolation:
    """How to interpolate from the cell centres of a grid to points.

    Bilinear in the grid's own rows and columns, which are found by Newton's method, so that
    projected grids do as well as degree grids. Longitudes may count from 0 or from -180.

    Args:
        lat, lon: of the grid, degrees, shape [H, W] (of a single row or column, such as a list of
            stations, points have values at its centres alone); to_lat, to_lon: shape [P].
    """
    middle = float(to_lon[0])
    east, to_east = _around(lon, middle), _around(to_lon, middle)
    columns = np.arange(lat.shape[1])
    if np.allclose(lon, lon[:1]):  # put the seam of a global grid where no point is
        columns = np.argsort(east[0])
        lat, east = lat[:, columns], east[:, columns]
    row, column = _places(lat, east, to_lat, to_east)
    height, width = lat.shape
    at = _evaluate(lat, east, row, column)
    far = np.hypot(at[0] - to_lat, at[1] - to_east) > _CLOSE
    far |= (np.abs(row - (height - 1) / 2) > (height - 1) / 2 + _BEYOND) | (
        np.abs(column - (width - 1) / 2) > (width - 1) / 2 + _BEYOND
    )
    row, column = np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)
    top, left = _cell(row, height), _cell(column, width)
    down, right = row - top, column - left
    parts = [(0, 0), (0, 1), (1, 0), (1, 1)]
    corners = [(top + y) * width + columns[left + x] for y, x in parts]
    weights = [np.abs(1 - y - down) * np.abs(1 - x - right) for y, x in parts]
    return Interpolation(np.stack(corners), np.where(far, 0.0, np.stack(weights)))


def _around(lon: Values, middle: float) -> Values:
    """Degrees east of `middle`, from -180 up to 180."""
    around: Values = (lon - middle + 180.0) % 360.0 - 180.0
    return around


def _places(lat: Values, east: Values, to_lat: Values, to_east: Values) -> tuple[Values, Values]:
    """Rows and columns, with fractions, at which the grid has the coordinates of the points."""
    rows, columns = (np.linspace(0, n - 1, min(n, 24)).astype(np.int64) for n in lat.shape)
    coarse = lat[np.ix_(rows, columns)].flatten(), east[np.ix_(rows, columns)].flatten()
    nearest = np.empty(len(to_lat), np.int64)
    for start in range(0, len(to_lat), 4096):  # bounds the table of distances
        part = slice(start, start + 4096)
        distance = np.square(to_lat[part, None] - coarse[0])
        distance += np.square(to_east[part, None] - coarse[1])
        nearest[part] = distance.argmin(1)
    row = rows[nearest // len(columns)].astype(np.float64)
    column = columns[nearest % len(columns)].astype(np.float64)
    for _ in range(50):
        y, x, by_row, by_column = _evaluate(lat, east, row, column)
        miss_y, miss_x = to_lat - y, to_east - x
        area = by_row[0] * by_column[1] - by_row[1] * by_column[0]
        area = np.where(area == 0, np.inf, area)
        step_row = (miss_y * by_column[1] - miss_x * by_column[0]) / area
        step_column = (miss_x * by_row[0] - miss_y * by_row[1]) / area
        # points far outside would run away; one grid's length beyond is as good
        row = np.clip(row + step_row, -lat.shape[0], 2 * lat.shape[0])
        column = np.clip(column + step_column, -lat.shape[1], 2 * lat.shape[1])
        if max(np.abs(step_row).max(), np.abs(step_column).max()) < 1e-9:
            break
    return row, column


def _evaluate(lat: Values, east: Values, row: Values, column: Values) -> tuple[Values, ...]:
    """Latitude and longitude at fractional rows and columns [P], and their derivatives [2, P]."""
    top, left = _cell(row, lat.shape[0]), _cell(column, lat.shape[1])
    down, right = row - top, column - left
    field = np.stack([lat, east])
    a, b = field[:, top, left], field[:, top, left + 1]
    c, d = field[:, top + 1, left], field[:, top + 1, left + 1]
    upper, lower = a + (b - a) * right, c + (d - c) * right
    at = upper + (lower - upper) * down
    return at[0], at[1], lower - upper, (b - a) * (1 - down) + (d - c) * down


def _cell(place: Values, size: int) -> Places:
    return np.clip(np.floor(place), 0, size - 2).astype(np.int64)
