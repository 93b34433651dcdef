"""Winds relative to a projected grid, turned to east and north.

On a projected grid "along x" is not east: on CAQRA's Lambert grid the two differ by up to 20
degrees at the edges. `data.winds: grid` says that a source's u and v are along the grid's x and y
(as WRF writes them); `earth` that they are eastward and northward already.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def grid_angle(lat: NDArray[np.float64], lon: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angle from east to the grid's x axis, counted towards north [radians], shape [H, W].

    From the neighbours along x; x is taken to run eastward whichever way the columns are stored,
    and y a quarter turn to its left, which holds for conformal projections however rows run.
    """
    if lat.shape[1] < 2:
        return np.zeros_like(lat)
    edge: Any = 2 if lat.shape[1] > 2 else 1
    east = np.gradient(np.unwrap(lon, period=360, axis=1), axis=1, edge_order=edge)
    east *= np.cos(np.radians(lat))
    north = np.gradient(lat, axis=1, edge_order=edge)
    sign = np.where(east < 0, -1.0, 1.0)
    return np.arctan2(sign * north, sign * east)


def to_earth(
    u: NDArray[np.float32], v: NDArray[np.float32], angle: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Winds along x and y [..., H, W] as eastward and northward ones, in the same unit."""
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    return u * cos - v * sin, u * sin + v * cos
