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
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aqnet import config as configuration
from aqnet.config import Config
from aqnet.config.periods import hour_text
from aqnet.data import statistics
from aqnet.data.on_grid.model_grid import ModelGrid
from aqnet.data.prepare import domain, origin, shards, store_writer
from aqnet.data.prepare.parallel import ProgressLines, Workers
from aqnet.data.prepare.store_writer import StoreWriter
from aqnet.data.sources.several import open_sources
from aqnet.data.stores import store
from aqnet.errors import AqnetError
from aqnet.files import writing

Array = NDArray[Any]


def prepare(
    config: Config, workers: int = 0, dry_run: bool = False, only: list[int] | None = None
) -> None:
    """Write the stores of all years of the split, then their statistics.

    Args:
        workers: processes, each taking a block of hours at a time; 0: this one alone.
        dry_run: print the plan and write nothing.
        only: write the stores of these years, and no statistics.
    Raises:
        AqnetError: the sources lack a year or a variable, are damaged, differ from those of
            stores already there, no cell ever holds a target, or the stores cannot be written.
    """
    if workers < 0:
        raise AqnetError(f"--workers {workers}: expected 0 (this process alone) or more")
    sources = open_sources(config.data, write=not dry_run)
    years = config.data.split.years
    for year in only or ():
        if year not in years:
            raise AqnetError(f"--year: {year} is not in data.split, which has {years}")
    years = sorted(set(only)) if only else years
    for year in years:  # before anything is written
        sources.check_variables(config.data.stored, origin.year_rows(config, sources, year))
    grid = ModelGrid(config, sources)
    missing = [year for year in years if not origin.is_complete(config, sources, year)]
    _print_plan(config, grid, years, missing, workers)
    if dry_run:
        return
    with _alone(Path(config.data.stores), only), Workers(grid, workers) as pool:
        # another prepare may have come first
        missing = [year for year in missing if not origin.is_complete(config, sources, year)]
        mask = domain.domain(config, grid, pool)
        domain.refuse_other_masks(config, [year for year in years if year not in missing], mask)
        print(f"prepare: the domain has {int(mask.sum())} of {mask.size} cells", flush=True)
        if missing:
            _write_years(config, grid, missing, mask, pool)
        if only:
            return
        made = [store.open_store(origin.store_path(config, year)) for year in years]
        path = statistics.write(config, made)
    print(f"prepare: statistics in {path}", flush=True)


def _write_years(
    config: Config, grid: ModelGrid, years: list[int], mask: Array, workers: Workers
) -> None:
    where, static = grid.grid(mask)
    writers: dict[int, StoreWriter] = {}
    blocks: list[_Block] = []
    for year in years:
        rows = origin.year_rows(config, grid.sources, year)
        writers[year] = store_writer.create(
            origin.store_path(config, year),
            weather=config.data.stored_weather,
            air=config.data.targets,
            units={name: grid.sources.unit(name) for name in (*config.data.stored, *static)},
            time=grid.sources.times[rows],
            grid=where,
            static=static,
            source=origin.made_from(config, grid.sources, rows),
            dtype=config.data.dtype,
        )
        blocks += [
            _Block(year, block, rows.start, writers[year])
            for missing in writers[year].missing()
            for block in grid.blocks(missing.start, missing.stop)
        ]
    left = Counter(block.year for block in blocks)
    progress = ProgressLines("prepare", sum(block.rows.stop - block.rows.start for block in blocks))
    noise: Counter[str] = Counter()
    for year in years:
        if not left[year]:
            _commit(writers[year])
    for block, found in workers.run(_write_block, blocks):
        noise += found
        progress.add(block.rows.stop - block.rows.start)
        left[block.year] -= 1
        if not left[block.year]:
            _commit(block.writer)
    zeroed = ", ".join(f"{name} {n}" for name, n in sorted(noise.items()) if n)
    if zeroed:
        print(f"prepare: values from -0.01 to 0 ug/m3 set to 0: {zeroed}", flush=True)


def _commit(writer: StoreWriter) -> None:
    empty = writer.commit()
    steps = np.diff(writer.time)
    step = int(np.bincount(steps).argmax()) if len(steps) else 1
    note = f", every {step} h"
    if gaps := int((steps // step - 1).sum()):
        note += f", {gaps} missing between first and last"
    if len(empty):
        note += f"; {len(empty)} of them hold no value in the domain, first {hour_text(empty[0])}"
    print(f"prepare: {writer.path} written, {len(writer.time)} times{note}", flush=True)


class _Block(NamedTuple):
    """Rows of a year's store to be written; the store's first row is `start` of the sources."""

    year: int
    rows: slice
    start: int
    writer: StoreWriter


def _write_block(grid: ModelGrid, block: _Block) -> Counter[str]:
    """Write a block; returns how many values were packing noise."""
    grid.sources.noise.clear()
    rows = slice(block.start + block.rows.start, block.start + block.rows.stop)
    block.writer.write(block.rows.start, grid.read(block.writer.names, rows))
    return Counter(grid.sources.noise)


def _print_plan(
    config: Config, grid: ModelGrid, years: list[int], missing: list[int], workers: int
) -> None:
    """Say what will be written, the time and packed size by those of the first hours."""
    print(f"prepare: {len(years)} years, {len(years) - len(missing)} complete", flush=True)
    if not missing:
        return
    names = config.data.stored
    first = origin.year_rows(config, grid.sources, missing[0]).start
    began = time.monotonic()
    sample = grid.read(names, slice(first, first + store.HOURS_PER_SHARD)).astype(config.data.dtype)
    packed = [shards.packed(hour) for hour in sample]
    seconds = 2 * (time.monotonic() - began) / len(sample)  # moments, checksums, flushing: as much
    hours = sum(
        rows.stop - rows.start
        for rows in (origin.year_rows(config, grid.sources, y) for y in missing)
    )
    size = hours * sample[0].nbytes
    unit, scale = ("GB", 1e9) if size >= 1e9 else ("MB", 1e6)
    share = sum(len(chunk) for chunk in packed) / sample.nbytes
    place = Path(config.data.stores)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    height, width = grid.lat.shape
    print(
        f"prepare: to write {hours} hours of {len(names)} variables on {height} x {width} cells: "
        f"{size / scale:.1f} {unit}, about {size * share / scale:.1f} {unit} packed "
        f"({free:.0f} GB free), about "
        f"{seconds * hours / max(1, workers) / 60:.1f} min (--workers {workers})",
        flush=True,
    )


@contextmanager
def _alone(directory: Path, only: list[int] | None) -> Iterator[None]:
    """Keep a second `prepare` out of one output directory, or out of these years of it."""
    locks = {".prepare.lock": fcntl.LOCK_SH if only else fcntl.LOCK_EX}
    locks |= {f".prepare.{year}.lock": fcntl.LOCK_EX for year in only or ()}
    with ExitStack() as held:
        for name, kind in locks.items():
            with writing(directory, "give another data.stores"):
                directory.mkdir(parents=True, exist_ok=True)
                lock = held.enter_context((directory / name).open("w"))
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AqnetError(
                    f"{directory}: another prepare writes here; wait for it or give another "
                    "data.stores"
                ) from None
            except OSError as error:  # a Lustre mounted without flock, for one
                raise AqnetError(
                    f"{directory}: files cannot be locked on this file system ({error.strerror}); "
                    "give a data.stores on another, and copy the stores when they are written"
                ) from None
        yield


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m aqnet.data.prepare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", required=True, help="YAML file")
    parser.add_argument("--workers", type=int, default=0, help="processes (default 0: this one)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, write nothing")
    parser.add_argument(
        "--year", type=int, action="append", help="write only this one (or these), no statistics"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    config = configuration.load(arguments.config, arguments.overrides)
    prepare(config, arguments.workers, arguments.dry_run, arguments.year)
