"""Where the cells of a file are, and which of its dimensions are rows and columns.

Found by attributes and names, never by shapes: a square grid stored as (lon, lat) is turned as any
other.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aqnet.errors import AqnetError

if TYPE_CHECKING:
    from aqnet.data.sources.files.source_file import SourceFile

Degrees = NDArray[np.float64]

_NAMES = {
    "latitude": ("lat2d", "lat", "latitude", "xlat", "nav_lat"),
    "longitude": ("lon2d", "lon", "longitude", "xlong", "nav_lon"),
}
_ALONG_Y = ("y", "lat", "latitude", "south_north", "rlat", "yc", "ny", "nj", "row", "rows")
_ALONG_X = ("x", "lon", "longitude", "west_east", "rlon", "xc", "nx", "ni", "column", "columns")
_LENGTHS = {
    *("m", "metre", "metres", "meter", "meters"),
    *("km", "kilometre", "kilometres", "kilometer", "kilometers"),
}
_MOST = {"latitude": 90.0, "longitude": 720.0}  # degrees


class Cells(NamedTuple):
    """The grid of a file.

    Attributes:
        y, x: the dimensions along which rows and columns run.
        lat, lon: degrees, float64, shape [H, W].
        names: of all variables that may be one of them.
    """

    y: str
    x: str
    lat: Degrees
    lon: Degrees
    names: tuple[str, ...]


def cells_of(file: SourceFile) -> Cells:
    """The grid of a file.

    Raises:
        AqnetError: the file has no such coordinates, they are not in degrees (or radians), hold
            missing values or change with time, or its cells are a list.
    """
    names = [_candidates(file, what) for what in _NAMES]
    for pair in itertools.product(*names):
        # along time they repeat themselves, as WRF's XLAT does
        lat_dims, lon_dims = (file.dims(name)[-2:] for name in pair)
        two_d = len(lat_dims) == len(lon_dims) == 2 and set(lat_dims) == set(lon_dims)
        if not two_d and (len(lat_dims) != 1 or len(lon_dims) != 1 or lat_dims == lon_dims):
            continue
        lat, lon = (_read(file, name, what) for name, what in zip(pair, _NAMES, strict=True))
        if not two_d:
            lat, lon = np.meshgrid(lat, lon, indexing="ij")
            return Cells(lat_dims[0], lon_dims[0], lat, lon, (*names[0], *names[1]))
        lon = lon if lon_dims == lat_dims else lon.T
        first, second = lat_dims
        if _runs_along(file, first) == "x" or _runs_along(file, second) == "y":
            return Cells(second, first, lat.T, lon.T, (*names[0], *names[1]))
        return Cells(first, second, lat, lon, (*names[0], *names[1]))
    dims = [" or ".join(str(file.dims(name)) for name in of) for of in names]
    raise AqnetError(
        f"{file.path}: latitude has dimensions {dims[0]} and longitude {dims[1]}; expected both "
        "1-D along dimensions of their own, or both (y, x)"
    )


def _runs_along(file: SourceFile, dim: str) -> str | None:
    for axis, names in (("y", _ALONG_Y), ("x", _ALONG_X)):
        if dim in file.meaning(axis.upper()) or dim.lower() in names:
            return axis
    return None


def _candidates(file: SourceFile, what: str) -> list[str]:
    """Variables that may be the latitude (or longitude), the likeliest first."""
    by_name = {name.lower(): name for name in reversed(file.names)}
    listed = [by_name[name] for name in _NAMES[what] if name in by_name]
    listed += sorted(set(file.meaning(what)) - set(listed))
    listed = [
        name
        for name in listed
        if name not in file.bounds
        and file.dims(name)
        and not str(file.attribute(name, "standard_name")).startswith(("grid_", "projection_"))
    ]
    if not listed:
        raise AqnetError(
            f"{file.path}: no coordinate {' or '.join(_NAMES[what][1:3])} in the file; it holds "
            f"{', '.join(sorted(file.names))}"
        )
    angles = [name for name in listed if (file.unit(name) or "").strip().lower() not in _LENGTHS]
    if not angles:
        raise AqnetError(
            f"{file.path}: {listed[0]!r} is in {file.unit(listed[0])!r}; expected degrees: add the "
            "latitude and longitude of each cell to the file (2-D where it is projected)"
        )
    return angles


def _read(file: SourceFile, name: str, what: str) -> Degrees:
    """Values [degrees], those that repeat along time taken once."""
    values = file.values(name).astype(np.float64)
    while values.ndim > 2:
        if (values != values[:1]).any():
            along = file.dims(name)[-values.ndim]
            raise AqnetError(
                f"{file.path}: {name!r} changes along {along!r}; expected one grid for all times"
            )
        values = values[0]
    unit = (file.unit(name) or "").strip().lower()
    if unit.startswith("rad"):
        values = np.degrees(values)
    elif unit not in ("", "1") and not unit.startswith(("deg", "\N{DEGREE SIGN}")):
        raise AqnetError(f"{file.path}: {name!r} has units {file.unit(name)!r}; expected degrees")
    if not np.isfinite(values).all():
        raise AqnetError(f"{file.path}: latitude or longitude holds missing values")
    if values.size and abs(values).max() > _MOST[what] + 1e-6:
        raise AqnetError(
            f"{file.path}: {name!r} holds {values.flat[abs(values).argmax()]:g}, which is no "
            f"{what} in degrees"
        )
    return values
