"""Small source files in the layouts that aqnet reads, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr

TARGETS = ("pm25", "o3")
LAT, LON = np.array([32.0, 31.0, 30.0]), np.array([110.0, 111.0, 112.0, 113.0])


def hours(year: int, count: int = 300, step: int = 1) -> np.ndarray:
    """`count` hours since 1970 from the first of January of `year`."""
    return np.datetime64(f"{year}", "h").astype(np.int64) + step * np.arange(count)


def fields(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random positive targets with a cell (0, 0) that is always missing."""
    rng = np.random.default_rng(seed)
    found = {}
    for name in TARGETS:
        found[name] = rng.uniform(1, 50, (count, len(LAT), len(LON))).astype(np.float32)
        found[name][:, 0, 0] = np.nan
    return found


def write_zarr(
    path: Path,
    time: np.ndarray,
    values: dict[str, np.ndarray],
    version: int = 3,
    lat: np.ndarray = LAT,
    units: str | None = "ug m-3",
    two_d: bool = False,
) -> Path:
    """An AQ_NET2 year store."""
    group = zarr.open_group(path, mode="w", zarr_format=version)

    def put(name: str, data: np.ndarray, dims: list[str], attributes: dict[str, str]) -> None:
        named = {"dimension_names": dims} if version == 3 else {}
        chunks = tuple(min(24, size) for size in data.shape)
        array = group.create_array(
            name, shape=data.shape, dtype=data.dtype, chunks=chunks, **named, fill_value=0
        )
        array[...] = data
        array.attrs.update(attributes if version == 3 else attributes | {"_ARRAY_DIMENSIONS": dims})

    put("time", time, ["time"], {"units": "hours since 1970-01-01", "calendar": "standard"})
    put("lat", lat, ["lat"], {})
    put("lon", LON, ["lon"], {})
    if two_d:
        grid = np.meshgrid(lat, LON, indexing="ij")
        put("lat2d", grid[0], ["lat", "lon"], {})
        put("lon2d", grid[1], ["lat", "lon"], {})
    shape = next(iter(values.values())).shape[1:]
    put("elevation", np.full(shape, 100.0), ["lat", "lon"], {"units": "m"})
    for name, data in values.items():
        put(name, data, ["time", "lat", "lon"], {} if units is None else {"units": units})
    return path


CONFIG = {
    "run_dir": "run",
    "data": {
        "variables": ["pm25", "o3", "lat2d", "lon2d", "elevation"],
        "targets": list(TARGETS),
        "lead_times": [12],
        "split": {"train": ["2013"], "validation": ["2014"], "test": ["2015"]},
    },
    "model": {
        "patch": 1,
        "embed_dim": 8,
        "num_heads": 2,
        "depth": 1,
        "scan": "raster",
        "transport": "off",
    },
    "train": {"max_steps": 1},
}

CAQRA = ("pm25", "pm10", "so2", "no2", "co", "o3", "u", "v", "temp", "rh", "psfc")
CAQRA_UNITS = {"co": "mg/m3", "u": "m/s", "v": "m/s", "temp": "K", "rh": "%", "psfc": "Pa"}
PLAUSIBLE = {"temp": 200.0, "psfc": 9e4}  # added to small numbers
EARTH_RADIUS = 6370.0  # km, that of WRF


def lambert(
    height: int, width: int, spacing: float | tuple[float, float] = 15.0, north_first: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latitude, longitude [degrees] and the angle from east to the grid's x [radians] of a Lambert
    conformal grid, standard parallels 25 and 40 N, centre 35 N 105 E, spacing in km, or (along y,
    along x) (Snyder 1987, eq. 15-1 to 15-11)."""
    down, across = spacing if isinstance(spacing, tuple) else (spacing, spacing)
    first, second, origin = np.radians([25.0, 40.0, 35.0])

    def t(lat: float) -> float:
        return float(np.tan(np.pi / 4 + lat / 2))

    n = np.log(np.cos(first) / np.cos(second)) / np.log(t(second) / t(first))
    f = EARTH_RADIUS * np.cos(first) * t(first) ** n / n
    x = (np.arange(width) - (width - 1) / 2) * across
    y = (np.arange(height) - (height - 1) / 2) * down
    x, y = np.meshgrid(x, y[::-1] if north_first else y)
    south = f / t(origin) ** n - y
    theta = np.arctan2(x, south)
    lat = 2 * np.arctan((f / np.hypot(x, south)) ** (1 / n)) - np.pi / 2
    # east of the central meridian the grid's x points south of east
    return np.degrees(lat), 105.0 + np.degrees(theta / n), -theta


def write_caqra(
    folder: Path,
    times: np.ndarray,
    shape: tuple[int, int] = (9, 13),
    seed: int = 0,
    **other: object,
) -> dict[int, dict[str, np.ndarray]]:
    """An hourly file for each of `times`, as CAQRA is published; returns the fields of each hour.

    Options: `values(name, hour)` in place of random ones, `grid` (lat, lon), `units`,
    `checksums` (HDF5's fletcher32).
    """
    import netCDF4

    rng, written = np.random.default_rng(seed), {}
    lat, lon = other.get("grid") or lambert(*shape, spacing=150.0)[:2]  # type: ignore[misc]
    for hour in times:
        stamp = str(np.datetime64(int(hour), "h")).translate(str.maketrans("", "", "-T"))
        written[int(hour)] = found = {}
        with netCDF4.Dataset(folder / f"CN-Reanalysis{stamp}.nc", "w") as file:
            file.createDimension("y", len(lat))
            file.createDimension("x", lat.shape[1])
            for name, data in (("lat2d", lat), ("lon2d", lon)):
                file.createVariable(name, "f4", ("y", "x"))[:] = data
            for name in CAQRA:
                field = rng.uniform(1, 50, lat.shape).astype(np.float32) + PLAUSIBLE.get(name, 0)
                if "values" in other:
                    field = other["values"](name, int(hour))  # type: ignore[operator]
                options = {"fill_value": -999.0, "fletcher32": bool(other.get("checksums"))}
                variable = file.createVariable(name, "f4", ("y", "x"), **options)
                units = {**CAQRA_UNITS, **other.get("units", {})}  # type: ignore[dict-item]
                variable.units = units.get(name, "ug/m3")
                variable[:] = np.ma.masked_invalid(field)
                found[name] = field
    return written
