"""Where the cells are: coordinates, areas, and the place of a point among them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

SAME_PLACE = 1e-3  # degrees, 100 m; coordinates of one grid differ by rounding only
_CLOSE = 1e-5  # degrees, 1 m: what is left where a point was found
_ITERATIONS = 12

Floats = NDArray[np.float64]
Degrees = TypeVar("Degrees", float, Floats, Tensor)


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the cells are.

    Attributes:
        lat, lon: degrees north and east, float64, shape [H, W]; rows may run either way.
        elevation: metres, float32, shape [H, W], NaN where unknown; None where there is none.
        mask: the domain: cells in which forecasts are made and scored, bool, shape [H, W].
    """

    lat: Tensor
    lon: Tensor
    elevation: Tensor | None
    mask: Tensor

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value.shape != self.lat.shape:
                raise ValueError(
                    f"Grid.{field.name} has shape {tuple(value.shape)}, lat {self.lat.shape}"
                )

    def to_dict(self) -> dict[str, Tensor]:
        """What is known, by name, as stored in checkpoints."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Tensor]) -> Grid:
        """The inverse of `to_dict`."""
        return cls(values["lat"], values["lon"], values.get("elevation"), values["mask"])

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.lat.shape
        return height, width

    @property
    def on_degrees(self) -> bool:
        """Whether rows follow parallels and columns meridians; otherwise the grid is projected."""
        return on_degrees(self.lat.numpy(), self.lon.numpy())

    def summary(self) -> dict[str, Any]:
        """What tells grids apart, as a checkpoint keeps it: shape, cells of the domain, and the
        first and last cell's latitude and longitude, rounded to 0.001 degrees."""
        corners = [
            [round(float(part.flatten()[at]), 3) for at in (0, -1)] for part in (self.lat, self.lon)
        ]
        return {
            "shape": list(self.shape),
            "cells": int(self.mask.sum()),
            "lat": corners[0],
            "lon": corners[1],
        }


def wrapped(degrees: Degrees) -> Degrees:
    """Differences of longitude brought to [-180, 180): numbers, arrays or tensors."""
    return (degrees + 180.0) % 360.0 - 180.0


def continuous(lon: Floats) -> Floats:
    """Longitudes [H, W] without jumps of 360 degrees."""
    return np.asarray(np.unwrap(np.unwrap(lon, period=360.0), axis=0, period=360.0))


def same_place(lat: Floats, lon: Floats, other_lat: Floats, other_lon: Floats) -> bool:
    """Whether two sets of coordinates are the same but for rounding; longitudes may count from 0
    or from -180."""
    if lat.shape != other_lat.shape:
        return False
    apart = abs(lat - other_lat).max(), abs(wrapped(lon - other_lon)).max()
    return bool(max(apart) < SAME_PLACE)


def on_degrees(lat: Floats, lon: Floats) -> bool:
    """Whether rows follow parallels and columns meridians; otherwise the grid is projected."""
    return bool(np.ptp(lat, axis=1).max() < SAME_PLACE) and meridians(lon)


def meridians(lon: Floats) -> bool:
    """Whether the columns of longitudes [H, W] follow meridians, as those of a single row do."""
    return bool(abs(wrapped(lon - lon[:1])).max() < SAME_PLACE)


def cell_areas(lat: Floats, lon: Floats) -> Floats:
    """Relative areas of cells [H, W]: cos(latitude) on a grid of degrees, 1 on a projected one."""
    return np.cos(np.radians(lat)) if on_degrees(lat, lon) else np.ones_like(lat)


def located(lat: Floats, lon: Floats, grid_lat: Floats, grid_lon: Floats) -> tuple[Floats, Floats]:
    """Fractional row and column of points in a grid, whatever its projection.

    Newton's method on the bilinear interpolation of the grid's own coordinates, from the nearest
    of some of its cells.

    Args:
        lat, lon: of the points, degrees, shape [P].
        grid_lat, grid_lon: of the cell centres, degrees, shape [H, W]; longitudes `continuous`.
    Returns:
        Row in (-0.5, H - 0.5) and column in (-0.5, W - 0.5), both NaN for points outside the cells;
        of a single row or column only the centres are found.
    """
    grid = np.stack((grid_lat, grid_lon))
    height, width = grid_lat.shape
    middle = (grid_lon.min() + grid_lon.max()) / 2
    wanted = np.stack((lat, middle + wrapped(lon - middle)))
    result = np.full((2, lat.size), np.nan)
    margin = np.ptp(grid, axis=(1, 2))[:, None] / max(1, min(height, width) - 1) + _CLOSE
    low, high = grid.min((1, 2))[:, None] - margin, grid.max((1, 2))[:, None] + margin
    near = ((wanted > low) & (wanted < high)).all(0)
    wanted = wanted[:, near]
    y, x = _nearest(wanted, grid)
    for _ in range(_ITERATIONS):
        here, by_row, by_column = interpolated(grid, y, x)
        miss = wanted - here
        area = by_row[0] * by_column[1] - by_row[1] * by_column[0]
        area = np.where(area == 0, np.inf, area)  # of a single row: its points stay where they are
        before = y, x
        # points outside would run away; two cells beyond are as good
        y = np.clip(y + (miss[0] * by_column[1] - miss[1] * by_column[0]) / area, -2, height + 1)
        x = np.clip(x + (by_row[0] * miss[1] - by_row[1] * miss[0]) / area, -2, width + 1)
        if y.size == 0 or max(abs(y - before[0]).max(), abs(x - before[1]).max()) < 1e-9:
            break
    found = (abs(y - (height - 1) / 2) < height / 2) & (abs(x - (width - 1) / 2) < width / 2)
    found &= np.hypot(*(wanted - interpolated(grid, y, x)[0])) < _CLOSE
    result[:, near] = np.where(found, (y, x), np.nan)
    return result[0], result[1]


def _nearest(wanted: Floats, grid: Floats) -> tuple[Floats, Floats]:
    """Row and column of the nearest of at most 24 x 24 cells, or of all in a single row or column,
    by degrees, to points [2, P]."""
    most = 24 if min(grid.shape[1:]) > 1 else grid[0].size
    rows, columns = (np.linspace(0, n - 1, min(n, most)).astype(np.int64) for n in grid.shape[1:])
    some = grid[:, rows[:, None], columns].reshape(2, -1)
    nearest = np.empty(wanted.shape[1], np.int64)
    for start in range(0, len(nearest), 4096):  # bounds the table of distances
        part = slice(start, start + 4096)
        # |some - wanted|^2 without the term that all cells share
        nearest[part] = (np.square(some).sum(0) - 2 * wanted[:, part].T @ some).argmin(1)
    row, column = np.divmod(nearest, len(columns))
    return rows[row].astype(np.float64), columns[column].astype(np.float64)


def interpolated(fields: Floats, y: Floats, x: Floats) -> tuple[Floats, Floats, Floats]:
    """Fields [C, H, W] at fractional rows and columns [P], continued beyond the edges.

    Returns:
        Values and their slopes along rows and columns, each [C, P].
    """
    row, column = cell_before(y, fields.shape[1]), cell_before(x, fields.shape[2])
    fy, fx = y - row, x - column
    a, b = fields[:, row, column], fields[:, row, column + 1]
    c, d = fields[:, row + 1, column], fields[:, row + 1, column + 1]
    by_row = (c - a) * (1 - fx) + (d - b) * fx
    by_column = (b - a) * (1 - fy) + (d - c) * fy
    return a + by_row * fy + (b - a) * fx, by_row, by_column


def cell_before(place: Floats, size: int) -> NDArray[np.int64]:
    """The cell before a place among `size`, so that the next one exists; of a single cell -1, which
    is the cell itself."""
    return np.clip(np.floor(place), 0, size - 2).astype(np.int64)
