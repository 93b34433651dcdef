"""Source files to training stores and statistics.

    python -m aqnet.data.prepare --config configs/eac4.yaml [--workers N] [--dry-run] [--year Y]
        [key=value]

Writes one STORES/YEAR.zarr for each year of the split and STORES/statistics.json. What is written
is kept, so that an interrupted run goes on where it stopped. Several at once may write a --year
each; one without --year after them writes the statistics.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from aqnet import config as configuration
from aqnet.config import STATIC_VARIABLES, Config
from aqnet.data import split, statistics, store, store_writer, units
from aqnet.data.model_grid import ModelGrid
from aqnet.data.parallel import Progress, run_blocks
from aqnet.data.sources import SourceView, dynamic_names, hour_text, open_sources
from aqnet.data.store_writer import StoreWriter
from aqnet.errors import AqnetError, run

BLOCK_BYTES = 320e6  # of fields in memory at once in each worker, which needs about four times it
BLOCK_HOURS = 5 * store.HOURS_PER_SHARD

Array = NDArray[Any]


def prepare(
    config: Config, workers: int = 1, dry_run: bool = False, only: list[int] | None = None
) -> None:
    """Write the stores of all years of the split, then their statistics.

    Args:
        workers: processes, each taking a block of hours at a time.
        dry_run: print the plan and write nothing.
        only: write the stores of these years, and no statistics.
    Raises:
        AqnetError: the sources lack a year or a variable, are damaged, differ from those of
            stores already there, no cell ever holds a target, or the stores cannot be written.
    """
    sources = open_sources(config.data)
    years = split.all_years(config.data.split)
    for year in only or ():
        if year not in years:
            raise AqnetError(f"--year: {year} is not in data.split, which has {years}")
    years = only or years
    for year in years:  # before anything is written
        sources.check_variables(dynamic_names(config.data), _rows(config, sources, year))
    grid = ModelGrid(config, sources)
    missing = [year for year in years if not _is_complete(config, sources, year)]
    _print_plan(config, grid, years, missing, workers)
    if dry_run:
        return
    with _alone(Path(config.data.stores), only):
        mask = _domain(config, grid, workers)
        _refuse_other_masks(config, [year for year in years if year not in missing], mask)
        print(f"prepare: the domain has {int(mask.sum())} of {mask.size} cells", flush=True)
        if missing:
            _write_years(config, grid, missing, mask, workers)
        if only:
            return
        path = statistics.write(config, [store.open_store(_path(config, year)) for year in years])
    print(f"prepare: statistics in {path}", flush=True)


def _write_years(
    config: Config, grid: ModelGrid, years: list[int], mask: Array, workers: int
) -> None:
    names = dynamic_names(config.data)
    where, static = grid.grid(mask)
    writers: dict[int, StoreWriter] = {}
    blocks: list[tuple[int, slice]] = []
    for year in years:
        rows = _rows(config, grid.sources, year)
        writers[year] = store_writer.create(
            _path(config, year),
            names=names,
            units={name: units.canonical_unit(name) or "" for name in (*names, *static)},
            time=grid.sources.times[rows],
            grid=where,
            static=static,
            source=_origin(config, grid.sources, rows),
            dtype=config.data.dtype,
        )
        for part in writers[year].missing():
            blocks += [(year, rows) for rows in _blocks(config, grid, part.start, part.stop)]
    left = Counter(year for year, _ in blocks)
    progress = Progress("prepare", sum(rows.stop - rows.start for _, rows in blocks))
    noise: Counter[str] = Counter()
    starts = {year: _rows(config, grid.sources, year).start for year in years}
    for year in years:
        if not left[year]:
            writers[year].commit()
    for (year, rows), found in run_blocks(
        _write_block, (grid, names, writers, starts), blocks, workers
    ):
        noise += found
        progress.add(rows.stop - rows.start)
        left[year] -= 1
        if not left[year]:
            writers[year].commit()
            progress.tell(f"{year} written, {len(writers[year].time)} times")
    zeroed = ", ".join(f"{name} {n}" for name, n in sorted(noise.items()) if n)
    if zeroed:
        print(f"prepare: values from -0.01 to 0 ug/m3 set to 0: {zeroed}", flush=True)


def _write_block(
    common: tuple[ModelGrid, tuple[str, ...], dict[int, StoreWriter], dict[int, int]],
    block: tuple[int, slice],
) -> Counter[str]:
    """Write rows of a year's store; returns how many values were packing noise."""
    grid, names, writers, starts = common
    year, rows = block
    grid.sources.noise.clear()
    fields = grid.read(names, slice(starts[year] + rows.start, starts[year] + rows.stop))
    writers[year].write(rows.start, fields)
    return Counter(grid.sources.noise)


def _blocks(config: Config, grid: ModelGrid, start: int, stop: int) -> list[slice]:
    """Rows start to stop in blocks of whole shards that a worker can hold."""
    shard = store.HOURS_PER_SHARD
    hour = 4 * len(dynamic_names(config.data)) * max(grid.lat.size, grid.sources.lat.size)
    size = int(max(shard, min(BLOCK_HOURS, BLOCK_BYTES // hour // shard * shard)))
    # at multiples of the size, so that a resumed run reads the same chunks of the source at once
    edges = [start, *range((start // size + 1) * size, stop, size), stop]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


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
        **sources.fingerprint(rows),
        "names": {name: sources.file_name(name) for name in names},
        "units": dict(config.data.units),
        "rows": rows.stop - rows.start,
        "patch": config.model.patch,
        "resample": config.data.resample,
        "shape": None if config.data.shape is None else list(config.data.shape),
        "winds": config.data.winds,
        "static_files": {name: _digest(file) for name, file in config.data.static_files.items()},
        "dtype": config.data.dtype,
    }


def _digest(path: str) -> str:
    """Of a static file's name, size and time of change; "" for a store, which is a directory."""
    found = Path(path)
    if not found.is_file():
        return found.name
    return f"{found.name} {found.stat().st_size} {found.stat().st_mtime_ns}"


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
    if differing == ["file_sizes_and_times"]:
        raise AqnetError(
            f"{path}: its source files have changed since it was made (sizes or times of "
            "change differ); remove the store to prepare it again"
        )
    if differing:
        raise AqnetError(
            f"{path}: this store was made from another source or with other settings "
            f"({', '.join(differing)} differ); sources are not mixed: give another data.stores "
            "or remove the store"
        )
    return True


def _domain(config: Config, grid: ModelGrid, workers: int) -> Array:
    """The domain mask of the model grid, bool, shape [H, W]; kept beside the stores."""
    mask = grid.domain_file()
    if mask is None:
        with (Path(config.data.stores) / ".domain.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one of several at once makes it, the others wait
            mask = _observed(config, grid, workers)
    if not mask.any():
        raise AqnetError(
            f"{config.data.sources[0].path}: no valid cell: the targets "
            f"{', '.join(config.data.targets)} are missing everywhere in the training split"
        )
    return mask


def _observed(config: Config, grid: ModelGrid, workers: int) -> Array:
    """Cells with a finite target at some time of the training split."""
    sources, blocks = grid.sources, []
    made_from: dict[str, Any] = {"targets": list(config.data.targets)}
    for period, hours in zip(
        config.data.split.train, split.intervals(config.data.split.train), strict=True
    ):
        first, after = (int(row) for row in np.searchsorted(sources.times, hours))
        blocks += _blocks(config, grid, first, after)
        made_from[period] = _origin(config, sources, slice(first, after))
    kept = Path(config.data.stores) / ".domain.npz"
    identity = json.dumps(made_from, sort_keys=True)
    if kept.exists():
        with np.load(kept) as found:
            if str(found["made_from"]) == identity:
                return np.asarray(found["mask"])
    mask = np.zeros(grid.lat.shape, bool)
    progress = Progress("prepare: domain", sum(rows.stop - rows.start for rows in blocks))
    for rows, part in run_blocks(_observed_block, (grid, config.data.targets), blocks, workers):
        mask |= part
        progress.add(rows.stop - rows.start)
        if mask.all():
            break
    beside = kept.with_suffix(".partial")
    with beside.open("wb") as file:
        np.savez(file, mask=mask, made_from=identity)
    beside.replace(kept)
    return mask


def _observed_block(common: tuple[ModelGrid, tuple[str, ...]], rows: slice) -> Array:
    grid, targets = common
    return np.asarray(np.isfinite(grid.read(targets, rows)).any(axis=(0, 1)))


def _refuse_other_masks(config: Config, years: list[int], mask: Array) -> None:
    for year in years:
        if not np.array_equal(store.open_store(_path(config, year)).grid.mask.numpy(), mask):
            raise AqnetError(
                f"{_path(config, year)}: its domain mask differs from that of this config; remove "
                "the store or give another data.stores"
            )


def _print_plan(
    config: Config, grid: ModelGrid, years: list[int], missing: list[int], workers: int
) -> None:
    """Say what will be written, the time and packed size by those of the first hours."""
    print(f"prepare: {len(years)} years, {len(years) - len(missing)} complete", flush=True)
    if not missing:
        return
    names = dynamic_names(config.data)
    first = _rows(config, grid.sources, missing[0]).start
    began = time.monotonic()
    sample = grid.read(names, slice(first, first + store.HOURS_PER_SHARD)).astype(config.data.dtype)
    name = store.COMPRESSOR.encode()
    packed = [blosc.compress(hour, name, store.LEVEL, blosc.SHUFFLE) for hour in sample]
    seconds = 2 * (time.monotonic() - began) / len(sample)  # moments, checksums, flushing: as much
    hours = sum(
        rows.stop - rows.start for rows in (_rows(config, grid.sources, y) for y in missing)
    )
    size = hours * sample[0].nbytes / 1e9
    share = sum(len(chunk) for chunk in packed) / sample.nbytes
    place = Path(config.data.stores)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    height, width = grid.lat.shape
    print(
        f"prepare: to write {hours} hours of {len(names)} variables on {height} x {width} cells: "
        f"{size:.1f} GB, about {size * share:.1f} GB packed ({free:.0f} GB free), about "
        f"{seconds * hours / workers / 60:.1f} min (--workers {workers})",
        flush=True,
    )


@contextmanager
def _alone(directory: Path, only: list[int] | None) -> Iterator[None]:
    """Keep a second `prepare` out of one output directory, or out of these years of it."""
    locks = {".prepare.lock": fcntl.LOCK_SH if only else fcntl.LOCK_EX}
    locks |= {f".prepare.{year}.lock": fcntl.LOCK_EX for year in only or ()}
    with ExitStack() as held:
        for name, kind in locks.items():
            try:
                directory.mkdir(parents=True, exist_ok=True)
                lock = held.enter_context((directory / name).open("w"))
            except OSError as error:
                raise AqnetError(f"{directory}: cannot write the stores here: {error}") from None
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
            except OSError:
                raise AqnetError(
                    f"{directory}: another prepare writes here; wait for it or give another "
                    "data.stores"
                ) from None
        yield


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m aqnet.data.prepare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", required=True, help="YAML file")
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, write nothing")
    parser.add_argument(
        "--year", type=int, action="append", help="write only this one (or these), no statistics"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    config = configuration.load(arguments.config, arguments.overrides)
    prepare(config, max(1, arguments.workers), arguments.dry_run, arguments.year)


if __name__ == "__main__":
    run(main)
