"""The files of a source, which are all on one grid."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from aqnet.data.sources.files.cells import Cells
from aqnet.data.sources.files.source_file import SourceFile, open_file
from aqnet.data.sources.files.times import Times
from aqnet.errors import AqnetError
from aqnet.grid import same_place


class OneGrid:
    """Opens files, all on the grid of the first that was opened.

    Attributes:
        lat, lon: degrees, float64, shape [H, W].
    """

    def __init__(self) -> None:
        # finding the axes of a file takes as long as reading an hour of it
        self._axes: dict[Path, tuple[Cells, Times]] = {}

    @contextmanager
    def open(self, path: Path) -> Iterator[SourceFile]:
        """A file, its `lat` and `lon` exactly those of the first.

        Raises:
            AqnetError: see `open_file`, or the file is on another grid.
        """
        with open_file(path) as file:
            if path not in self._axes:
                self._check(file)
                self._axes[path] = file.cells._replace(lat=self.lat, lon=self.lon), file.times
            file.cells, file.times = self._axes[path]
            yield file

    def _check(self, file: SourceFile) -> None:
        lat, lon = file.cells.lat, file.cells.lon
        if not self._axes:
            self.lat, self.lon, self._first = lat, lon, file.path
        elif np.array_equal(lat, self.lat) and np.array_equal(lon, self.lon):
            return
        elif not same_place(lat, lon, self.lat, self.lon):
            where = f"{file.path}: the grid differs from that of {self._first}"
            if lat.shape != self.lat.shape:
                raise AqnetError(f"{where}: shape {lat.shape}, expected {self.lat.shape}")
            reversed_ = same_place(lat[::-1], self.lon, self.lat, self.lon)
            reason = "latitude runs the other way" if reversed_ else "other coordinates"
            raise AqnetError(f"{where}: {reason}; bring all files to one grid")
