"""Source files read as the stores are: a forecast straight from the latest analysis."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aqnet.config import STATIC_VARIABLES, Config, Source
from aqnet.data.layout import Layout
from aqnet.data.regridding.model_grid import ModelGrid
from aqnet.data.sources.view import SourceView
from aqnet.errors import AqnetError
from aqnet.grid import Floats, same_place


class Analysis:
    """Hours of source files on the grid and in the channels of training stores.

    Attributes:
        hours: those of the files, since 1970 UTC.
    """

    def __init__(self, path: str, config: Config, layout: Layout) -> None:
        """`path`: files as `data.sources[].path` names them, in the layout of the config's source.

        Raises:
            AqnetError: the files cannot be read, or their grid is not the layout's.
        """
        data = config.data
        names = data.sources[0].names if data.sources else {}
        self._view = SourceView(Source(path, names), data.units)
        self._grid = ModelGrid(config, self._view)
        self._channels = layout.names
        self._needed = [name for name in data.variables if name not in STATIC_VARIABLES]
        self.hours = self._view.times
        ours, theirs = layout.grid, self._grid
        if not same_place(ours.lat.numpy(), ours.lon.numpy(), theirs.lat, theirs.lon):
            raise AqnetError(
                f"{path}: on the model grid it lies on {_extent(theirs.lat, theirs.lon)}, that of "
                f"the model on {_extent(ours.lat.numpy(), ours.lon.numpy())}: cut the files to "
                "the grid the model was trained on"
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


def _extent(lat: Floats, lon: Floats) -> str:
    height, width = lat.shape
    return (
        f"{height} x {width} cells from {lat.min():.3f} to {lat.max():.3f} N and {lon.min():.3f} "
        f"to {lon.max():.3f} E"
    )
