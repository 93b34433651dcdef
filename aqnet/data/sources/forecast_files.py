"""Forecasts made elsewhere: this project's forecasts.zarr, CAMS NetCDF and files alike."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aqnet.config import Config
from aqnet.data.sources import units
from aqnet.data.sources.files import SECONDS, TIME_NAMES, SourceFile, open_file, whole_hours
from aqnet.data.sources.view import coordinates, missing_to_nan
from aqnet.errors import AqnetError

# what global and regional CAMS files call the pollutants
CAMS_NAMES: Mapping[str, tuple[str, ...]] = {
    "pm25": ("pm2p5", "pm2p5_conc"),
    "pm10": ("pm10", "pm10_conc"),
    "so2": ("so2", "so2_conc"),
    "no2": ("no2", "no2_conc"),
    "co": ("co", "co_conc"),
    "o3": ("go3", "o3_conc"),
}
_START_NAMES = ("forecast_reference_time", "time")
_LEAD_NAMES = ("lead_time", "forecast_period", "leadtime", "step")


class ForecastFiles:
    """Forecasts by input time and lead time; files without lead times are taken by valid time.

    Attributes:
        times: input times (valid times without lead times), hours since 1970 UTC, ascending.
        lead_times: hours; None where the files have none, as an analysis or a reanalysis.
        names: what the files call each target that they hold.
        lat, lon: degrees, shape [H, W].
    """

    def __init__(self, path: str, config: Config) -> None:
        """`path`: a file or a store, or a glob of several of one grid and layout.

        Raises:
            AqnetError: nothing there, unreadable, no target, or unknown units or dimensions.
        """
        self.path, self._targets = path, config.data.targets
        files = sorted(Path(found) for found in glob.glob(path))  # noqa: PTH207
        if not files:
            raise AqnetError(f"--forecast-file: nothing matches {path!r}")
        self._places: dict[int, tuple[Path, int]] = {}
        for number, file_path in enumerate(files):
            with open_file(file_path) as file:
                if number == 0:
                    self._describe(file, config)
                elif any(
                    not np.array_equal(*pair)
                    for pair in zip(coordinates(file), (self.lat, self.lon), strict=True)
                ):
                    raise AqnetError(f"{file_path}: another grid than {files[0]}")
                hours = file.times(self._start)
                for row, hour in enumerate(hours.tolist()):
                    if hour in self._places:
                        twice = f"{np.datetime64(hour, 'h')} is in {self._places[hour][0]} as well"
                        raise AqnetError(f"{file_path}: {twice}; give each time once")
                    self._places[hour] = file_path, row
        self.times = np.array(sorted(self._places))

    def count(self, times: NDArray[np.int64], lead_times: Sequence[int]) -> str:
        """How many of `times`, at how many of `lead_times`, are there.

        Raises:
            AqnetError: none at all.
        """
        if self.lead_times is None:
            there = np.isin(times[:, None] + np.array(lead_times), self.times)
        else:
            leads = np.isin(lead_times, self.lead_times)
            there = np.isin(times, self.times)[:, None] & leads
        if not there.any():
            first, last = self.times[[0, -1]].astype("datetime64[h]")
            leads_said = "valid times" if self.lead_times is None else f"{self.lead_times} h"
            raise AqnetError(
                f"{self.path}: has none of the input times and lead times evaluated; it holds "
                f"{first} to {last}, {leads_said}"
            )
        return f"{int(there.sum())} of {there.size} input times x lead times"

    def read(self, time: int, lead_times: Sequence[int]) -> NDArray[np.float64]:
        """Targets [K, T, H, W] in aqnet's units, NaN where the files have none."""
        found = np.full((len(lead_times), len(self._targets), *self.lat.shape), np.nan)
        if self.lead_times is None:
            wanted = [(at, time + lead, None) for at, lead in enumerate(lead_times)]
        else:
            known = self.lead_times.tolist()
            wanted = [
                (at, time, known.index(lead)) for at, lead in enumerate(lead_times) if lead in known
            ]
        for at, hour, lead in wanted:
            if hour in self._places:
                path, row = self._places[hour]
                with open_file(path) as file:
                    for name in self.names:
                        found[at, self._targets.index(name)] = self._field(file, name, row, lead)
        return found

    def _describe(self, file: SourceFile, config: Config) -> None:
        self.lat, self.lon = coordinates(file)
        if min(self.lat.shape) < 2:
            raise AqnetError(f"{file.path}: a grid of {self.lat.shape}; at least 2 x 2 is needed")
        mapped = config.data.sources[0].names if config.data.sources else {}
        self.names: dict[str, str] = {}
        for name in self._targets:
            candidates = (
                name,
                *([mapped[name]] if name in mapped else []),
                *CAMS_NAMES.get(name, ()),
            )
            inside = next((one for one in candidates if one in file.dimensions), None)
            if inside is not None:
                self.names[name] = inside
        if not self.names:
            raise AqnetError(
                f"{file.path}: holds none of {', '.join(self._targets)}, by these names, those of "
                f"data.sources or those of CAMS; it holds {', '.join(sorted(file.dimensions))}"
            )
        dims = file.dimensions[next(iter(self.names.values()))]
        lead = next((name for name in _LEAD_NAMES if name in dims), None)
        self.lead_times = None if lead is None else _lead_hours(file, lead)
        starts = TIME_NAMES if lead is None else _START_NAMES
        for self._start in starts:
            # one forecast a file has a scalar start
            if self._start in dims or (lead and file.dimensions.get(self._start) == ()):
                break
        else:
            raise AqnetError(
                f"{file.path}: dimensions {dims}; expected one of {', '.join(starts)}, two of the "
                f"grid, and one of {', '.join(_LEAD_NAMES)} where there are lead times"
            )
        for name in self.names:
            self._conversion(file, name)

    def _conversion(self, file: SourceFile, name: str) -> units.Conversion:
        inside = self.names[name]
        where = f"{file.path}: variable {inside!r}"
        if inside not in file.dimensions:
            raise AqnetError(f"{where} is missing, which other files of {self.path} have")
        dims, shape = file.dimensions[inside], file.layout(inside).shape
        known = (self._start, *_LEAD_NAMES, *dims[-2:])
        if shape[-2:] != self.lat.shape or any(
            size > 1 and dim not in known for dim, size in zip(dims, shape, strict=True)
        ):
            raise AqnetError(
                f"{where} has dimensions {dims} of sizes {shape}; expected a grid of "
                f"{self.lat.shape} as the last two, and no levels: cut one out"
            )
        return units.conversion(name, file.unit(inside), where)

    def _field(
        self, file: SourceFile, name: str, row: int, lead: int | None
    ) -> NDArray[np.float64]:
        factor, offset, _ = self._conversion(file, name)
        place = {self._start: row, **dict.fromkeys(_LEAD_NAMES, lead or 0)}
        at = [place.get(dim, 0) for dim in file.dimensions[self.names[name]][:-2]]
        values = missing_to_nan(file.read(self.names[name], (*at, slice(None), slice(None))))
        return np.asarray(values, np.float64) * factor + offset


def _lead_hours(file: SourceFile, name: str) -> NDArray[np.int64]:
    unit = (file.unit(name) or "").strip().removesuffix("s")
    if unit not in SECONDS:
        raise AqnetError(f"{file.path}: {name!r} has units {file.unit(name)!r}; expected hours")
    values = np.atleast_1d(file.read(name)).astype(np.float64)
    return whole_hours(f"{file.path}: {name!r}", values * SECONDS[unit])
