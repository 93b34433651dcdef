"""Source files read as the stores are: a forecast straight from the latest analysis."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from aqnet.config import STATIC_VARIABLES, Config, Source
from aqnet.data.regridding.model_grid import ModelGrid
from aqnet.data.sources.several import open_sources
from aqnet.data.store import Store
from aqnet.errors import AqnetError

_SAME_PLACE = 1e-3  # degrees


class Analysis:
    """Hours of source files on the grid of a store, whose channels it has.

    Attributes:
        hours: those of the files, since 1970 UTC.
    """

    def __init__(self, path: str, config: Config, store: Store) -> None:
        """`path`: files as `data.sources[].path` names them, in the layout of the config's source.

        Raises:
            AqnetError: the files cannot be read, or their grid is not the store's.
        """
        data = config.data
        names = data.sources[0].names if data.sources else {}
        source = replace(data, sources=(Source(path, names),))
        self._view = open_sources(source, write=False)
        self._grid = ModelGrid(config, self._view)
        self._channels = store.names
        self._needed = [name for name in data.variables if name not in STATIC_VARIABLES]
        self.hours = self._view.times
        for what in ("lat", "lon"):
            ours, theirs = getattr(store.grid, what).numpy(), getattr(self._grid, what)
            if ours.shape != theirs.shape or np.abs(ours - theirs).max() > _SAME_PLACE:
                raise AqnetError(
                    f"{path}: on the model grid {what} has shape {theirs.shape} and lies between "
                    f"{theirs.min():.3f} and {theirs.max():.3f}; that of {store.path} has shape "
                    f"{ours.shape} between {ours.min():.3f} and {ours.max():.3f}: cut the files "
                    "to the grid the model was trained on"
                )

    def read(self, hour: int) -> NDArray[np.float32] | None:
        """Fields [C, H, W] of one hour in physical units, NaN = missing; None where there is none.

        Channels that are no input are NaN.

        Raises:
            AqnetError: names all variables that the file of that hour lacks.
        """
        row = int(np.searchsorted(self.hours, hour))
        if row == len(self.hours) or self.hours[row] != hour:
            return None
        rows = slice(row, row + 1)
        self._view.check_variables(self._needed, rows)
        found = self._grid.read(self._needed, rows)[0]
        fields = np.full((len(self._channels), *found.shape[1:]), np.nan, np.float32)
        fields[[self._channels.index(name) for name in self._needed]] = found
        return fields
