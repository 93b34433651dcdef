"""Source files (CAQRA, CF NetCDF, AQ_NET2 yearly Zarr) as one view of hourly fields in aqnet's
units."""

from __future__ import annotations

import glob
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aqnet.config import Data, Source
from aqnet.data.sources import caqra, units
from aqnet.data.sources.files import Floats, SourceFile, ZarrStore, open_file, sizes_and_times
from aqnet.errors import AqnetError

Array = NDArray[np.float32]

_MISSING = -999.0  # what older AQ_NET2 stores hold outside China
SAME_PLACE = 1e-4  # degrees; coordinates of one grid differ by rounding only
LAT_NAMES = ("lat2d", "lat", "latitude", "XLAT")
LON_NAMES = ("lon2d", "lon", "longitude", "XLONG")


def hour_text(hour: int) -> str:
    """An hour since 1970 as `2013-01-31 06:00`."""
    return str(np.datetime64(int(hour), "h").astype("datetime64[m]")).replace("T", " ")


def coordinates(file: SourceFile) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Latitude and longitude of a file's cells [degrees], float64, both of shape [H, W].

    Raises:
        AqnetError: the file has no such coordinates, or they hold missing values.
    """
    lat, lon = (_first_of(file, names) for names in (LAT_NAMES, LON_NAMES))
    if lat.ndim == lon.ndim == 1:
        lat, lon = np.meshgrid(lat, lon, indexing="ij")
    if lat.ndim != 2 or lat.shape != lon.shape:
        raise AqnetError(
            f"{file.path}: latitude has shape {lat.shape} and longitude {lon.shape}; "
            "expected both 1-D, or both of shape (y, x)"
        )
    if not (np.isfinite(lat).all() and np.isfinite(lon).all()):
        raise AqnetError(f"{file.path}: latitude or longitude holds missing values")
    return lat, lon


def _first_of(file: SourceFile, names: Sequence[str]) -> NDArray[np.float64]:
    for name in names:
        if name in file.dimensions:
            return file.read(name).astype(np.float64)
    raise AqnetError(f"{file.path}: no coordinate {' or '.join(names[1:3])} in the file")


def check_times(path: Path, times: NDArray[np.int64]) -> None:
    """Refuse times that are not strictly ascending, by name.

    Raises:
        AqnetError: there are none, or two are equal or out of order.
    """
    if len(times) == 0:
        raise AqnetError(f"{path}: the file holds no time")
    steps = np.diff(times)
    for what, wrong in (("duplicated", steps == 0), ("unsorted", steps < 0)):
        if wrong.any():
            row = int(np.argmax(wrong)) + 1
            raise AqnetError(
                f"{path}: times are {what}: row {row} ({hour_text(times[row])}) follows "
                f"{hour_text(times[row - 1])}; sort the file and keep each hour once"
            )


class SourceView:
    """All files of one source, in time order.

    Attributes:
        files: paths, in time order.
        times: hours since 1970-01-01 00:00 UTC, int64, shape [N], strictly ascending.
        lat, lon: degrees, float64, shape [H, W].
        noise: per variable, how many values between -0.01 and 0 ug/m3 became 0 so far.
    """

    def __init__(
        self,
        source: Source,
        given_units: dict[str, str] | None = None,
        kept: Path | None = None,
        write: bool = True,
    ) -> None:
        """Find the files and their times.

        Files whose names tell the hour (CAQRA) are opened when they are read, the others at once.

        Args:
            kept: a file that keeps what archives hold; write: whether it may be written.
        Raises:
            AqnetError: no file, files of two layouts, unreadable files, unsorted or duplicated
                times, or a grid that differs between files.
        """
        self._names, self._given_units = source.names, given_units or {}
        # Path.glob takes no absolute pattern
        paths = sorted(Path(name) for name in glob.glob(source.path, recursive=True))  # noqa: PTH207
        if not paths:
            raise AqnetError(f"data.sources: no file matches {source.path!r}")
        if len({path.is_dir() for path in paths}) > 1:
            raise AqnetError(f"data.sources: {source.path!r} matches both NetCDF files and stores")
        self._checked: set[Path] = set()  # files whose grid is the first one's
        found = []
        for path in caqra.expanded(paths, kept, write):
            hour = caqra.hour_of(path)
            if hour is not None:
                found.append((np.array([hour]), path))
                continue
            with self._open(path) as file:
                times = file.times()
                check_times(path, times)
            found.append((times, path))
        found.sort(key=lambda item: int(item[0][0]))
        self.files = tuple(path for _, path in found)
        self._steps = {path: len(times) for times, path in found}
        self._starts = np.cumsum([0, *(len(times) for times, _ in found)])
        self.times = np.concatenate([times for times, _ in found])
        self._check_overlap(found)
        if not self._checked:
            with self._open(self.files[0]):
                pass
        self.noise: Counter[str] = Counter()

    @contextmanager
    def _open(self, path: Path) -> Iterator[SourceFile]:
        """A file of this source; the first time, its grid is checked."""
        with open_file(path) as file:
            if path not in self._checked:
                self._check_grid(file)
                self._checked.add(path)
            yield file

    def _check_grid(self, file: SourceFile) -> None:
        lat, lon = coordinates(file)
        if not hasattr(self, "lat"):
            self.lat, self.lon, self._grid_of = lat, lon, file.path
            return
        where = f"{file.path}: the grid differs from that of {self._grid_of}"
        if lat.shape != self.lat.shape:
            raise AqnetError(f"{where}: shape {lat.shape}, expected {self.lat.shape}")
        if abs(lat - self.lat).max() > SAME_PLACE or abs(lon - self.lon).max() > SAME_PLACE:
            reversed_ = abs(lat[::-1] - self.lat).max() <= SAME_PLACE
            reason = "latitude runs the other way" if reversed_ else "other coordinates"
            raise AqnetError(f"{where}: {reason}; bring all files to one grid")

    def _check_overlap(self, found: list[tuple[NDArray[np.int64], Path]]) -> None:
        for (before, first), (after, second) in itertools.pairwise(found):
            if after[0] <= before[-1]:
                raise AqnetError(
                    f"{second}: times are duplicated or overlap: it starts at "
                    f"{hour_text(after[0])}, but {first} ends at {hour_text(before[-1])}"
                )

    def file_name(self, name: str) -> str:
        """What the files call the variable `name`."""
        return self._names.get(name, name)

    def check_variables(self, names: Sequence[str], rows: slice) -> None:
        """Refuse files of `rows` that lack one of `names`, spell units aqnet cannot read or lost a
        chunk; of files that hold one hour each, only the first is opened.

        Raises:
            AqnetError: names the file, the variable and what to do.
        """
        for path, _ in self.pieces(rows):
            with self._open(path) as file:
                self._check_present(file, names)
                for name in names:
                    self._conversion(file, name)
                    self._check_shape(file, name)
            if caqra.hour_of(path) is not None:
                return

    def _check_shape(self, file: SourceFile, name: str) -> None:
        inside = self.file_name(name)
        where = f"{file.path}: variable {inside!r}"
        dims = file.dimensions[inside]
        if len(dims) != 3 and not self._without_time(file, inside):
            raise AqnetError(f"{where} has dimensions {dims}; expected (time, y, x)")
        if dims[-1] in LAT_NAMES or dims[-2] in LON_NAMES:
            raise AqnetError(f"{where} has dimensions {dims}; expected latitude before longitude")
        if isinstance(file, ZarrStore):
            lost = file.lost_chunk(inside)
            if lost is not None:
                raise AqnetError(
                    f"{where} has no chunk {lost}, though its place has values at other times; "
                    "the store is damaged: get it again"
                )

    def _without_time(self, file: SourceFile, inside: str) -> bool:
        """Whether a field has no time axis, as a file of one hour needs none."""
        return len(file.dimensions[inside]) == 2 and self._steps[file.path] == 1

    def read(self, names: Sequence[str], rows: slice) -> Array:
        """Fields of `names` at `times[rows]`, in aqnet's units, NaN where missing.

        Returns:
            float32, shape [rows, len(names), H, W].
        Raises:
            AqnetError: a variable is missing or unreadable, has the wrong shape or units,
                infinite values, or concentrations below -0.01 ug/m3.
        """
        start, stop, _ = rows.indices(len(self.times))
        block = np.empty((stop - start, len(names), *self.lat.shape), np.float32)
        done = 0
        for path, piece in self.pieces(rows):
            size = piece.stop - piece.start
            with self._open(path) as file:
                for channel, name in enumerate(names):
                    block[done : done + size, channel] = self._field(file, name, piece)
            done += size
        return block

    def static(self, name: str) -> Array:
        """A static field in aqnet's unit, NaN where missing, float32, shape [H, W].

        Raises:
            AqnetError: the first file lacks it, it depends on time, or its unit is unknown.
        """
        with self._open(self.files[0]) as file:
            return self._field(file, name, None)

    def pieces(self, rows: slice) -> Iterator[tuple[Path, slice]]:
        """The files that hold `times[rows]`, each with its own rows."""
        start, stop, _ = rows.indices(len(self.times))
        if start >= stop:
            return
        first_file = int(np.searchsorted(self._starts, start, side="right")) - 1
        last_file = int(np.searchsorted(self._starts, stop, side="left"))
        for at in range(first_file, last_file):
            first, after = int(self._starts[at]), int(self._starts[at + 1])
            yield self.files[at], slice(max(start, first) - first, min(stop, after) - first)

    def fingerprint(self, rows: slice) -> dict[str, Any]:
        """Which files hold `times[rows]`, and a digest of their names, sizes and times of change,
        by which an edited file is noticed."""
        paths = [path for path, _ in self.pieces(rows)]
        digest = hashlib.sha256()
        on_disk = [path.parent if caqra.is_archive(path.parent) else path for path in paths]
        for path in dict.fromkeys(on_disk):
            for line in sizes_and_times(path):
                digest.update(f"{line}\n".encode())
        files = [paths[0].name, paths[-1].name, len(paths)] if paths else []
        return {"first_last_and_count_of_files": files, "file_sizes_and_times": digest.hexdigest()}

    def _check_present(self, file: SourceFile, names: Sequence[str]) -> None:
        lost = [name for name in names if self.file_name(name) not in file.dimensions]
        if lost:
            listed = ", ".join(f"{name} (as {self.file_name(name)!r})" for name in lost)
            raise AqnetError(
                f"{file.path}: lacks {listed}; it holds {', '.join(sorted(file.dimensions))}; if "
                "it calls them otherwise, say so in data.sources[].names"
            )

    def _conversion(self, file: SourceFile, name: str) -> units.Conversion:
        self._check_present(file, (name,))
        inside = self.file_name(name)
        unit = self._given_units.get(name, file.unit(inside))
        return units.conversion(name, unit, f"{file.path}: variable {inside!r}")

    def _field(self, file: SourceFile, name: str, rows: slice | None) -> Array:
        factor, offset, unit = self._conversion(file, name)
        inside = self.file_name(name)
        where = f"{file.path}: variable {inside!r}"
        shape, steps = file.layout(inside).shape, self._steps[file.path]
        without_time = rows is None or self._without_time(file, inside)
        if not without_time and shape[0] != steps:
            raise AqnetError(f"{where} has {shape[0]} time steps; the file has {steps}")
        expected = self.lat.shape if without_time else (steps, *self.lat.shape)
        if shape != expected:
            raise AqnetError(f"{where} has shape {shape}, expected {expected}")
        values = missing_to_nan(file.read(inside, None if without_time else rows))
        if (factor, offset) != (1.0, 0.0):
            values = values * factor + offset
        if rows is not None and without_time:
            values = values[None]
        with np.errstate(over="ignore"):
            found: Array = values.astype(np.float32, copy=False)
        if np.isinf(found).any():
            raise AqnetError(f"{where} holds infinite values; mark them as missing in the file")
        if unit == units.CONCENTRATION:
            found, zeroed, lowest = units.without_noise(found)
            self.noise[name] += zeroed
            if lowest < 0:
                raise AqnetError(
                    f"{where} holds {lowest:.4g} ug/m3; a concentration below "
                    f"-{units.PACKING_NOISE} ug/m3 is no packing noise: mark it as missing"
                )
        return found


def missing_to_nan(values: Floats) -> Floats:
    """-999 as NaN."""
    missing = values == _MISSING
    return np.where(missing, np.nan, values) if missing.any() else values


def open_sources(data: Data, write: bool = True) -> SourceView:
    """The source files that a config names.

    Args:
        write: whether what archives hold may be kept beside the stores.

    Raises:
        AqnetError: the config names none or several, or see `SourceView`.
    """
    if len(data.sources) != 1:
        raise AqnetError(
            f"data.sources lists {len(data.sources)} sources; expected exactly one: sources are "
            "never mixed in one set of stores"
        )
    return SourceView(data.sources[0], data.units, Path(data.stores) / ".archives.json", write)
