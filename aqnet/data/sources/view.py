"""Source files (CAQRA, CF NetCDF, AQ_NET2 yearly Zarr and others) as one view of hourly fields in
aqnet's units."""

from __future__ import annotations

import glob
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from aqnet.config import Data, Source
from aqnet.config.periods import hour_text
from aqnet.data.regridding.winds import grid_angle, to_earth
from aqnet.data.sources import limits, units
from aqnet.data.sources.files import caqra
from aqnet.data.sources.files.formats import chunks_without_values
from aqnet.data.sources.files.one_grid import OneGrid
from aqnet.data.sources.files.source_file import SourceFile, sizes_and_times
from aqnet.data.sources.files.times import check_times
from aqnet.errors import AqnetError

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Rules:
    """What a config says of all source files: `data.units`, `data.missing_values`,
    `data.utc_offset` [h] and `data.winds`."""

    units: Mapping[str, str] = field(default_factory=dict)
    missing_values: tuple[float, ...] = ()
    utc_offset: int = 0
    winds: Literal["earth", "grid"] = "earth"

    @classmethod
    def of(cls, data: Data) -> Rules:
        """The rules in a config."""
        return cls(data.units, data.missing_values, data.utc_offset, data.winds)


class SourceView:
    """All files of one entry of `data.sources`, in time order.

    Attributes:
        files: paths, in time order.
        times: hours since 1970-01-01 00:00 UTC, int64, shape [N], strictly ascending.
        lat, lon: degrees, float64, shape [H, W].
        noise: per variable, how many values between -0.01 and 0 ug/m3 became 0 so far.
    """

    def __init__(
        self,
        source: Source,
        rules: Rules | None = None,
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
        self._names, self._rules = source.names, rules or Rules()
        self._path = source.path
        # Path.glob takes no absolute pattern
        paths = sorted(Path(name) for name in glob.glob(source.path, recursive=True))  # noqa: PTH207
        if not paths:
            raise AqnetError(f"data.sources: no file matches {source.path!r}")
        if len({path.is_dir() for path in paths}) > 1:
            raise AqnetError(f"data.sources: {source.path!r} matches both NetCDF files and stores")
        self._files = OneGrid()
        self._units: dict[str, str] = {}  # of variables, as the first file gives them
        self._printed: set[str] = set()
        found = []
        for path in caqra.expanded(paths, kept, write):
            hour = caqra.hour_of(path)
            if hour is not None:
                found.append((np.array([hour]), path))
                continue
            with self._files.open(path) as file:
                check_times(file)
                found.append((file.times.valid, path))
        found.sort(key=lambda item: int(item[0][0]))
        self.files = tuple(path for _, path in found)
        self._starts = np.cumsum([0, *(len(times) for times, _ in found)])
        self.times = np.concatenate([times for times, _ in found]) - self._rules.utc_offset
        self._check_overlap(found)
        with self._files.open(self.files[0]) as file:
            self.names = file.names
        self.lat, self.lon = self._files.lat, self._files.lon
        self._angle = grid_angle(self.lat, self.lon) if self._rules.winds == "grid" else None
        self.noise: Counter[str] = Counter()

    def _check_overlap(self, found: list[tuple[NDArray[np.int64], Path]]) -> None:
        for (before, first), (after, second) in itertools.pairwise(found):
            if after[0] > before[-1]:
                continue
            held = []
            for path in (first, second):
                with self._files.open(path) as file:
                    held.append({name for name in file.names if len(file.dims(name)) > 2})
            if all(held) and not held[0] & held[1]:
                one, other = (", ".join(sorted(names)) for names in held)
                raise AqnetError(
                    f"{self._path}: these files hold one variable each ({first.name}: {one}; "
                    f"{second.name}: {other}); list them as entries of data.sources, each with a "
                    "path that matches its own files, or merge them"
                )
            raise AqnetError(
                f"{second}: times are duplicated or overlap: it starts at "
                f"{hour_text(after[0])}, but {first} ends at {hour_text(before[-1])}"
            )

    def file_name(self, name: str) -> str:
        """What the files call the variable `name`."""
        return self._names.get(name, name)

    def holds(self, name: str) -> bool:
        """Whether the first file has a variable."""
        return self.file_name(name) in self.names

    def check_variables(self, names: Sequence[str], rows: slice) -> None:
        """Refuse files of `rows` that lack one of `names`, spell units aqnet cannot read or have
        dimensions it cannot use; of files that hold one hour each, only the first is opened.

        Raises:
            AqnetError: names the file, the variable and what to do.
        """
        for path, _ in self.pieces(rows):
            with self._files.open(path) as file:
                self._check_present(file, names)
                for name in names:
                    inside = self.file_name(name)
                    self._conversion(file, name)
                    _, single = file.layout(inside, timed=True)
                    for dim in set(single) - {"time", "valid_time"}:
                        self._print_once(f"{inside!r}: its only {dim!r} is taken")
                    if note := chunks_without_values(path, inside):
                        self._print_once(f"{path.name}: {inside!r}: {note}")
            if caqra.hour_of(path) is not None:
                return

    def _print_once(self, text: str) -> None:
        """Print a line, once."""
        if text not in self._printed:
            self._printed.add(text)
            print(f"{self._path}: {text}", flush=True)

    def unit(self, name: str) -> str:
        """The unit in which `read` gives a variable: aqnet's own, that of mixing ratios, or of a
        variable that aqnet does not know, the file's.

        Raises:
            AqnetError: the first file lacks it, or its unit is unknown.
        """
        if name not in self._units:
            with self._files.open(self.files[0]) as file:
                self._conversion(file, name)
        return self._units[name]

    def read(self, names: Sequence[str], rows: slice) -> Array:
        """Fields of `names` at `times[rows]`, in the unit that `unit` gives, NaN where missing,
        winds eastward and northward.

        Returns:
            float32, shape [rows, len(names), H, W].
        Raises:
            AqnetError: a variable is missing or unreadable, has dimensions or units that cannot be
                used, or values that cannot be.
        """
        start, stop, _ = rows.indices(len(self.times))
        block = np.empty((stop - start, len(names), *self.lat.shape), np.float32)
        done = 0
        for path, piece in self.pieces(rows):
            size = piece.stop - piece.start
            with self._files.open(path) as file:
                for channel, name in enumerate(names):
                    block[done : done + size, channel] = self._field(file, name, piece)
            done += size
        if self._angle is not None and "u" in names:
            u, v = names.index("u"), names.index("v")
            block[:, u], block[:, v] = to_earth(block[:, u], block[:, v], self._angle)
        return block

    def static(self, name: str) -> Array:
        """A static field in aqnet's unit, NaN where missing, float32, shape [H, W].

        Raises:
            AqnetError: the first file lacks it, it depends on time, or its unit is unknown.
        """
        with self._files.open(self.files[0]) as file:
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
        lost = [name for name in names if self.file_name(name) not in file.names]
        if lost:
            listed = ", ".join(f"{name} (as {self.file_name(name)!r})" for name in lost)
            raise AqnetError(
                f"{file.path}: lacks {listed}; it holds {', '.join(sorted(file.names))}; if "
                "it calls them otherwise, say so in data.sources[].names"
            )

    def _conversion(self, file: SourceFile, name: str) -> units.Conversion:
        self._check_present(file, (name,))
        inside = self.file_name(name)
        where = f"{file.path}: variable {inside!r}"
        unit = self._rules.units.get(name, file.unit(inside))
        found = units.conversion(name, unit, where)
        if self._units.setdefault(name, found.unit) != found.unit:
            raise AqnetError(
                f"{where} has units {unit!r}, where {self.files[0]} has {self._units[name]!r}; "
                "convert the file"
            )
        return found

    def _field(self, file: SourceFile, name: str, rows: slice | None) -> Array:
        convert, inside = self._conversion(file, name), self.file_name(name)
        values, _ = limits.without_codes(file.read(inside, rows), self._rules.missing_values)
        unit = self._rules.units.get(name, file.unit(inside))
        hours = None if rows is None else file.times.valid[rows]
        limits.refuse(values, name, convert, f"{file.path}: variable {inside!r}", unit, hours)
        if (convert.factor, convert.offset) != (1.0, 0.0):
            values = values * convert.factor + convert.offset
        found: Array = values.astype(np.float32, copy=False)
        if convert.unit == units.CONCENTRATION:
            found, zeroed = units.without_noise(found)
            self.noise[name] += zeroed
        return found
