"""Static fields and masks from files on any grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aqnet.config import Data
from aqnet.data.regridding.conservative import regridded
from aqnet.data.sources import limits, units
from aqnet.data.sources.files.source_file import SourceFile, open_file
from aqnet.errors import AqnetError
from aqnet.grid import same_place

Array = NDArray[Any]


class StaticFile:
    """One field of a NetCDF file, a Zarr store or a .npy file (which has no coordinates).

    Attributes:
        values: in aqnet's unit, NaN where missing, float64, shape [h, w].
        lat, lon: degrees, shape [h, w]; None for .npy.
    """

    def __init__(self, path: str, key: str, name: str, data: Data) -> None:
        """Read the variable `name`, or the only field in the file.

        Args:
            key: of the config, for errors. Only an aqnet variable has a unit; a mask has none.
        Raises:
            AqnetError: the file cannot be read, holds no such field, one with a time, one whose
                unit is unknown, or values that cannot be.
        """
        self.where = f"{key}: {path}"
        self.lat: Array | None = None
        self.lon: Array | None = None
        if Path(path).suffix == ".npy":
            try:
                values = np.load(path, allow_pickle=False).astype(np.float64)
            except (OSError, ValueError) as error:
                raise AqnetError(f"{self.where}: cannot read this file: {error}") from None
            unit, origin = units.canonical_unit(name), self.where
        else:
            with open_file(Path(path)) as file:
                inside = _field_name(file, name, self.where)
                values = file.read(inside).astype(np.float64)
                self.lat, self.lon = file.cells.lat, file.cells.lon
                unit, origin = file.unit(inside), f"{self.where}: variable {inside!r}"
        if values.ndim != 2:
            raise AqnetError(
                f"{self.where}: the field has shape {values.shape}; expected (y, x): a static "
                "field has no time"
            )
        self.values, _ = limits.without_codes(values, data.missing_values)
        if units.canonical_unit(name) is not None:
            unit = data.units.get(name, unit)
            convert = units.conversion(name, unit, origin)
            limits.refuse(self.values, name, convert, origin, unit)
            self.values = self.values * convert.factor + convert.offset

    def on_grid_of(self, lat: Array, lon: Array) -> bool:
        """Whether the field lies on the grid `lat`, `lon`; a .npy does where its shape does."""
        if self.lat is None or self.lon is None:
            return self.values.shape == lat.shape
        return same_place(self.lat, self.lon, lat, lon)

    def regridded(self, lat: Array, lon: Array, counts: bool) -> Array:
        """The field on another grid; see `conservative.regridded`.

        Raises:
            AqnetError: a .npy of another shape, or no cell of the grid is covered.
        """
        if self.lat is None or self.lon is None or min(self.values.shape) < 2:
            raise AqnetError(
                f"{self.where}: has shape {self.values.shape} and no coordinates to regrid it by; "
                f"expected the shape of the source or of the stores, {lat.shape}"
            )
        found = regridded(self.values, self.lat, self.lon, lat, lon, counts)
        if not np.isfinite(found).any():
            raise AqnetError(
                f"{self.where}: covers no cell of the grid (its latitudes {self.lat.min():.1f} to "
                f"{self.lat.max():.1f}, longitudes {self.lon.min():.1f} to {self.lon.max():.1f})"
            )
        return found


def _field_name(file: SourceFile, name: str, where: str) -> str:
    if name in file.names:
        return name
    cells = {file.cells.y, file.cells.x}
    fields = [
        other
        for other in file.names
        if cells <= set(file.dims(other))
        and file.kind(other) in "fiub"
        and other not in (*file.cells.names, *file.bounds)
    ]
    if len(fields) != 1:
        raise AqnetError(
            f"{where}: holds no variable {name!r}, and not one field alone that could be meant "
            f"({', '.join(fields) or 'none'}); rename the variable in the file"
        )
    return fields[0]
