"""Source fields on the grid of the training stores: winds turned, resampled."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aqnet.config import STATIC_VARIABLES, Config
from aqnet.data.on_grid.static_fields import StaticFile
from aqnet.data.regridding.resample import Resampler
from aqnet.data.sources.several import COUNTS, Sources
from aqnet.data.stores.store import HOURS_PER_SHARD
from aqnet.errors import AqnetError
from aqnet.grid import Grid

_BLOCK_BYTES = 320e6  # of fields in memory at once in a worker, which needs about four times it
_BLOCK_HOURS = 5 * HOURS_PER_SHARD

Array = NDArray[Any]


class ModelGrid:
    """The grid of the training stores, and the fields of one source on it.

    Attributes:
        lat, lon: degrees, float64, shape [H, W].
    """

    def __init__(self, config: Config, sources: Sources) -> None:
        """Resample `sources` as the config says.

        Raises:
            AqnetError: `data.winds` is grid and one of u and v alone is stored.
        """
        self._data, self.sources = config.data, sources
        self._resampler: Resampler | None = None
        self.lat, self.lon = sources.lat, sources.lon
        if config.data.resample != "none":
            assert config.data.shape is not None
            self._resampler = Resampler(
                config.data.resample, sources.lat, sources.lon, config.data.shape
            )
            self.lat, self.lon = self._resampler.lat, self._resampler.lon
        if config.data.winds == "grid" and len({"u", "v"} & set(config.data.stored)) == 1:
            raise AqnetError("data.winds is grid: data.variables needs both u and v to turn them")

    def read(self, names: Sequence[str], rows: slice) -> NDArray[np.float32]:
        """Fields of `names` at `sources.times[rows]`, float32 [rows, len(names), H, W]; see
        `Sources.read`."""
        block = self.sources.read(names, rows)
        return block if self._resampler is None else self._resampler.mean(block)

    def blocks(self, start: int, stop: int) -> list[slice]:
        """Rows start to stop in blocks of whole shards that a worker can hold."""
        hour = 4 * len(self._data.stored) * max(self.lat.size, self.sources.lat.size)
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
        inside: NDArray[np.bool_] = file.values > 0
        if file.on_grid_of(self.lat, self.lon):
            return inside
        if file.on_grid_of(self.sources.lat, self.sources.lon) and self._resampler is not None:
            return self._resampler.mask(inside)
        file.values = inside.astype(np.float64)  # outside the file is outside the domain
        return np.asarray(file.regridded(self.lat, self.lon, counts=False) >= 0.5)

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
            static[name] = self._static(name).astype(np.float32)
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
        """A static field on the model grid."""
        counts = name in COUNTS
        if name in self._data.static_files:
            path, key = self._data.static_files[name], f"data.static_files.{name}"
            file = StaticFile(path, key, name, self._data)
            if file.on_grid_of(self.lat, self.lon):
                return file.values
            if not file.on_grid_of(self.sources.lat, self.sources.lon):
                return file.regridded(self.lat, self.lon, counts)
            values = file.values
        else:
            values = self.sources.static(name)
        if self._resampler is None:
            return values
        return self._resampler.total(values) if counts else self._resampler.mean(values)
