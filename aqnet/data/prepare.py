"""Source files to training stores and statistics.

    python -m aqnet.data.prepare --config configs/eac4.yaml [--workers N] [key=value ...]

Writes one STORES/YEAR.zarr for each year of the split and STORES/statistics.json. Years that are
complete are kept, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import fcntl
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aqnet import config as configuration
from aqnet.batch import Grid
from aqnet.config import STATIC_VARIABLES, Config
from aqnet.data import split, statistics, store, units
from aqnet.data.sources import SourceView, dynamic_names, hour_text, open_sources
from aqnet.errors import AqnetError, run

BLOCK_HOURS = 240  # time steps in memory at once
_PROGRESS_SECONDS = 3.0

Array = NDArray[Any]


def prepare(config: Config, workers: int = 1) -> None:
    """Write the stores of all years of the split, then their statistics.

    Args:
        workers: processes; each takes a year at a time.
    Raises:
        AqnetError: the sources lack a year or a variable, are damaged, differ from those of
            stores already there, or no cell ever holds a target.
    """
    if config.data.resample != "none":
        raise AqnetError(
            f"data.resample is {config.data.resample!r}; prepare keeps the native grid only: set "
            "data.resample: none and leave data.shape out"
        )
    if config.data.winds != "earth":
        raise AqnetError(
            "data.winds is 'grid'; prepare does not rotate winds yet: give winds relative to the "
            "earth and set data.winds: earth"
        )
    sources = open_sources(config.data)
    years = split.all_years(config.data.split)
    for year in years:  # before anything is written
        sources.check_variables(dynamic_names(config.data), _rows(config, sources, year))
    directory = Path(config.data.stores)
    with _alone(directory):
        missing = [year for year in years if not _is_complete(config, sources, year)]
        print(f"prepare: {len(years)} years, {len(years) - len(missing)} complete", flush=True)
        if missing:
            mask = _domain(config, sources)
            _refuse_other_masks(config, [year for year in years if year not in missing], mask)
            print(f"prepare: the domain has {int(mask.sum())} of {mask.size} cells", flush=True)
            _write_years(config, missing, mask, workers)
        statistics.write(config, [store.open_store(_path(config, year)) for year in years])
    print(f"prepare: statistics in {directory / 'statistics.json'}", flush=True)


def _write_years(config: Config, years: list[int], mask: Array, workers: int) -> None:
    if workers == 1:
        for year in years:
            _write_year(config, year, mask)
        return
    # torch and zarr keep threads, which a forked child would lack
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(years)), mp_context=context) as pool:
        for job in [pool.submit(_write_year, config, year, mask) for year in years]:
            job.result()


def _write_year(config: Config, year: int, mask: Array) -> None:
    sources = open_sources(config.data)
    rows, names = _rows(config, sources, year), dynamic_names(config.data)
    grid, static = _grid_and_static(config, sources, mask)
    writer = store.create(
        _path(config, year),
        names=names,
        units={name: units.canonical_unit(name) or "" for name in (*names, *static)},
        time=sources.times[rows],
        grid=grid,
        static=static,
        source=_origin(config, sources, rows),
        dtype=config.data.dtype,
    )
    told = began = time.monotonic()
    for start in range(rows.start, rows.stop, BLOCK_HOURS):
        block = sources.read(names, slice(start, min(start + BLOCK_HOURS, rows.stop)))
        writer.write(start - rows.start, _padded(block, config.model.patch))
        if time.monotonic() - told > _PROGRESS_SECONDS:
            told = time.monotonic()
            share = (start + len(block) - rows.start) / (rows.stop - rows.start)
            print(f"prepare: {year} {share:4.0%}", flush=True)
    writer.commit()
    zeroed = ", ".join(f"{name} {n}" for name, n in sorted(sources.noise.items()) if n)
    print(
        f"prepare: {year} written, {rows.stop - rows.start} times in "
        f"{time.monotonic() - began:.1f} s"
        + (f"; values from -0.01 to 0 ug/m3 set to 0: {zeroed}" if zeroed else ""),
        flush=True,
    )


def _path(config: Config, year: int) -> Path:
    return Path(config.data.stores) / f"{year}.zarr"


def _rows(config: Config, sources: SourceView, year: int) -> slice:
    first, after = split.intervals((f"{year:04}",))[0]
    start, stop = (int(row) for row in np.searchsorted(sources.times, (first, after)))
    if start == stop:
        raise AqnetError(
            f"{config.data.sources[0].path}: the year {year} of data.split is missing; the files "
            f"hold {hour_text(sources.times[0])} to {hour_text(sources.times[-1])}"
        )
    return slice(start, stop)


def _origin(config: Config, sources: SourceView, rows: slice) -> dict[str, Any]:
    """What a store was made from, as far as it must agree for the store to be used again."""
    names = (*dynamic_names(config.data), *STATIC_VARIABLES)
    return {
        "layout": config.data.sources[0].path,
        "files": [str(path.name) for path, _ in sources.pieces(rows)],
        "names": {name: sources.file_name(name) for name in names},
        "units": dict(config.data.units),
        "rows": rows.stop - rows.start,
        "patch": config.model.patch,
    }


def _is_complete(config: Config, sources: SourceView, year: int) -> bool:
    path = _path(config, year)
    if not path.exists():
        return False
    found = store.open_store(path)
    rows = _rows(config, sources, year)
    expected = _origin(config, sources, rows)
    made_from = found.attributes.get("source", {})
    differing = [key for key in expected if made_from.get(key) != expected[key]]
    if tuple(found.names) != dynamic_names(config.data):
        differing.append("variables")
    if not np.array_equal(found.time, sources.times[rows]):
        differing.append("times")
    if differing:
        raise AqnetError(
            f"{path}: this store was made from another source or with other settings "
            f"({', '.join(differing)} differ); sources are not mixed: give another data.stores "
            "or remove the store"
        )
    return True


def _domain(config: Config, sources: SourceView) -> Array:
    """The domain mask of the model grid, bool, shape [H, W] with padding."""
    shape = sources.lat.shape
    if config.data.mask_file is not None:
        mask = _array_file(config.data.mask_file, "data.mask_file", shape) > 0
    else:
        mask = np.zeros(shape, bool)
        for start, stop in split.intervals(config.data.split.train):
            first, after = np.searchsorted(sources.times, (start, stop))
            for row in range(int(first), int(after), BLOCK_HOURS):
                rows = slice(row, min(row + BLOCK_HOURS, int(after)))
                block = sources.read(config.data.targets, rows)
                mask |= np.isfinite(block).any(axis=(0, 1))
    if not mask.any():
        raise AqnetError(
            f"{config.data.sources[0].path}: no valid cell: the targets "
            f"{', '.join(config.data.targets)} are missing everywhere in the training split"
        )
    return _padded(mask, config.model.patch, False)


def _refuse_other_masks(config: Config, years: list[int], mask: Array) -> None:
    for year in years:
        if not np.array_equal(store.open_store(_path(config, year)).grid.mask.numpy(), mask):
            raise AqnetError(
                f"{_path(config, year)}: its domain mask differs from that of this config; remove "
                "the store or give another data.stores"
            )


def _grid_and_static(
    config: Config, sources: SourceView, mask: Array
) -> tuple[Grid, dict[str, Array]]:
    patch = config.model.patch
    lat, lon = (_extrapolated(values, mask.shape) for values in (sources.lat, sources.lon))
    lat = np.clip(lat, -90, 90)
    static: dict[str, Array] = {}
    for name in STATIC_VARIABLES:
        if name not in config.data.variables:
            continue
        if name in ("lat2d", "lon2d"):
            static[name] = (lat if name == "lat2d" else lon).astype(np.float32)
        elif name in config.data.static_files:
            path = config.data.static_files[name]
            values = _array_file(path, f"data.static_files.{name}", sources.lat.shape)
            static[name] = _padded(values.astype(np.float32), patch)
        else:
            static[name] = _padded(sources.static(name), patch)
    elevation = static.get("elevation")
    grid = Grid(
        lat=torch.from_numpy(lat),
        lon=torch.from_numpy(lon),
        elevation=None if elevation is None else torch.from_numpy(elevation),
        mask=torch.from_numpy(mask),
    )
    return grid, static


def _array_file(path: str, key: str, shape: tuple[int, ...]) -> Array:
    if Path(path).suffix != ".npy":
        raise AqnetError(f"{key}: {path}: expected a .npy file on the grid of the source")
    try:
        values: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise AqnetError(f"{key}: {path}: cannot read this file: {error}") from None
    if values.shape != shape:
        raise AqnetError(f"{key}: {path} has shape {values.shape}; the source has {shape}")
    return values


def _padded(values: Array, patch: int, fill: Any = np.nan) -> Array:
    """`values` [..., H, W] with rows and columns of `fill` up to a multiple of `patch`."""
    pads = [(0, -size % patch) for size in values.shape[-2:]]
    return np.pad(values, [(0, 0)] * (values.ndim - 2) + pads, constant_values=fill)


def _extrapolated(values: Array, shape: tuple[int, ...]) -> Array:
    """Coordinates [H, W] continued linearly to `shape`."""
    for axis in (0, 1):
        extra = shape[axis] - values.shape[axis]
        last = np.take(values, [-1], axis)
        step = last - np.take(values, [-2], axis) if values.shape[axis] > 1 else 0 * last
        more = [last + step * (at + 1) for at in range(extra)]
        values = np.concatenate([values, *more], axis)
    return values


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep a second `prepare` out of one output directory."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / ".prepare.lock").open("w")
    except OSError as error:
        raise AqnetError(f"{directory}: cannot write the stores here: {error}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AqnetError(
                f"{directory}: another prepare writes here; wait for it or give another data.stores"
            ) from None
        yield


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m aqnet.data.prepare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", required=True, help="YAML file")
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    prepare(configuration.load(arguments.config, arguments.overrides), max(1, arguments.workers))


if __name__ == "__main__":
    run(main)
