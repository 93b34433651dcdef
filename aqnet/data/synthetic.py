"""The embedded world: simulated weather and air quality in the AQ_NET2 yearly layout.

Invented, not measured: made so that wind and terrain matter to the forecast. Per hour:

    psi    = sum_i a_i(t) exp(-((lon - lon_i(t))^2 / 128 + (lat - lat_i(t))^2 / 72))   lows > 0
    u, v   = U + d psi / dy, -d psi / dx
    wind  <- (1 - b) (wind - c (wind . n) n)     n up-slope direction, b height drag, c blocking
    q*(x)  = q(x - wind dt)                      semi-Lagrangian, bilinear, dt = 1 h
    stored u, v = 0.65 (wind turned by 20 degrees)
    q     <- q* + k lap(q*) + E + (deposition + washout rain) (background - q)
    E      = emission population / mixing        mixing grows with sun and wind; less in summer
    NO2   += 0.3 (T - P),  O3 += P - T + 5 sun NO2 / (NO2 + 6)
             P = 0.12 sun NO2 (photolysis),  T = 0.03 min(NO2, O3) (1 - sun) (titration)
    PM    += 0.008 (SO2 + NO2) humidity          secondary particles

Lows bring cloud, which dims the sun, rain and humidity. Blocking removes part of the wind that
climbs or descends a slope, so that what is left runs along ridges (channelling).

What moves the tracers is the wind of the mixed layer, as in nature. Stored as u and v is the
surface wind: slowed by friction and backed, which north of the equator is turned to the left. Its
speed factor and its angle vary by a tenth with the height of the terrain (slower and more turned
high up) and by a tenth from day to night (faster and less turned by day), so that no single factor
and angle undo them everywhere.

Each year is made by itself after 20 days of spin-up, by when its tracers have forgotten their
start; the weather is a function of the hour, so that years fit together. Units: ug/m3, m/s, K, Pa,
%.
"""

import argparse
import itertools
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from aqnet.errors import AqnetError, run
from aqnet.files import partial_of, replace_folder

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
SYSTEMS = 10  # highs and lows
SPIN_UP = 480  # hours; by then the start is forgotten
BLOCK_HOURS = 240
SURFACE_SPEED = 0.65  # of the mixed layer's
BACKED = 20.0  # degrees to the left of it
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
            people += 1.6e6 * size * self._bump(lon, lat, 2.5, 2.2)
        return people + 1.5e5 * self._bump(114, 33, 9, 8)


class Weather:
    """Highs and lows that drift east across the domain, a function of the hour alone.

    Each of `SYSTEMS` tracks is crossed again and again; what crosses it is drawn from the seed, the
    track and the number of the crossing, so that years made apart fit together.
    """

    def __init__(self, world: World, seed: int, terrain: bool = True) -> None:
        self.world, self.seed = world, seed
        rng = np.random.default_rng([seed, SYSTEMS])
        self.hours = rng.uniform(350.0, 600.0, SYSTEMS)  # of a crossing
        self.phase = rng.uniform(0.0, 1.0, SYSTEMS)
        self._drawn: dict[int, tuple[int, Array]] = {}
        grad_y, grad_x = np.gradient(world.elevation)
        grad_y, grad_x = grad_y / world.dy, grad_x / world.dx
        steep = np.hypot(grad_x, grad_y) + 1e-9
        self.nx, self.ny = grad_x / steep, grad_y / steep
        self.block = (0.9 * (1 - np.exp(-steep / 0.002))) if terrain else np.zeros_like(steep)
        self.drag = 0.3 * np.clip(world.elevation / 4000, 0, 1) if terrain else self.block

    def at(self, hour: int) -> tuple[Array, Array, Array]:
        """Wind u, v (m/s) and the pressure anomaly (-1 high to 1 low) of an hour since 1970."""
        turns = hour / self.hours + self.phase
        crossing = np.floor(turns).astype(np.int64)
        way = turns - crossing
        lat, drift, strength = np.stack(
            [self._system(track, int(n)) for track, n in enumerate(crossing)], axis=1
        )
        lon, lat = 55.0 + 98.0 * way, lat + drift * way
        strength = strength * np.sqrt(np.sin(np.pi * way))
        across = np.exp(-((self.world.lon - lon[:, None]) ** 2) / 128)
        along = np.exp(-((self.world.lat - lat[:, None]) ** 2) / 72)
        psi = (along * strength[:, None]).T @ across  # > 0 low, turns anticlockwise
        slope = np.gradient(psi)
        u, v = 3.0 + slope[0] / self.world.dy, -slope[1] / self.world.dx
        climb = self.block * (u * self.nx + v * self.ny)
        keep = 1 - self.drag
        return keep * (u - climb * self.nx), keep * (v - climb * self.ny), np.tanh(psi / 6e6)

    def _system(self, track: int, crossing: int) -> Array:
        """Latitude, its drift and the strength of one high or low."""
        if self._drawn.get(track, (None,))[0] != crossing:
            rng = np.random.default_rng([self.seed, track, crossing % 2**32])
            strength = rng.choice([-1.0, 1.0]) * rng.uniform(5e6, 9e6)
            drawn = np.array([rng.uniform(20, 52), rng.uniform(-6, 6), strength])
            self._drawn[track] = crossing, drawn
        return self._drawn[track][1]


def surface_wind(u: Array, v: Array, world: World, hour: int) -> tuple[Array, Array]:
    """The wind at the surface, as stored, under a mixed layer's wind u, v (m/s)."""
    by_day = 0.1 * _daily(world, hour)
    high_up = 0.1 * np.clip(world.elevation / 4000, 0, 1)
    speed = SURFACE_SPEED * (1 + by_day) * (1 - high_up)
    angle = np.radians(BACKED) * (1 - by_day) * (1 + high_up)
    cosine, sine = speed * np.cos(angle), speed * np.sin(angle)
    return cosine * u - sine * v, sine * u + cosine * v


def _daily(world: World, hour: int) -> Array:
    """1 at 14 h local solar time, -1 at 2 h."""
    return np.asarray(np.cos(((hour + world.lon2d / 15) % 24 - 14) * np.pi / 12))


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


def _chemistry(c: Array, world: World, hour: int, low: Array, speed: Array) -> None:
    """Emission, loss and reactions of one hour, in place, on c [6, H, W]."""
    local = (hour + world.lon2d / 15) % 24
    season = np.cos(2 * np.pi * (hour / 8766 - 0.54))  # 1 in July
    cloud = np.clip(0.35 + 0.9 * low, 0, 1)
    sun = np.clip(np.cos((local - 13) * np.pi / 12), 0, 1) * (0.7 + 0.3 * season)
    sun *= 1 - 0.8 * cloud
    humid, rain = np.clip(0.55 + 0.3 * low, 0.1, 1), np.clip(2.5 * (low - 0.5), 0, 1)
    mixing = (0.6 + 0.5 * sun) * (0.5 + speed / 8)  # stirred by sun and wind
    source = (world.population / 4e6) * (1 - 0.25 * season) / mixing
    c += EMISSION[:, None, None] * source
    rate = LOSS[:, None, None] + WASHOUT[:, None, None] * rain
    c += rate * (BACKGROUND[:, None, None] - c)
    photolysis = 0.12 * sun * c[3]
    titration = 0.03 * np.minimum(c[3], c[5]) * (1 - sun)
    c[3] += 0.3 * titration - 0.3 * photolysis
    c[5] += photolysis + 5.0 * sun * c[3] / (c[3] + 6) - titration
    c[:2] += 0.008 * (c[2] + c[3]) * humid  # PM2.5 is part of PM10
    np.clip(c, 0.1, None, out=c)


def simulate(
    world: World, start: int, hours: int, seed: int = 0, terrain: bool = True
) -> Iterator[dict[str, Array]]:
    """Hourly fields [H, W] in the units of `UNITS`, from hour `start` since 1970 UTC.

    `SPIN_UP` hours come first. `terrain` False lets the wind ignore the mountains.
    """
    weather = Weather(world, seed, terrain)
    c = np.repeat(BACKGROUND, world.lat2d.size).reshape(6, *world.lat2d.shape)
    for hour in range(start - SPIN_UP, start + hours):
        u, v, low = weather.at(hour)
        c = advect(c, u, v, world, 3600.0)
        inner = c[:, 1:-1, 1:-1]
        around = c[:, 2:, 1:-1] + c[:, :-2, 1:-1] + c[:, 1:-1, 2:] + c[:, 1:-1, :-2]
        c[:, 1:-1, 1:-1] = inner + 0.002 * (around - 4 * inner)
        _chemistry(c, world, hour, low, np.hypot(u, v))
        if hour < start:
            continue
        day = _daily(world, hour)
        season = np.cos(2 * np.pi * (hour / 8766 - 0.54))
        temp = 303 - 0.6 * (world.lat2d - 18) - 0.006 * world.elevation + 5 * day + 11 * season
        psfc = 101325 * np.exp(-world.elevation / 8400) * (1 - 0.012 * low)
        u, v = surface_wind(u, v, world, hour)
        fields = {"u": u, "v": v, "temp": temp - 3 * low * day, "psfc": psfc}
        fields["rh"] = np.clip(55 + 30 * low - 10 * day, 5, 100)
        yield fields | {name: c[index].copy() for index, name in enumerate(TRACERS)}


def _array(
    group: zarr.Group, name: str, shape: tuple[int, ...], dims: tuple[str, ...], **attributes: str
) -> zarr.Array[Any]:
    return group.create_array(
        name,
        shape=shape,
        dtype=np.int64 if name == "time" else np.float32 if len(shape) == 3 else np.float64,
        dimension_names=dims,
        fill_value=0 if name == "time" else np.nan,
        chunks=shape if len(shape) < 3 else (min(BLOCK_HOURS, shape[0]), *shape[1:]),
        attributes=dict(attributes),
    )


def write_year(output: Path, world: World, year: int, seed: int, hours: int | None = None) -> Path:
    """Write data_YEAR_china_masked.zarr (its first `hours`, or all) beside, then rename."""
    start, end = (
        int(np.datetime64(f"{which}-01-01T00", "h").astype(int)) for which in (year, year + 1)
    )
    count = end - start if hours is None else hours
    path = output / f"data_{year}_china_masked.zarr"
    beside = partial_of(path)
    shutil.rmtree(beside, ignore_errors=True)
    group = zarr.open_group(beside, mode="w", zarr_format=3)
    _write_coordinates(group, world, start, count)
    shape = (count, *world.mask.shape)
    arrays = {
        name: _array(group, name, shape, ("time", "lat", "lon"), units=unit)
        for name, unit in UNITS.items()
    }
    stream = simulate(world, start, count, seed)
    for first in range(0, count, BLOCK_HOURS):
        block = list(itertools.islice(stream, BLOCK_HOURS))
        for name, array in arrays.items():
            fields = np.where(world.mask, [each[name] for each in block], np.nan)
            array[first : first + len(block)] = rounded(fields.astype(np.float32))
        if first // BLOCK_HOURS % 8 == 0:
            print(f"{year}: hour {first} of {count}", flush=True)
    replace_folder(beside, path)
    return path


def _write_coordinates(group: zarr.Group, world: World, start: int, count: int) -> None:
    for name, unit in (("elevation", "m"), ("population", "people per cell")):
        field = np.where(world.mask, getattr(world, name), np.nan)
        _array(group, name, field.shape, ("lat", "lon"), units=unit)[...] = field
    time = {"units": "hours since 1970-01-01 00:00:00", "calendar": "proleptic_gregorian"}
    hours = np.arange(start, start + count, dtype=np.int64)
    _array(group, "time", hours.shape, ("time",), standard_name="time", **time)[...] = hours
    for name, unit in (("lat", "degrees_north"), ("lon", "degrees_east")):
        for field, dims in (
            (getattr(world, name), (name,)),
            (getattr(world, f"{name}2d"), ("lat", "lon")),
        ):
            full = name if field.ndim == 1 else f"{name}2d"
            _array(group, full, field.shape, dims, units=unit)[...] = field


def rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """To 12 bits of the mantissa, a relative 1e-4, so that files compress to about half."""
    keep = np.uint32(0xFFFF_F800)
    bits = np.where(np.isfinite(values), values.view(np.uint32) + np.uint32(0x400), 0x7FC0_0000)
    nearest: NDArray[np.float32] = (bits.astype(np.uint32) & keep).view(np.float32)
    return nearest


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
    if arguments.seed < 0:
        raise AqnetError(f"--seed {arguments.seed}: expected 0 or more")
    arguments.output.mkdir(parents=True, exist_ok=True)
    wanted = range(years[0], years[-1] + 1)
    # zarr runs a thread, which a fork would not take along
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(len(wanted), os.cpu_count() or 1), context) as pool:
        task = partial(write_year, arguments.output, World(height, width), seed=arguments.seed)
        for path in pool.map(task, wanted):
            print(f"wrote {path}", flush=True)


if __name__ == "__main__":
    run(main)
