"""Source files read as the stores are: a forecast straight from the latest analysis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from aqnet.config import STATIC_VARIABLES, Config, Source
from aqnet.data.on_grid.model_grid import ModelGrid
from aqnet.data.sources.several import open_sources
from aqnet.data.stores.layout import Layout
from aqnet.data.stores.record import means
from aqnet.data.stores.store import HOURS_PER_DAY, Kind
from aqnet.errors import AqnetError
from aqnet.grid import Floats, same_place


class Analysis:
    """Hours of source files on the grid and in the channels of training stores.

    Attributes:
        hours: those of the files, since 1970 UTC.
    """

    def __init__(self, path: str, config: Config, layout: Layout, weather: bool = False) -> None:
        """Find the files, and those of their fields that are read.

        Args:
            path: files as `data.sources[].path` names them, in the layout of the config's source.
            weather: whether their own weather is given as that to come, so that those of
                `data.weather` that are no other input are read as well.
        Raises:
            AqnetError: the files cannot be read, or their grid is not the layout's.
        """
        data = config.data
        names = [source.names for source in data.sources] or [{}]
        paths = path.split(",") if len(names) > 1 else [path]
        if len(paths) != len(names):
            raise AqnetError(
                f"--source {path!r}: data.sources has {len(names)} entries; give a path for each, "
                "separated by commas"
            )
        sources = tuple(Source(*each) for each in zip(paths, names, strict=True))
        self._view = open_sources(replace(data, sources=sources), write=False)
        self._grid = ModelGrid(config, self._view)
        self._channels = layout.channels
        given = (*data.variables, *data.weather) if weather else data.variables
        self._read = [name for name in dict.fromkeys(given) if name not in STATIC_VARIABLES]
        self.hours = self._view.times
        ours, theirs = layout.grid, self._grid
        if not same_place(ours.lat.numpy(), ours.lon.numpy(), theirs.lat, theirs.lon):
            raise AqnetError(
                f"{path}: on the model grid it lies on {_extent(theirs.lat, theirs.lon)}, that of "
                f"the model on {_extent(ours.lat.numpy(), ours.lon.numpy())}: cut the files to "
                "the grid the model was trained on"
            )

    def read(self, hour: int, kind: Kind) -> NDArray[np.float32] | None:
        """Fields [C, H, W] of one hour in physical units, NaN = missing; None where there is none.

        Channels that are not asked for (see `__init__`) are NaN.

        Raises:
            AqnetError: names all variables that the file of that hour lacks.
        """
        row = int(np.searchsorted(self.hours, hour))
        if row == len(self.hours) or self.hours[row] != hour:
            return None
        return self._block(slice(row, row + 1), kind)[0]

    def recent(self, hour: int, days: Sequence[int]) -> NDArray[np.float32]:
        """Means of `air` over the last days, [N, C, H, W], of the files' hours; see
        `record.Fields.recent`."""
        day = hour // HOURS_PER_DAY
        shape = len(days), len(self._channels["air"]), *self._grid.lat.shape
        sums, counts = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for earlier in range(day - max(days), day):
            edges = HOURS_PER_DAY * np.array([earlier, earlier + 1])
            start, stop = np.searchsorted(self.hours, edges).tolist()
            if start < stop:
                values = self._block(slice(start, stop), "air")
                within = [at for at, n in enumerate(days) if earlier >= day - n]
                sums[within] += np.nansum(values, axis=0)
                counts[within] += np.isfinite(values).sum(axis=0)
        return means(sums, counts, day, days, int(self.hours[0]) // HOURS_PER_DAY)

    def _block(self, rows: slice, kind: Kind) -> NDArray[np.float32]:
        """Fields of some rows of `hours`, [n, C, H, W]."""
        names = self._channels[kind]
        needed = [name for name in names if name in self._read]
        shape = rows.stop - rows.start, len(names), *self._grid.lat.shape
        fields = np.full(shape, np.nan, np.float32)
        if needed:
            self._view.check_variables(self._read, rows)  # those of the other kind too, at once
            places = [names.index(name) for name in needed]
            fields[:, places] = self._grid.read(needed, rows)
        return fields


def _extent(lat: Floats, lon: Floats) -> str:
    height, width = lat.shape
    return (
        f"{height} x {width} cells from {lat.min():.3f} to {lat.max():.3f} N and {lon.min():.3f} "
        f"to {lon.max():.3f} E"
    )
