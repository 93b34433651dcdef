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
    "model": {"patch": 1, "embed_dim": 8, "num_heads": 2, "depth": 1, "scan": "raster"},
    "train": {"max_steps": 1},
}
