"""Forecasts as Zarr with CF metadata, which xarray.open_zarr reads: one array per target."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from torch import Tensor
from zarr.codecs import ZstdCodec

from aqnet.batch import Batch, Forecast, Statistics
from aqnet.config import Config
from aqnet.errors import AqnetError
from aqnet.evaluation.interpolation import bilinear
from aqnet.evaluation.metrics import EVENT_THRESHOLDS
from aqnet.evaluation.odds import probabilities
from aqnet.files import partial_of, replace_folder, writing
from aqnet.grid import Grid
from aqnet.physical import clipped, physical_fields

# names of the CF standard name table
STANDARD_NAMES: Mapping[str, str] = {
    "pm25": "mass_concentration_of_pm2p5_ambient_aerosol_particles_in_air",
    "pm10": "mass_concentration_of_pm10_ambient_aerosol_particles_in_air",
    "so2": "mass_concentration_of_sulfur_dioxide_in_air",
    "no2": "mass_concentration_of_nitrogen_dioxide_in_air",
    "co": "mass_concentration_of_carbon_monoxide_in_air",
    "o3": "mass_concentration_of_ozone_in_air",
}


def create(
    path: Path,
    times: NDArray[np.int64],
    config: Config,
    grid: Grid,
    units: dict[str, str],
    weather: str | None = None,
) -> None:
    """Begin forecasts of `times` (hours since 1970 UTC) beside `path`, without values yet; an
    attribute says which `weather` to come they were given.

    Arrays are float32 [time, lead_time, y, x] with one chunk per time, NaN outside the domain and
    where nothing was written. With `model.quantiles` NAME_quantile has them [time, lead_time,
    quantile, y, x], and NAME_exceedance the probability that the event threshold is reached.
    """
    with writing(path):
        _create(partial_of(path), times, config, grid, units, weather)


def _create(
    partial: Path,
    times: NDArray[np.int64],
    config: Config,
    grid: Grid,
    units: dict[str, str],
    weather: str | None,
) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    group = zarr.open_group(partial, mode="w", zarr_format=3)
    about: dict[str, Any] = {"Conventions": "CF-1.11", "title": "aqnet forecasts of air pollutants"}
    if weather is not None:
        about["weather_to_come"] = weather
    group.attrs.update(about)
    leads = np.array(config.data.lead_times, dtype=np.int64)
    since = {"units": "hours since 1970-01-01 00:00:00", "calendar": "proleptic_gregorian"}
    _put(group, "time", times, ("time",), standard_name="forecast_reference_time", **since)
    _put(group, "lead_time", leads, ("lead_time",), standard_name="forecast_period", units="hours")
    cells, located = _coordinates(group, grid)
    levels = np.array(config.model.quantiles)
    if len(levels):
        about = {"units": "1", "long_name": "probability that the truth lies below"}
        _put(group, "quantile", levels, ("quantile",), **about)

    def put(name: str, between: tuple[int, ...], **attributes: Any) -> None:
        array = group.create_array(
            name,
            shape=(len(times), len(leads), *between, *grid.shape),
            chunks=(1, len(leads), *between, *grid.shape),
            dtype="float32",
            fill_value=np.nan,
            compressors=[ZstdCodec(level=3)],
            dimension_names=("time", "lead_time", *("quantile",) * len(between), *cells),
        )
        array.attrs.update({**attributes, **located})

    for name in config.data.targets:
        standard = {"standard_name": STANDARD_NAMES[name]} if name in STANDARD_NAMES else {}
        put(name, (), units=units[name], **standard)
        if len(levels):
            put(f"{name}_quantile", (len(levels),), units=units[name], **standard)
            if name in EVENT_THRESHOLDS:
                least = f"{EVENT_THRESHOLDS[name]:g} {units[name]}"
                put(
                    f"{name}_exceedance",
                    (),
                    units="1",
                    long_name=f"probability that {name} is at least {least}",
                    threshold=EVENT_THRESHOLDS[name],
                )
    with warnings.catch_warnings():  # Zarr v3 has no such thing yet, but xarray asks for it
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(partial)


class Writer:
    """Writes this rank's forecasts into what `create` began; ranks never share a chunk."""

    def __init__(
        self, path: Path, times: NDArray[np.int64], config: Config, grid: Grid, numbers: Statistics
    ) -> None:
        self._path = path
        group = zarr.open_group(partial_of(path), mode="r+")
        self._group, self._targets = group, config.data.targets
        self._levels = config.model.quantiles
        self._rows = {int(time): row for row, time in enumerate(times)}
        self._numbers, self._mask = numbers, grid.mask

    def write(self, batch: Batch, forecast: Forecast) -> int:
        """Write the items of a batch that are wanted; returns how many of their values were below 0
        and are 0."""
        below = 0
        for item, time in enumerate(batch.time.tolist()):
            if time in self._rows:
                mean = self._physical(forecast.mean[item])
                below += clipped(mean.reshape(*mean.shape[:-2], -1), self._targets)
                with writing(self._path):
                    self._write(self._rows[time], "", mean)
                    if forecast.quantiles is not None:
                        quantiles = self._physical(forecast.quantiles[item])
                        self._write_odds(self._rows[time], quantiles)
        return below

    def _write_odds(self, row: int, quantiles: NDArray[np.float64]) -> None:
        self._write(row, "_quantile", quantiles.swapaxes(0, 1))
        exceedance = probabilities.exceedances(quantiles, self._levels, self._targets)
        self._write(row, "_exceedance", exceedance)

    def _write(self, row: int, ending: str, values: NDArray[np.float64]) -> None:
        """Write values [K, ..., T, H, W] of a time to the arrays that there are."""
        for target, name in enumerate(self._targets):
            if name + ending in self._group:
                array = _array(self._group, name + ending)
                array[row] = values[..., target, :, :].astype(np.float32)

    def _physical(self, values: Tensor) -> NDArray[np.float64]:
        """Normalised values [..., T, H, W] in their units, NaN outside the domain."""
        return np.where(self._mask, physical_fields(values, self._targets, self._numbers), np.nan)


class ExternalForecast:
    """A forecast made elsewhere, on the cells of the domain.

    Attributes:
        name: as in the rows of metrics.csv.
        coverage: share of the domain's cells that lie on its grid.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[int, Sequence[int]], NDArray[np.float64]],
        grid: tuple[NDArray[np.float64], NDArray[np.float64]],
        config: Config,
        ours: Grid,
    ) -> None:
        """`read`: targets [K, T, H, W] of an input time and lead times on its `grid`, whose
        latitudes and longitudes [H, W] are interpolated to those of `ours`."""
        self.name, self._read, self._lead_times = name, read, config.data.lead_times
        points = (part[ours.mask].numpy() for part in (ours.lat, ours.lon))
        self._regrid = bilinear(*grid, *points)
        self.coverage = float(self._regrid.inside.mean())

    def forecast(self, time: int) -> NDArray[np.float64]:
        """Physical values [K, T, N] from an input time, NaN where there is none."""
        values = self._read(time, self._lead_times)
        return self._regrid(values.reshape(*values.shape[:2], -1))


def commit(path: Path, target: Path | None = None) -> None:
    """Give the whole store its name `target`, else `path`, in place of an older one, once every
    rank has written."""
    with writing(path):
        replace_folder(partial_of(path), target or path)


def discard(path: Path) -> None:
    """Remove what `create` began and nobody committed."""
    shutil.rmtree(partial_of(path), ignore_errors=True)


class OffTheHour(AqnetError):
    """A time that is no whole hour."""


def hour_of(text: str) -> int:
    """Hours since 1970 UTC of an ISO 8601 time, which is UTC where it names no zone.

    Raises:
        AqnetError: the text is no such time, or no whole hour.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise AqnetError(f"{text!r} is no time such as 2018-06-01T12:00 (UTC)") from None
    hour, rest = divmod(time.replace(tzinfo=time.tzinfo or UTC).timestamp(), 3600)
    if rest:
        raise OffTheHour(f"{text!r} is no whole hour")
    return int(hour)


def hours_of(text: str) -> tuple[int, int]:
    """First and last hour since 1970 UTC of `FIRST/LAST`, both included; of one time, itself twice.

    Raises:
        AqnetError: it names no such hours, or ends before it begins.
    """
    first, slash, last = text.partition("/")
    begin, end = hour_of(first), hour_of(last if slash else first)
    if end < begin:
        raise AqnetError(f"{text!r} ends before it begins")
    return begin, end


def missing(batch: Batch, config: Config, grid: Grid) -> dict[str, float]:
    """Share of the domain's cells in which an input has no value, where any, in the item that lacks
    most."""
    lost = batch.fields[:, :, grid.mask].isnan().double().mean(2).amax(0)
    shares = zip(config.input_variables, lost.tolist(), strict=True)
    return {name: share for name, share in shares if share > 0}


def _coordinates(group: zarr.Group, grid: Grid) -> tuple[tuple[str, str], dict[str, str]]:
    """Write lat and lon; returns the names of the two dimensions, and what fields say of them."""
    lat, lon = grid.lat.numpy(), grid.lon.numpy()
    north = {"standard_name": "latitude", "units": "degrees_north"}
    east = {"standard_name": "longitude", "units": "degrees_east"}
    if grid.on_degrees:
        _put(group, "lat", lat[:, 0], ("lat",), **north)
        _put(group, "lon", lon[0], ("lon",), **east)
        return ("lat", "lon"), {}
    _put(group, "lat", lat, ("y", "x"), **north)
    _put(group, "lon", lon, ("y", "x"), **east)
    return ("y", "x"), {"coordinates": "lat lon"}


def _put(
    group: zarr.Group, name: str, values: NDArray[Any], dims: tuple[str, ...], **attributes: str
) -> None:
    group.create_array(name, data=values, dimension_names=dims, attributes=dict(attributes))


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group[name]
    assert isinstance(array, zarr.Array)
    return array
