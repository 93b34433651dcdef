"""Source fields on the model grid: winds turned, resampled, padded to whole patches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aqnet.config import STATIC_VARIABLES, Config
from aqnet.data.regridding.resample import Resampler
from aqnet.data.regridding.static_fields import StaticFile
from aqnet.data.sources.several import COUNTS, Sources
from aqnet.data.sources.view import dynamic_names
from aqnet.data.store import HOURS_PER_SHARD
from aqnet.errors import AqnetError
from aqnet.grid import Grid

_BLOCK_BYTES = 320e6  # of fields in memory at once in a worker, which needs about four times it
_BLOCK_HOURS = 5 * HOURS_PER_SHARD

Array = NDArray[Any]


class ModelGrid:
    """The grid of the training stores, and the fields of one source on it.

    Attributes:
        lat, lon: degrees, float64, shape [H, W], continued linearly where the grid is padded.
    """

    def __init__(self, config: Config, sources: Sources) -> None:
        """
        Raises:
            AqnetError: `data.winds` is grid and u or v is missing from `data.variables`.
        """
        self._data, self._patch, self.sources = config.data, config.model.patch, sources
        self._resampler: Resampler | None = None
        self._lat, self._lon = sources.lat, sources.lon  # without padding
        if config.data.resample != "none":
            assert config.data.shape is not None
            self._resampler = Resampler(
                config.data.resample, sources.lat, sources.lon, config.data.shape
            )
            self._lat, self._lon = self._resampler.lat, self._resampler.lon
        padded = tuple(-(-size // self._patch) * self._patch for size in self._lat.shape)
        lat, lon = (_extrapolated(values, padded) for values in (self._lat, self._lon))
        self.lat, self.lon = np.clip(lat, -90, 90), lon
        if config.data.winds == "grid" and len({"u", "v"} & set(config.data.variables)) == 1:
            raise AqnetError("data.winds is grid: data.variables needs both u and v to turn them")

    def read(self, names: Sequence[str], rows: slice) -> NDArray[np.float32]:
        """Fields of `names` at `sources.times[rows]`, float32 [rows, len(names), H, W]; see
        `Sources.read`."""
        block = self.sources.read(names, rows)
        return self._padded(block if self._resampler is None else self._resampler.mean(block))

    def blocks(self, start: int, stop: int) -> list[slice]:
        """Rows start to stop in blocks of whole shards that a worker can hold."""
        hour = 4 * len(dynamic_names(self._data)) * max(self.lat.size, self.sources.lat.size)
        shard = HOURS_PER_SHARD
        size = int(max(shard, min(_BLOCK_HOURS, _BLOCK_BYTES // hour // shard * shard)))
        # at multiples of the size, so that blocks begin where chunks of the source do
        edges = [start, *range((start // size + 1) * size, stop, size), stop]
        return [slice(a, b) for a, b in itertools.pairwise(edges)]

    def domain_file(self) -> NDArray[np.bool_] | None:
        """The domain mask of `data.mask_file`, shape [H, W], None where the config names none."""
        if self._data.mask_file is None:
            return None
        file = StaticFile(self._data.mask_file, "data.mask_file", "mask", self._data)
        if file.on_grid_of(self._lat, self._lon):
            mask = file.values > 0
        elif file.on_grid_of(self.sources.lat, self.sources.lon) and self._resampler is not None:
            mask = self._resampler.mask(file.values > 0)
        else:
            inside = (file.values > 0).astype(np.float64)  # outside the file is outside the domain
            file.values = inside
            mask = file.regridded(self._lat, self._lon, counts=False) >= 0.5
        return self._padded(mask, False)

    def grid(self, mask: NDArray[np.bool_]) -> tuple[Grid, dict[str, Array]]:
        """The grid and the static fields among `data.variables`, by name.

        Raises:
            AqnetError: a static field cannot be read, or has no value inside the mask.
        """
        static: dict[str, Array] = {}
        for name in STATIC_VARIABLES:
            if name not in self._data.variables:
                continue
            if name in ("lat2d", "lon2d"):
                static[name] = (self.lat if name == "lat2d" else self.lon).astype(np.float32)
                continue
            static[name] = self._padded(self._static(name).astype(np.float32))
            lacking = 1 - np.isfinite(static[name][mask]).mean()
            if lacking == 1:
                raise AqnetError(f"{name!r} has no value inside the domain; check its grid")
            if lacking > 0:
                print(f"prepare: {name} is missing in {lacking:.1%} of the domain", flush=True)
        elevation = static.get("elevation")
        grid = Grid(
            lat=torch.from_numpy(self.lat),
            lon=torch.from_numpy(self.lon),
            elevation=None if elevation is None else torch.from_numpy(elevation),
            mask=torch.from_numpy(mask),
        )
        return grid, static

    def _static(self, name: str) -> Array:
        """A static field on the model grid without padding."""
        counts = name in COUNTS
        if name in self._data.static_files:
            path, key = self._data.static_files[name], f"data.static_files.{name}"
            file = StaticFile(path, key, name, self._data)
            if file.on_grid_of(self._lat, self._lon):
                return file.values
            if not file.on_grid_of(self.sources.lat, self.sources.lon):
                return file.regridded(self._lat, self._lon, counts)
            values = file.values
        else:
            values = self.sources.static(name)
        if self._resampler is None:
            return values
        return self._resampler.total(values) if counts else self._resampler.mean(values)

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
