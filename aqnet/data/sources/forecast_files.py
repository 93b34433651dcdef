"""Forecasts made elsewhere: this project's forecasts.zarr, CAMS NetCDF and files alike."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aqnet.config import Config
from aqnet.data.sources import limits, units
from aqnet.data.sources.files import SourceFile, open_file
from aqnet.data.sources.times import hour_text
from aqnet.errors import AqnetError
from aqnet.grid import same_place

# what global and regional CAMS files call the pollutants
CAMS_NAMES: Mapping[str, tuple[str, ...]] = {
    "pm25": ("pm2p5", "pm2p5_conc"),
    "pm10": ("pm10", "pm10_conc"),
    "so2": ("so2", "so2_conc"),
    "no2": ("no2", "no2_conc"),
    "co": ("co", "co_conc"),
    "o3": ("go3", "o3_conc"),
}
_LOWEST = -1000.0  # ug m-3: what a model forecasts below 0 is scored as it is, a code is not


class ForecastFiles:
    """Forecasts by input time and lead time; files without lead times are taken by valid time.

    Attributes:
        times: input times (valid times without lead times), hours since 1970 UTC, ascending.
        lead_times: hours, ascending; None where the files have none, as those of a reanalysis.
        names: what the files call each target that they hold.
        lat, lon: degrees, shape [H, W].
    """

    def __init__(self, path: str, config: Config) -> None:
        """`path`: a file or a store, or a glob of several of one grid and layout.

        Raises:
            AqnetError: nothing there, unreadable, no target, or unknown units or dimensions.
        """
        self.path, self._data = path, config.data
        files = sorted(Path(found) for found in glob.glob(path))  # noqa: PTH207
        if not files:
            raise AqnetError(f"--forecast-file: nothing matches {path!r}")
        # row of a file by (input time, lead time), or by (valid time, None)
        self._places: dict[tuple[int, int | None], tuple[Path, int]] = {}
        for number, file_path in enumerate(files):
            with open_file(file_path) as file:
                if number == 0:
                    self._describe(file)
                elif not same_place(file.cells.lat, file.cells.lon, self.lat, self.lon):
                    raise AqnetError(f"{file_path}: another grid than {files[0]}")
                self._add(file)
        bases, leads = zip(*self._places, strict=True)
        self.times = np.unique(bases)
        known = {lead for lead in leads if lead is not None}
        if known and None in leads:
            raise AqnetError(f"{path}: some of the files have lead times, others have none")
        self.lead_times = np.array(sorted(known)) if known else None

    def count(self, times: NDArray[np.int64], lead_times: Sequence[int]) -> str:
        """How many of `times`, at how many of `lead_times`, are there.

        Raises:
            AqnetError: none at all.
        """
        wanted = [self._key(time, lead) for time in times.tolist() for lead in lead_times]
        there = sum(key in self._places for key in wanted)
        if not there:
            first, last = self.times[[0, -1]].astype("datetime64[h]")
            held = "valid times" if self.lead_times is None else f"{self.lead_times} h"
            raise AqnetError(
                f"{self.path}: has none of the input times and lead times evaluated; it holds "
                f"{first} to {last}, {held}"
            )
        return f"{there} of {len(wanted)} input times x lead times"

    def read(self, time: int, lead_times: Sequence[int]) -> NDArray[np.float64]:
        """Targets [K, T, H, W] in aqnet's units, NaN where the files have none."""
        targets = self._data.targets
        found = np.full((len(lead_times), len(targets), *self.lat.shape), np.nan)
        for at, lead in enumerate(lead_times):
            path, row = self._places.get(self._key(time, lead), (None, 0))
            if path is not None:
                with open_file(path) as file:
                    for name in self.names:
                        found[at, targets.index(name)] = self._field(file, name, row)
        return found

    def _key(self, time: int, lead: int) -> tuple[int, int | None]:
        return (time + lead, None) if self.lead_times is None else (time, lead)

    def _add(self, file: SourceFile) -> None:
        times = file.times
        leads = [None] * len(times.valid)
        if times.base is not None:
            leads = (times.valid - times.base).tolist()
        starts = (times.valid if times.base is None else times.base).tolist()
        for row, key in enumerate(zip(starts, leads, strict=True)):
            if key in self._places:
                after = "" if key[1] is None else f" + {key[1]} h"
                raise AqnetError(
                    f"{file.path}: {np.datetime64(key[0], 'h')}{after} is in "
                    f"{self._places[key][0]} as well; give each time once"
                )
            self._places[key] = file.path, row
        for name in self.names:
            self._conversion(file, name)

    def _describe(self, file: SourceFile) -> None:
        self.lat, self.lon = file.cells.lat, file.cells.lon
        if min(self.lat.shape) < 2:
            raise AqnetError(f"{file.path}: a grid of {self.lat.shape}; at least 2 x 2 is needed")
        mapped = self._data.sources[0].names if self._data.sources else {}
        self.names: dict[str, str] = {}
        for name in self._data.targets:
            candidates = (name, mapped.get(name, name), *CAMS_NAMES.get(name, ()))
            inside = next((one for one in candidates if one in file.names), None)
            if inside is not None:
                self.names[name] = inside
        if not self.names:
            raise AqnetError(
                f"{file.path}: holds none of {', '.join(self._data.targets)}, by these names, "
                "those of data.sources or those of CAMS; it holds "
                f"{', '.join(sorted(file.names))}"
            )

    def _conversion(self, file: SourceFile, name: str) -> units.Conversion:
        inside = self.names[name]
        where = f"{file.path}: variable {inside!r}"
        if inside not in file.names:
            raise AqnetError(f"{where} is missing, which other files of {self.path} have")
        file.layout(inside, timed=True)
        found = units.conversion(name, file.unit(inside), where)
        if found.unit == units.MIXING_RATIO:
            raise units.no_density(where)
        return found

    def _field(self, file: SourceFile, name: str, row: int) -> NDArray[np.float64]:
        convert, inside = self._conversion(file, name), self.names[name]
        values = file.read(inside, slice(row, row + 1))[0]
        values, _ = limits.without_codes(values, self._data.missing_values)
        for wrong in limits.beyond(values, name, convert, _LOWEST):
            when = hour_text(file.times.valid[row])
            place = f"{when}, row {wrong.first[0]}, column {wrong.first[1]}"
            unit = file.unit(inside) or ""
            text = limits.described(wrong, name, convert, unit, place)
            raise AqnetError(f"{file.path}: variable {inside!r} {text}")
        return np.asarray(values, np.float64) * convert.factor + convert.offset
