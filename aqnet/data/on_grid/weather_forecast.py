"""Weather forecasts made elsewhere, from files, on the grid of the stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from aqnet.config import Config, Data
from aqnet.data.regridding.conservative import Regridder
from aqnet.data.regridding.resample import Resampler
from aqnet.data.regridding.winds import grid_angle, to_earth
from aqnet.data.sources import units
from aqnet.data.sources.forecast_files import ForecastFiles
from aqnet.data.stores.layout import Layout
from aqnet.data.stores.record import Hours
from aqnet.errors import AqnetError
from aqnet.grid import Floats, Grid, same_place, wrapped

Array = NDArray[np.float32]
Cut = tuple[slice, slice]
_MARGIN = 2.0  # cells of the files around the model's grid that are read


class WeatherForecast:
    """The `Weather` of the newest forecast in the files that had begun by the input time.

    Humidity is taken from temperature and dew point where the files hold no other.
    """

    def __init__(self, paths: Sequence[str], config: Config, layout: Layout) -> None:
        """`paths`: files or globs of NetCDF (or Zarr, GRIB) with base times and lead times.

        Raises:
            AqnetError: the files cannot be read, have no base time or none of `data.weather`, give
                another unit than the stores, or cover no cell of the domain.
        """
        data = config.data
        self.names, self._hours, self._layout = data.weather, data.weather_hours, layout
        besides = ("temp", "dewpoint") if "rh" in data.weather else ()
        turned = ("u", "v") if data.winds == "grid" and {"u", "v"} & set(data.weather) else ()
        wanted = tuple(dict.fromkeys((*data.weather, *besides, *turned)))
        self.files = files = ForecastFiles(paths, config, wanted, "--weather")
        if files.lead_times is None:
            raise AqnetError(
                f"--weather: {files.path} has no base time, which says when a forecast began; "
                "for the weather that came to be, prepare it and give --weather analysed"
            )
        for name in set(files.units) & set(layout.units):
            if files.units[name] != layout.units[name]:
                raise AqnetError(
                    f"--weather: {files.path}: {name} is in {files.units[name]!r}; the model was "
                    f"trained with {layout.units[name]!r}: convert the files"
                )
        self._angle = grid_angle(files.lat, files.lon) if turned else np.zeros(())
        self._cut, self._regrid, covered = _onto(files.lat, files.lon, data, layout.grid)
        self.coverage = float(covered[layout.grid.mask.numpy()].mean())
        if self.coverage == 0.0:
            raise AqnetError(f"--weather: {files.path}: covers no cell of the domain")

    def weather_at(self, base_hour: int, hour: int) -> Array | None:
        """Fields of `data.weather` at `hour` [len(data.weather), H, W] as known at `base_hour`; see
        `data.weather.Weather`."""
        base = self.files.newest(base_hour)
        if base is None or not self.files.held(base, hour - base):
            return None
        names = self.files.wanted
        fields = dict(zip(names, self.files.read(base, (hour - base,))[0], strict=True))
        if self._angle.any():
            fields["u"], fields["v"] = to_earth(fields["u"], fields["v"], self._angle)
        if "rh" in self.names and "rh" not in self.files.names:
            fields["rh"] = units.relative_humidity(fields["temp"], fields["dewpoint"])
        return self._regrid(np.stack([fields[name][self._cut] for name in self.names]))

    def report(self, times: Hours) -> str:
        """One line: which variables are there at how many of the hours that the forecasts from
        `times` ask for.

        Raises:
            AqnetError: none at all.
        """
        counts: Counter[str] = Counter()
        oldest = 0
        for time in times.tolist():
            base = self.files.newest(time)
            if base is not None:
                held = [self._held(base, time + after - base) for after in self._hours]
                counts.update(name for names in held for name in names)
                oldest = max(oldest, time - base) if any(held) else oldest
        if not counts:
            first, last, asked, until = np.array(
                [*self.files.times[[0, -1]], *times[[0, -1]]], "datetime64[h]"
            )
            raise AqnetError(
                f"--weather: {self.files.path} has forecasts from {first} to {last}, none with an "
                f"hour of data.weather_hours after the input times {asked} to {until}"
            )
        total = len(times) * len(self._hours)
        parts = [
            f"{', '.join(name for name in self.names if counts[name] == count)} at {count:,}"
            for count in sorted({counts[name] for name in self.names}, reverse=True)
        ]
        return (
            f"weather forecasts: {'; '.join(parts)} of {total:,} input times x hours, "
            f"{self.coverage:.0%} of the domain's cells; what is missing stays missing; forecasts "
            f"had begun up to {oldest} h before the input time"
        )

    def _held(self, base: int, lead: int) -> set[str]:
        """Which of `data.weather` the files give."""
        found = self.files.held(base, lead)
        if "rh" not in self.files.names and {"temp", "dewpoint"} <= found:
            found = found | {"rh"}
        return found & set(self.names)


def _onto(
    lat: Floats, lon: Floats, data: Data, ours: Grid
) -> tuple[Cut, Callable[[NDArray[np.float64]], Array], NDArray[np.bool_]]:
    """How fields on `lat`, `lon` come to the stores' grid: the part of them that is needed, what
    regrids it, and which cells it covers."""
    whole, everywhere = (slice(None), slice(None)), np.ones(ours.shape, bool)
    target = ours.lat.numpy(), ours.lon.numpy()
    if same_place(lat, lon, *target):
        return whole, _as_float32, everywhere
    if data.resample != "none" and data.shape is not None:
        resampler = Resampler(data.resample, lat, lon, data.shape)
        if same_place(resampler.lat, resampler.lon, *target):
            return whole, resampler.mean, everywhere
    cut = _near(lat, lon, *target)
    regridder = Regridder(lat[cut], lon[cut], *target)
    return cut, regridder, regridder.covered


def _as_float32(fields: NDArray[np.float64]) -> Array:  # a lambda cannot be sent to other ranks
    return fields.astype(np.float32)


def _near(lat: Floats, lon: Floats, target_lat: Floats, target_lon: Floats) -> Cut:
    """The rows and columns that hold the target grid, with a margin; all of them where none do."""
    steps = [np.abs(np.diff(lat, axis=axis)).max(initial=0) for axis in (0, 1)]
    steps += [np.abs(wrapped(np.diff(lon, axis=axis))).max(initial=0) for axis in (0, 1)]
    margin, middle = _MARGIN * max(steps), target_lon.flat[target_lon.size // 2]
    east = wrapped(target_lon - middle)
    inside = (lat >= target_lat.min() - margin) & (lat <= target_lat.max() + margin)
    away = wrapped(lon - middle)
    inside &= (away >= east.min() - margin) & (away <= east.max() + margin)
    if not inside.any():
        return slice(None), slice(None)
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
