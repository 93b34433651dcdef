"""Forecasts made elsewhere, of air or weather: this project's forecasts.zarr, CAMS and others."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aqnet.config import Config
from aqnet.data.sources import limits, units
from aqnet.data.sources.files.one_grid import OneGrid
from aqnet.data.sources.files.source_file import SourceFile
from aqnet.errors import AqnetError

# what global and regional CAMS files call the pollutants, and ECMWF's files the weather: by their
# NetCDF names, or GRIB's short names
KNOWN_NAMES: Mapping[str, tuple[str, ...]] = {
    "pm25": ("pm2p5", "pm2p5_conc"),
    "pm10": ("pm10", "pm10_conc"),
    "so2": ("so2", "so2_conc"),
    "no2": ("no2", "no2_conc"),
    "co": ("co", "co_conc"),
    "o3": ("go3", "o3_conc"),
    "u": ("u10", "10u"),
    "v": ("v10", "10v"),
    "temp": ("t2m", "2t"),
    "rh": ("r2", "2r"),
    "psfc": ("sp",),
    "dewpoint": ("d2m", "2d"),
}
_LOWEST = -1000.0  # ug m-3: what a model forecasts below 0 is scored as it is, a code is not


class ForecastFiles:
    """Forecasts by input time and lead time; files without lead times are taken by valid time.

    Attributes:
        times: input times (valid times without lead times), hours since 1970 UTC, ascending.
        lead_times: hours, ascending; None where the files have none, as those of a reanalysis.
        wanted: the variables that are read; names: what the files call each that they hold; units:
            in which each is given.
        lat, lon: degrees, shape [H, W].
    """

    def __init__(
        self,
        path: str | Sequence[str],
        config: Config,
        wanted: Sequence[str] | None = None,
        option: str = "--forecast-file",
    ) -> None:
        """`path`: files or stores, or globs of them, of one grid; they may hold different variables
        or times.

        Args:
            wanted: variables, by default the targets.
            option: that named the files, for errors.
        Raises:
            AqnetError: nothing there, unreadable, no such variable, unknown units or dimensions, or
                a time twice.
        """
        patterns = [path] if isinstance(path, str) else path
        self.path, self._data = ", ".join(patterns), config.data
        self.wanted = tuple(config.data.targets if wanted is None else wanted)
        files: set[Path] = set()
        for pattern in patterns:
            found = {Path(name) for name in glob.glob(pattern)}  # noqa: PTH207
            if not found:
                raise AqnetError(f"{option}: nothing matches {pattern!r}")
            files |= found
        self.names: dict[str, str] = {}
        self.units: dict[str, str] = {}
        self._held: dict[Path, dict[str, str]] = {}  # what each file calls what it holds
        self._files = OneGrid()
        # rows of files by (input time, lead time), or by (valid time, None)
        self._places: dict[tuple[int, int | None], list[tuple[Path, int]]] = {}
        for file_path in sorted(files):
            with self._files.open(file_path) as file:
                self._add(file)
        self.lat, self.lon = self._files.lat, self._files.lon
        if min(self.lat.shape) < 2:
            raise AqnetError(f"{self.path}: a grid of {self.lat.shape}; at least 2 x 2 is needed")
        bases, leads = zip(*self._places, strict=True)
        self.times = np.unique(bases)
        known = {lead for lead in leads if lead is not None}
        if known and None in leads:
            raise AqnetError(f"{self.path}: some of the files have lead times, others have none")
        self.lead_times = np.array(sorted(known)) if known else None

    def newest(self, time: int) -> int | None:
        """The last input time not after `time`, None where all are later."""
        row = int(np.searchsorted(self.times, time, side="right")) - 1
        return int(self.times[row]) if row >= 0 else None

    def held(self, time: int, lead: int) -> set[str]:
        """The variables that the files hold for an input time and lead time."""
        places = self._places.get(self._key(time, lead), [])
        return {name for path, _ in places for name in self._held[path]}

    def count(self, times: NDArray[np.int64], lead_times: Sequence[int]) -> str:
        """A line that says how many of `times` x `lead_times` the files hold.

        Raises:
            AqnetError: none at all.
        """
        wanted = [self._key(time, lead) for time in times.tolist() for lead in lead_times]
        found = sum(key in self._places for key in wanted)
        if not found:
            first, last = self.times[[0, -1]].astype("datetime64[h]")
            held = "valid times" if self.lead_times is None else f"{self.lead_times} h"
            raise AqnetError(
                f"{self.path}: has none of the input times and lead times evaluated; it holds "
                f"{first} to {last}, {held}"
            )
        return f"{found} of {len(wanted)} input times x lead times"

    def read(self, time: int, lead_times: Sequence[int]) -> NDArray[np.float64]:
        """Fields [K, len(wanted), H, W] in aqnet's units, NaN where the files have none."""
        found = np.full((len(lead_times), len(self.wanted), *self.lat.shape), np.nan)
        for at, lead in enumerate(lead_times):
            for path, row in self._places.get(self._key(time, lead), []):
                with self._files.open(path) as file:
                    for name in self._held[path]:
                        found[at, self.wanted.index(name)] = self._field(file, name, row)
        return found

    def _key(self, time: int, lead: int) -> tuple[int, int | None]:
        return (time + lead, None) if self.lead_times is None else (time, lead)

    def _add(self, file: SourceFile) -> None:
        times, held = file.times, self._names_in(file)
        self._held[file.path] = held
        self.names = {**held, **self.names}
        leads = [None] * len(times.valid)
        if times.base is not None:
            leads = (times.valid - times.base).tolist()
        starts = (times.valid if times.base is None else times.base).tolist()
        for row, key in enumerate(zip(starts, leads, strict=True)):
            there = self._places.setdefault(key, [])
            for path, _ in there:
                if held.keys() & self._held[path].keys():
                    after = "" if key[1] is None else f" + {key[1]} h"
                    raise AqnetError(
                        f"{file.path}: {np.datetime64(key[0], 'h')}{after} is in {path} as well; "
                        "give each time once"
                    )
            there.append((file.path, row))
        for name in held:
            self._conversion(file, name)

    def _names_in(self, file: SourceFile) -> dict[str, str]:
        """What a file calls those of the wanted variables that it holds."""
        found: dict[str, str] = {}
        for name in self.wanted:
            mapped = [source.names.get(name, name) for source in self._data.sources]
            candidates = (name, *mapped, *KNOWN_NAMES.get(name, ()))
            inside = next((one for one in candidates if one in file.names), None)
            if inside is not None:
                found[name] = inside
        if not found:
            raise AqnetError(
                f"{file.path}: holds none of {', '.join(self.wanted)}, by these names, "
                "those of data.sources or those of CAMS; it holds "
                f"{', '.join(sorted(file.names))}"
            )
        return found

    def _conversion(self, file: SourceFile, name: str) -> units.Conversion:
        inside = self._held[file.path][name]
        where = f"{file.path}: variable {inside!r}"
        file.layout(inside, timed=True)
        found = units.conversion(name, self._unit(file, name), where)
        if found.unit == units.MIXING_RATIO:
            raise units.no_density(where)
        if self.units.setdefault(name, found.unit) != found.unit:
            raise AqnetError(
                f"{where} is in {found.unit!r}, in other files in {self.units[name]!r}"
            )
        return found

    def _unit(self, file: SourceFile, name: str) -> str | None:
        """The file's own unit; that of `data.units`, which is said of the sources, only where the
        file has none that can be read, as other systems give other units."""
        own, ours = file.unit(self._held[file.path][name]), self._data.units.get(name)
        return own if ours is None or units.readable(name, own) else ours

    def _field(self, file: SourceFile, name: str, row: int) -> NDArray[np.float64]:
        convert, inside = self._conversion(file, name), self._held[file.path][name]
        rows = slice(row, row + 1)
        values, _ = limits.without_codes(file.read(inside, rows), self._data.missing_values)
        origin, hours = f"{file.path}: variable {inside!r}", file.times.valid[rows]
        limits.refuse(values, name, convert, origin, self._unit(file, name), hours, _LOWEST)
        return np.asarray(values[0], np.float64) * convert.factor + convert.offset
