"""Source fields on the model grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aqnet.batch import Grid
from aqnet.config import STATIC_VARIABLES, Config
from aqnet.data.sources import SourceView
from aqnet.errors import AqnetError

Array = NDArray[Any]


class ModelGrid:
    """The grid of the training stores, and the fields of one source on it.

    Attributes:
        lat, lon: degrees, float64, shape [H, W], continued linearly where the grid is padded.
    """

    def __init__(self, config: Config, sources: SourceView) -> None:
        self._data, self._patch, self.sources = config.data, config.model.patch, sources
        padded = tuple(-(-size // self._patch) * self._patch for size in sources.lat.shape)
        lat, lon = (_extrapolated(values, padded) for values in (sources.lat, sources.lon))
        self.lat, self.lon = np.clip(lat, -90, 90), lon

    def read(self, names: Sequence[str], rows: slice) -> NDArray[np.float32]:
        """Fields of `names` at `sources.times[rows]`, float32 [rows, len(names), H, W]; see
        `SourceView.read`."""
        return self._padded(self.sources.read(names, rows))

    def domain_file(self) -> NDArray[np.bool_] | None:
        """The domain mask of `data.mask_file`, shape [H, W], None where the config names none."""
        if self._data.mask_file is None:
            return None
        found = self._array_file(self._data.mask_file, "data.mask_file") > 0
        return self._padded(found, False)

    def grid(self, mask: NDArray[np.bool_]) -> tuple[Grid, dict[str, Array]]:
        """The grid and the static fields among `data.variables`, by name."""
        static: dict[str, Array] = {}
        for name in STATIC_VARIABLES:
            if name not in self._data.variables:
                continue
            if name in ("lat2d", "lon2d"):
                static[name] = (self.lat if name == "lat2d" else self.lon).astype(np.float32)
            elif name in self._data.static_files:
                path = self._data.static_files[name]
                values = self._array_file(path, f"data.static_files.{name}")
                static[name] = self._padded(values.astype(np.float32))
            else:
                static[name] = self._padded(self.sources.static(name))
        elevation = static.get("elevation")
        grid = Grid(
            lat=torch.from_numpy(self.lat),
            lon=torch.from_numpy(self.lon),
            elevation=None if elevation is None else torch.from_numpy(elevation),
            mask=torch.from_numpy(mask),
        )
        return grid, static

    def _array_file(self, path: str, key: str) -> Array:
        shape = self.sources.lat.shape
        if Path(path).suffix != ".npy":
            raise AqnetError(f"{key}: {path}: expected a .npy file on the grid of the source")
        try:
            values: Array = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise AqnetError(f"{key}: {path}: cannot read this file: {error}") from None
        if values.shape != shape:
            raise AqnetError(f"{key}: {path} has shape {values.shape}; the source has {shape}")
        return values

    def _padded(self, values: Array, fill: Any = np.nan) -> Array:
        """`values` [..., H, W] with rows and columns of `fill` up to a multiple of the patch."""
        pads = [(0, -size % self._patch) for size in values.shape[-2:]]
        if not any(after for _, after in pads):
            return values
        return np.pad(values, [(0, 0)] * (values.ndim - 2) + pads, constant_values=fill)


def _extrapolated(values: Array, shape: tuple[int, ...]) -> Array:
    """Coordinates [H, W] continued linearly to `shape`."""
    for axis in (0, 1):
        extra = shape[axis] - values.shape[axis]
        last = np.take(values, [-1], axis)
        step = last - np.take(values, [-2], axis) if values.shape[axis] > 1 else 0 * last
        more = [last + step * (at + 1) for at in range(extra)]
        values = np.concatenate([values, *more], axis)
    return values
