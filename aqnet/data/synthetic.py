"""The embedded world: simulated weather and air quality in the AQ_NET2 yearly layout.

Invented, not measured: made so that wind and terrain matter to the forecast. Per hour:

    psi    = sum_i a_i exp(-((lon - lon_i(t))^2 / 128 + (lat - lat_i(t))^2 / 72))   lows > 0
    u, v   = U + d psi / dy, -d psi / dx
    wind  <- (1 - b) (wind - c (wind . n) n)      n up-slope direction, b height drag, c blocking
    q*(x)  = q(x - wind dt)                      semi-Lagrangian, bilinear, dt = 1 h
    q     <- q* + k lap(q*) + E(t) + (deposition + washout rain) (background - q)
    NO2 + O3 titration, O3 made by the sun, PM2.5 <- PM2.5 + s (SO2 + NO2) humidity

E follows population, less by day (a deeper mixed layer) and in summer. Blocking removes part of
the wind that climbs or descends a slope, so that what is left runs along ridges (channelling).
Every year starts afresh with ten days of spin-up: fields are not continuous at New Year.
Units: ug/m3, m/s, K, Pa, %.
"""

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from aqnet.errors import AqnetError, run

Array = NDArray[np.float64]
UNITS = {
    "u": "m/s", "v": "m/s", "temp": "K", "rh": "%", "psfc": "Pa",
    "pm25": "ug/m3", "pm10": "ug/m3", "so2": "ug/m3", "no2": "ug/m3", "co": "ug/m3", "o3": "ug/m3",
}  # fmt: skip
TRACERS = ("pm25", "pm10", "so2", "no2", "co", "o3")
BACKGROUND = np.array([8.0, 15.0, 2.0, 3.0, 120.0, 60.0])
EMISSION = np.array([5.0, 7.0, 2.0, 3.5, 60.0, 0.0])
LOSS = np.array([0.010, 0.014, 0.02, 0.06, 0.008, 0.02])  # 1/h, deposition
WASHOUT = np.array([0.08, 0.10, 0.05, 0.02, 0.0, 0.0])  # 1/h in full rain
CITIES = (
    (116.4, 39.9, 1.0), (121.5, 31.2, 1.0), (113.3, 23.1, 0.9), (104.1, 30.7, 0.9),
    (106.5, 29.5, 0.7), (108.9, 34.3, 0.7), (114.3, 30.6, 0.8), (113.6, 34.8, 0.9),
    (123.4, 41.8, 0.6), (126.6, 45.8, 0.5), (87.6, 43.8, 0.4), (103.8, 36.1, 0.4),
)  # fmt: skip


class World:
    """The grid and its static fields: elevation m, population people per cell, mask bool."""

    def __init__(self, height: int, width: int) -> None:
        self.lat = np.linspace(18.0, 54.0, height)
        self.lon = np.linspace(73.0, 135.0, width)
        self.lon2d, self.lat2d = np.meshgrid(self.lon, self.lat)
        self.elevation = self._elevation()
        self.population = self._population()
        self.mask = ((self.lon2d - 104) / 30.5) ** 2 + ((self.lat2d - 36) / 17.5) ** 2 < 1
        self.dy = 111.2e3 * (self.lat[1] - self.lat[0])
        self.dx = 111.2e3 * (self.lon[1] - self.lon[0]) * np.cos(np.radians(self.lat2d))

    def _bump(self, lon: float, lat: float, wide: float, high: float) -> Array:
        return np.exp(-(((self.lon2d - lon) / wide) ** 2) - ((self.lat2d - lat) / high) ** 2)

    def _elevation(self) -> Array:
        height = 4600 * np.exp(-(((self.lon2d - 90) / 11) ** 4) - ((self.lat2d - 33) / 4.5) ** 4)
        height += 1800 * self._bump(112.5, 38, 1.8, 6) + 1700 * self._bump(108, 33.4, 6, 1.3)
        height += 2500 * self._bump(86, 43, 9, 1.5) + 1900 * self._bump(103, 25, 4, 3)
        height += 1300 * self._bump(117, 26.5, 2, 4) + 1200 * self._bump(121, 48, 2, 5)
        return np.asarray(height + 100)

    def _population(self) -> Array:
        people = np.full_like(self.lat2d, 2e3)
        for lon, lat, size in CITIES:
            people += 4e6 * size * self._bump(lon, lat, 1.5, 1.3)
        return people


class _Weather:
    """Highs and lows that drift east; a new one enters where one leaves."""

    def __init__(self, world: World, rng: np.random.Generator, terrain: bool) -> None:
        self.world, self.rng, count = world, rng, 10
        self.lon = rng.uniform(60, 148, count)
        self.lat = rng.uniform(20, 52, count)
        self.speed = rng.uniform(0.25, 0.5, count)
        self.strength = rng.choice([-1.0, 1.0], count) * rng.uniform(3e6, 7e6, count)
        grad_y, grad_x = np.gradient(world.elevation)
        grad_y, grad_x = grad_y / world.dy, grad_x / world.dx
        steep = np.hypot(grad_x, grad_y) + 1e-9
        self.nx, self.ny = grad_x / steep, grad_y / steep
        self.block = (0.9 * (1 - np.exp(-steep / 0.002))) if terrain else np.zeros_like(steep)
        self.drag = 0.3 * np.clip(world.elevation / 4000, 0, 1) if terrain else self.block

    def step(self) -> tuple[Array, Array, Array]:
        """Wind u, v (m/s) and the pressure anomaly (-1 low to 1 high) of the next hour."""
        self.lon += self.speed
        for index in np.flatnonzero(self.lon > 150):
            self.lon[index], self.lat[index] = 58.0, self.rng.uniform(20, 52)
            self.strength[index] *= self.rng.choice([-1.0, 1.0])
        across = np.exp(-((self.world.lon - self.lon[:, None]) ** 2) / 128)
        along = np.exp(-((self.world.lat - self.lat[:, None]) ** 2) / 72)
        psi = (along * self.strength[:, None]).T @ across  # > 0 low, turns anticlockwise
        slope = np.gradient(psi)
        u, v = 3.0 + slope[0] / self.world.dy, -slope[1] / self.world.dx
        climb = self.block * (u * self.nx + v * self.ny)
        keep = 1 - self.drag
        return keep * (u - climb * self.nx), keep * (v - climb * self.ny), np.tanh(psi / 6e6)


def advect(fields: Array, u: Array, v: Array, world: World, seconds: float) -> Array:
    """Fields [C, H, W] moved by the wind (m/s) for `seconds`, bilinear, edges held."""
    height, width = u.shape
    y = np.clip(np.arange(height)[:, None] - v * seconds / world.dy, 0, height - 1.001)
    x = np.clip(np.arange(width) - u * seconds / world.dx, 0, width - 1.001)
    row, column = y.astype(np.int64), x.astype(np.int64)
    fy, fx = y - row, x - column
    flat, at = fields.reshape(len(fields), -1), row * width + column
    low = np.take(flat, at, axis=1) * (1 - fx) + np.take(flat, at + 1, axis=1) * fx
    at = at + width
    high = np.take(flat, at, axis=1) * (1 - fx) + np.take(flat, at + 1, axis=1) * fx
    return np.asarray(low * (1 - fy) + high * fy)


def _chemistry(c: Array, world: World, hour: int, humid: Array, rain: Array) -> None:
    """Emission, loss and reactions of one hour, in place, on c [6, H, W]."""
    local = (hour + world.lon2d / 15) % 24
    season = np.cos(2 * np.pi * (hour / 8766 - 0.54))  # 1 in July
    sun = np.clip(np.cos((local - 13) * np.pi / 12), 0, 1) * (0.75 + 0.25 * season)
    source = (world.population / 4e6) * (1 - 0.25 * season) * (1.3 - 0.7 * sun)
    c += EMISSION[:, None, None] * source
    rate = LOSS[:, None, None] + WASHOUT[:, None, None] * rain
    c += rate * (BACKGROUND[:, None, None] - c)
    photolysis = 0.15 * sun * c[3]
    titration = 0.04 * np.minimum(c[3], c[5]) * (1 - sun)
    c[3] += 0.3 * titration - 0.3 * photolysis
    c[5] += photolysis + 5.0 * sun - titration - 0.03 * c[5] * (1 - sun)
    c[0] += 0.012 * (c[2] + c[3]) * humid
    np.clip(c, 0.1, None, out=c)


def simulate(
    world: World, start: int, hours: int, seed: int = 0, terrain: bool = True
) -> Iterator[dict[str, Array]]:
    """Hourly fields [H, W] in the units of `UNITS`, from hour `start` since 1970 UTC.

    Ten days of spin-up come first. `terrain` False lets the wind ignore the mountains.
    """
    weather = _Weather(world, np.random.default_rng([seed, start]), terrain)
    c = np.repeat(BACKGROUND, world.lat2d.size).reshape(6, *world.lat2d.shape)
    for hour in range(start - 240, start + hours):
        u, v, low = weather.step()
        c = advect(c, u, v, world, 3600.0)
        inner = c[:, 1:-1, 1:-1]
        around = c[:, 2:, 1:-1] + c[:, :-2, 1:-1] + c[:, 1:-1, 2:] + c[:, 1:-1, :-2]
        c[:, 1:-1, 1:-1] = inner + 0.002 * (around - 4 * inner)
        humid = np.clip(0.55 + 0.3 * low, 0.1, 1)
        rain = np.clip(2.5 * (low - 0.5), 0, 1)
        _chemistry(c, world, hour, humid, rain)
        if hour < start:
            continue
        day = np.cos(((hour + world.lon2d / 15) % 24 - 14) * np.pi / 12)
        season = np.cos(2 * np.pi * (hour / 8766 - 0.54))
        temp = 303 - 0.6 * (world.lat2d - 18) - 0.006 * world.elevation + 5 * day + 11 * season
        psfc = 101325 * np.exp(-world.elevation / 8400) * (1 - 0.012 * low)
        fields = {"u": u, "v": v, "temp": temp, "psfc": psfc}
        fields["rh"] = np.clip(100 * humid - 10 * day, 5, 100)
        yield fields | {name: c[index].copy() for index, name in enumerate(TRACERS)}


def _put(
    group: zarr.Group, name: str, data: NDArray[Any], dims: tuple[str, ...], **attributes: str
) -> None:
    array = group.create_array(
        name,
        shape=data.shape,
        dtype=data.dtype,
        dimension_names=dims,
        fill_value=np.nan if data.dtype.kind == "f" else 0,
        chunks=data.shape if data.ndim < 3 else (min(240, len(data)), *data.shape[1:]),
    )
    array[...] = data
    array.attrs.update(attributes)


def write_year(output: Path, world: World, year: int, seed: int, hours: int | None = None) -> Path:
    """Write data_YEAR_china_masked.zarr (its first `hours`, or all) beside, then rename."""
    epoch = np.datetime64("1970-01-01T00", "h")
    start = int((np.datetime64(f"{year}-01-01T00", "h") - epoch).astype(int))
    end = int((np.datetime64(f"{year + 1}-01-01T00", "h") - epoch).astype(int))
    count = end - start if hours is None else hours
    blocks = {name: np.empty((count, *world.mask.shape), np.float32) for name in UNITS}
    for row, fields in enumerate(simulate(world, start, count, seed)):
        for name, field in fields.items():
            blocks[name][row] = np.where(world.mask, field, np.nan)
        if row % 2000 == 0:
            print(f"{year}: hour {row} of {count}", flush=True)
    path = output / f"data_{year}_china_masked.zarr"
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    group = zarr.open_group(partial, mode="w", zarr_format=3)
    for name, block in blocks.items():
        _put(group, name, block, ("time", "lat", "lon"), units=UNITS[name])
    for name, unit in (("elevation", "m"), ("population", "people per cell")):
        field = np.where(world.mask, getattr(world, name), np.nan)
        _put(group, name, field, ("lat", "lon"), units=unit)
    hour_axis = np.arange(start, start + count, dtype=np.int64)
    _put(group, "time", hour_axis, ("time",), units="hours since 1970-01-01 00:00:00",
         calendar="proleptic_gregorian", standard_name="time")  # fmt: skip
    for name, unit in (("lat", "degrees_north"), ("lon", "degrees_east")):
        _put(group, name, getattr(world, name), (name,), units=unit)
        _put(group, f"{name}2d", getattr(world, f"{name}2d"), ("lat", "lon"), units=unit)
    if path.exists():
        shutil.rmtree(path)
    partial.replace(path)
    return path


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the embedded world (simulated data).")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--years", default="2013-2018", help="first-last, or one year")
    parser.add_argument("--grid", default="32x64", help="rows x columns")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        height, width = (int(part) for part in arguments.grid.split("x"))
        years = [int(part) for part in arguments.years.split("-")]
    except ValueError as error:
        raise AqnetError(
            f"--grid {arguments.grid} --years {arguments.years}: expected e.g. 32x64 and 2013-2018"
        ) from error
    if min(height, width) < 4 or len(years) > 2 or years[0] > years[-1]:
        raise AqnetError(f"--grid {arguments.grid}: at least 4x4; --years first-last, ascending")
    arguments.output.mkdir(parents=True, exist_ok=True)
    world = World(height, width)
    for year in range(years[0], years[-1] + 1):
        print(f"wrote {write_year(arguments.output, world, year, arguments.seed)}", flush=True)


if __name__ == "__main__":
    run(main)
