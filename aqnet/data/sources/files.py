"""One source file, NetCDF (also inside a tar archive) or Zarr (v2 or v3), with CF attributes
applied."""

from __future__ import annotations

import base64
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import zarr
from numpy.typing import NDArray

from aqnet.data.sources.caqra import is_archive, member
from aqnet.errors import AqnetError, one_line

SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_CALENDARS = ("standard", "gregorian", "proleptic_gregorian")
_FIRST_GREGORIAN_DAY = np.datetime64("1582-10-15")
_UNITS = re.compile(
    r"(second|minute|hour|day)s?\s+since\s+(\d{1,4}-\d{1,2}-\d{1,2})"
    r"(?:[T ](\d{1,2}):(\d{2})(?::(\d{1,2})(?:\.0*)?)?)?(?:\s*(?:Z|UTC|\+00:?00))?"
)
# the Copernicus data stores write valid_time since 2024
TIME_NAMES = ("time", "valid_time")
# what damaged files make the libraries raise
_DAMAGE = (OSError, RuntimeError, ValueError, KeyError, TypeError, struct.error)


Floats = NDArray[np.float32] | NDArray[np.float64]
Rows = slice | tuple[int | slice, ...] | None


class Layout(NamedTuple):
    """How a variable is stored: its shape, its kind as in `numpy.dtype.kind`, and the shape of one
    chunk, None where it lies in one piece."""

    shape: tuple[int, ...]
    kind: str
    chunk: tuple[int, ...] | None


class SourceFile(Protocol):
    """What both layouts have in common.

    Attributes:
        path: the file or store.
        dimensions: names of the dimensions of each variable.
    """

    path: Path
    dimensions: dict[str, tuple[str, ...]]

    def attribute(self, name: str, key: str) -> Any:
        """An attribute of a variable, None where it has none."""

    def layout(self, name: str) -> Layout:
        """How a variable is stored."""

    def read(self, name: str, rows: Rows = None) -> Floats:
        """A variable (or rows of its first dimensions), unpacked, NaN where missing."""

    def unit(self, name: str) -> str | None:
        """The units attribute of a variable, None where it has none."""
        found = self.attribute(name, "units")
        return None if found is None else str(found)

    def times(self, name: str | None = None) -> NDArray[np.int64]:
        """A time coordinate (else the one), hours since 1970-01-01 00:00 UTC, as in the file."""
        name = name or _time_name(self)
        calendar = str(self.attribute(name, "calendar") or "standard").lower()
        values = np.atleast_1d(self.read(name)).astype(np.float64)
        return _hours(self.path, name, values, self.unit(name) or "", calendar)


def sizes_and_times(path: Path) -> list[str]:
    """Name, size and time of change of a file, or of each file of a store."""
    lines = []
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        found = file.stat()
        if not stat.S_ISDIR(found.st_mode):
            lines.append(f"{file.relative_to(path.parent)} {found.st_size} {found.st_mtime_ns}")
    return lines


@contextmanager
def open_file(path: Path) -> Iterator[SourceFile]:
    """Open a NetCDF file or (a directory) a Zarr store for reading.

    Raises:
        AqnetError: it is neither, or damaged.
    """
    if path.is_dir():
        yield ZarrStore(path)
        return
    try:
        import netCDF4
    except ImportError:
        raise AqnetError(
            f"{path}: reading NetCDF needs netCDF4; install it with pip install 'aqnet[convert]'"
        ) from None
    try:
        if is_archive(path.parent):
            dataset = netCDF4.Dataset(path.name, memory=member(path))
        else:
            dataset = netCDF4.Dataset(str(path))
    except _DAMAGE as error:
        raise AqnetError(f"{path}: cannot read this file as NetCDF: {error}") from None
    try:
        yield _NetCDF(path, dataset)
    finally:
        dataset.close()


class _NetCDF(SourceFile):
    def __init__(self, path: Path, dataset: Any) -> None:
        self.path, self._dataset = path, dataset
        self.dimensions = {
            name: tuple(variable.dimensions) for name, variable in dataset.variables.items()
        }

    def attribute(self, name: str, key: str) -> Any:
        return getattr(self._dataset.variables[name], key, None)

    def layout(self, name: str) -> Layout:
        variable = self._dataset.variables[name]
        chunking = variable.chunking()
        chunk = tuple(chunking) if isinstance(chunking, list) else None
        return Layout(tuple(variable.shape), np.dtype(variable.dtype).kind, chunk)

    def read(self, name: str, rows: Rows = None) -> Floats:
        variable = self._dataset.variables[name]
        try:
            values = np.ma.asarray(variable[...] if rows is None else variable[rows])
            found = _floating(values.data)
        except _DAMAGE as error:
            raise _unreadable(self.path, name, error) from None
        found[np.ma.getmaskarray(values)] = np.nan
        return found


class ZarrStore(SourceFile):
    """A Zarr store, v2 or v3."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            group = zarr.open_group(path, mode="r")
            self._arrays: dict[str, zarr.Array[Any]] = dict(group.arrays())
        except _DAMAGE as error:
            raise AqnetError(f"{path}: cannot read this directory as Zarr: {error}") from None
        self.dimensions = {name: self._dims(array) for name, array in self._arrays.items()}

    @staticmethod
    def _dims(array: zarr.Array[Any]) -> tuple[str, ...]:
        named: Any = getattr(array.metadata, "dimension_names", None)
        found: Any = named or array.attrs.get("_ARRAY_DIMENSIONS")
        return tuple(str(name) for name in found or (f"dim_{at}" for at in range(array.ndim)))

    def attribute(self, name: str, key: str) -> Any:
        return self._arrays[name].attrs.get(key)

    def layout(self, name: str) -> Layout:
        array = self._arrays[name]
        return Layout(tuple(array.shape), array.dtype.kind, tuple(array.shards or array.chunks))

    def read(self, name: str, rows: Rows = None) -> Floats:
        array = self._arrays[name]
        try:
            raw = np.asarray(array[...] if rows is None else array[rows])
            marks = _missing_marks(array)
        except _DAMAGE as error:
            raise _unreadable(self.path, name, error) from None
        packed = "scale_factor" in array.attrs or "add_offset" in array.attrs
        values = _floating(raw.astype(np.float64) if packed else raw)
        for mark in marks:
            values[raw == mark] = np.nan
        factor: Any = array.attrs.get("scale_factor", 1.0)
        offset: Any = array.attrs.get("add_offset", 0.0)
        return values * float(factor) + float(offset) if packed else values

    def lost_chunk(self, name: str) -> str | None:
        """The key of a chunk without a file whose place in space has one at another time.

        Chunks that are missing everywhere need no file; one that comes and goes was lost.
        """
        array = self._arrays[name]
        shape = array.shards or array.chunks
        counts = [-(-size // part) for size, part in zip(array.shape, shape, strict=True)]
        keys = np.empty(counts, dtype=object)
        for place in np.ndindex(*counts):
            keys[place] = array.metadata.encode_chunk_key(place)
        folder = self.path / array.path
        # folders are listed, which network file systems answer faster than a question a chunk
        files = {file.relative_to(folder).as_posix() for file in folder.rglob("*")}
        there = np.vectorize(files.__contains__, otypes=[bool])(keys)
        lost = keys[~there & there.any(axis=0)]
        return str(lost[0]) if len(lost) else None


def _missing_marks(array: zarr.Array[Any]) -> list[Any]:
    """The values that stand for missing ones in a Zarr array.

    xarray writes them as the attribute `_FillValue` (floats as base64 of their eight bytes) to v3,
    as the array's own fill value to v2, where, as in any array, 0 is the default and marks nothing.
    """
    found: list[Any] = [array.attrs.get("_FillValue"), array.attrs.get("missing_value")]
    if found[0] is None and array.fill_value and array.dtype.kind != "b":
        found[0] = array.fill_value
    for at, mark in enumerate(found):
        if isinstance(mark, str) and mark.endswith("="):
            found[at] = struct.unpack("<d", base64.b64decode(mark))[0]
        elif isinstance(mark, str):  # "NaN", for one
            found[at] = float(mark)
    return [mark for mark in found if mark is not None]


def _floating(values: NDArray[Any]) -> Floats:
    """float32 as it is, everything else as float64, in memory of its own."""
    return values.copy() if values.dtype == np.float32 else values.astype(np.float64)


def _time_name(file: SourceFile) -> str:
    for name in TIME_NAMES:
        if len(file.dimensions.get(name, ("", ""))) <= 1:
            return name
    raise AqnetError(f"{file.path}: the coordinate 'time' is missing")


def _unreadable(path: Path, name: str, error: BaseException) -> AqnetError:
    detail = one_line(error) or type(error).__name__
    return AqnetError(
        f"{path}: variable {name!r} cannot be read ({detail}); the file is damaged: get it again"
    )


def _hours(
    path: Path, name: str, values: NDArray[np.float64], units: str, calendar: str
) -> NDArray[np.int64]:
    if calendar not in _CALENDARS:
        raise AqnetError(
            f"{path}: the calendar of {name!r} is {calendar!r}; expected one of "
            f"{', '.join(_CALENDARS)} (with leap days)"
        )
    where, match = f"{path}: {name!r}", _UNITS.fullmatch(units.strip())
    try:
        if match is None:
            raise ValueError
        year, month, day = (int(part) for part in match[2].split("-"))
        origin = np.datetime64(f"{year:04}-{month:02}-{day:02}", "s")
    except ValueError:
        raise AqnetError(
            f"{where} has units {units!r}; expected such as 'hours since 1970-01-01'"
        ) from None
    if calendar != "proleptic_gregorian" and origin < _FIRST_GREGORIAN_DAY:
        raise AqnetError(
            f"{where} counts from {match[2]}, which in the calendar {calendar!r} is a Julian date, "
            "two days off; count from 1970, or name the calendar proleptic_gregorian if it is meant"
        )
    start = int(origin.astype(np.int64)) + int(match[3] or 0) * 3600 + int(match[4] or 0) * 60
    return whole_hours(where, values * SECONDS[match[1]] + start + int(match[5] or 0))


def whole_hours(where: str, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Seconds as hours; `where` names the file and its coordinate in errors.

    Raises:
        AqnetError: some are missing, or no whole hours.
    """
    if not np.isfinite(seconds).all():
        raise AqnetError(f"{where} holds missing values")
    hours = seconds / 3600
    rounded = np.rint(hours)
    if hours.size and abs(hours - rounded).max() > 1e-3:
        raise AqnetError(f"{where} holds times that are no whole hours")
    return rounded.astype(np.int64)
