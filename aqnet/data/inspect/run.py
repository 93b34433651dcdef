"""What a source file or a training store holds, and everything that is wrong with it.

    python -m aqnet.data.inspect PATH [--png FILE_OR_DIR]

PATH is a training store, an AQ_NET2 yearly Zarr store, a NetCDF file (CAQRA, CAMS, CF), which may
be in an archive (ARCHIVE.tar.gz/FILE.nc), or a GRIB file. Exit status: 0 where no problem was
found, 1 where some were, 2 where PATH does not exist or is a folder or an archive of such files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aqnet.config import STATIC_VARIABLES
from aqnet.data.inspect.findings import Findings, Variable
from aqnet.data.prepare.parallel import ProgressLines
from aqnet.data.sources import units
from aqnet.data.sources.files import caqra
from aqnet.data.sources.files.formats import chunks_without_values
from aqnet.data.sources.files.source_file import SourceFile, open_file
from aqnet.data.stores import store
from aqnet.errors import AqnetError

_BLOCK_BYTES = 64 * 2**20

Array = NDArray[Any]


def inspect(path: Path) -> Findings:
    """Read everything in `path` once.

    Raises:
        AqnetError: there is no such file or folder, or it only holds some to inspect.
    """
    _refuse_collections(path)
    found = Findings(path)
    try:
        if store.is_store(path):
            _training_store(found)
        else:
            with open_file(path) as file:
                _source(found, file)
    except AqnetError as error:
        found.problems.append(str(error))
    on_disk = path.parent if caqra.is_archive(path.parent) else path
    files = [file for file in (on_disk, *on_disk.rglob("*")) if file.is_file()]
    found.facts["size"] = f"{sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"
    found.facts["size"] += f" in {len(files):,} files" if path.is_dir() else ""
    return found


def _refuse_collections(path: Path) -> None:
    inside: list[Path] = []
    if caqra.is_archive(path.parent):
        caqra.member(path)
    elif not path.exists():
        raise AqnetError(f"{path}: no such file or folder")
    elif caqra.is_archive(path):
        inside = caqra.expanded([path])
    elif path.is_dir():
        inside = sorted([*path.glob("*.zarr"), *path.glob("*.nc"), *path.glob("*.tar*")])
    if inside:
        raise AqnetError(
            f"{path}: holds {len(inside)} stores or files; inspect one at a time, {inside[0]} for "
            "one"
        )


def _training_store(found: Findings) -> None:
    opened = store.open_store(found.path, whole=False)
    found.kind = f"training store, format {store.FORMAT_VERSION}"
    found.set_times(opened.time)
    found.set_grid(opened.grid.lat.numpy(), opened.grid.lon.numpy(), opened.grid.mask.numpy())
    source = opened.attributes["source"]
    if source.get("first_last_and_count_of_files"):
        first, last, count = source["first_last_and_count_of_files"]
        found.facts["made from"] = first if count == 1 else f"{count:,} files, {first} to {last}"
        found.facts["made from"] += f", resample: {source['resample']}"
    found.facts["storage"] = (
        f"{len(opened.names)} variables x 1 hour a chunk, {store.HOURS_PER_SHARD} hours a file"
    )
    for name, values in opened.static.items():
        if name in opened.attributes["static_names"]:
            found.add(_stored(found, opened, name), values[None], None)
    variables = [_stored(found, opened, name) for name in opened.names]
    for rows in _progressing(len(opened.time), store.HOURS_PER_SHARD):
        shape = (rows.stop - rows.start, len(variables), *opened.grid.shape)
        block = np.full(shape, np.nan, np.float32)
        for row in range(rows.start, rows.stop):
            try:
                block[row - rows.start] = opened.read(row)
            except AqnetError as error:
                found.unreadable(slice(row, row + 1), error)
        for channel, variable in enumerate(variables):
            found.add(variable, block[:, channel], rows.start)
    found.conclude(len(opened.time))
    if not found.problems and not opened.is_unchanged():
        found.problems.append("its files are not those it was finished with (SHA-256)")


def _stored(found: Findings, opened: store.Store, name: str) -> Variable:
    unit = opened.units.get(name, "")
    return found.begin(name, units.Conversion(1.0, 0.0, unit), unit)


def _source(found: Findings, file: SourceFile) -> None:
    kind = "GRIB" if found.path.suffix.startswith(".gr") else "NetCDF"
    found.kind = f"{'Zarr' if found.path.is_dir() else kind} source"
    try:
        found.set_times(file.times.valid)
    except AqnetError as error:
        found.problems.append(str(error))
    try:
        found.set_grid(file.cells.lat, file.cells.lon, None)
    except AqnetError as error:
        found.problems.append(str(error))
    if found.lat is None:
        return  # without a grid nothing tells a field from its coordinates
    chunks: set[str] = set()
    steps = 0
    for name in file.names:
        if not _may_be_field(file, name):
            continue
        if found.times is None and len(file.dims(name)) > 2:
            found.unusable.append(name)
            continue
        timed = name not in STATIC_VARIABLES and _has_time(found, file, name)
        try:
            dims, single = file.layout(name, timed)
        except AqnetError as error:
            if units.canonical_unit(name) is None:
                found.facts[f"not used: {name}"] = f"dimensions {', '.join(file.dims(name))}"
            else:
                found.problems.append(str(error))
                found.unusable.append(name)
            continue
        if single:
            found.facts[f"only one: {name}"] = ", ".join(single)
        if file.dims(name) != dims and not single:
            found.facts[f"turned: {name}"] = f"from {', '.join(file.dims(name))}"
        if note := chunks_without_values(found.path, name):
            found.facts[f"chunks: {name}"] = note
        if timed:
            chunk = file.chunk(name)
            chunks.add(" x ".join(str(size) for size in chunk) if chunk else "whole fields")
            steps = len(file.times.valid)
        _field(found, file, name, steps if timed else None)
    found.facts["chunks"] = ", ".join(sorted(chunks))
    found.conclude(steps)


def _may_be_field(file: SourceFile, name: str) -> bool:
    """Whether a variable holds numbers in two dimensions and is no coordinate."""
    return file.kind(name) in "fiu" and len(file.dims(name)) > 1 and name not in file.cells.names


def _has_time(found: Findings, file: SourceFile, name: str) -> bool:
    """Whether a field has a value for each hour: along time, or in a file of one hour."""
    if found.times is None:
        return False
    return bool(set(file.times.dims) & set(file.dims(name))) or len(found.times) == 1


def _field(found: Findings, file: SourceFile, name: str, steps: int | None) -> None:
    """Take in a field of `steps` hours, or (None) one without time."""
    variable = found.begin(name, _conversion(found, file, name), file.unit(name) or "")
    cells = int(np.prod(file.cells.lat.shape))
    chunk = file.chunk(name)
    at_once = chunk[0] if chunk and steps and len(chunk) > 2 else 1
    at_once *= max(1, _BLOCK_BYTES // (8 * at_once * cells))
    for rows in _progressing(steps or 1, at_once):
        try:
            raw = file.read(name, rows) if steps else file.read(name)[None]
        except AqnetError as error:
            found.unreadable(rows, error)
            continue
        found.add(variable, raw, rows.start if steps else None)


def _conversion(found: Findings, file: SourceFile, name: str) -> units.Conversion:
    """The conversion to aqnet's unit; a unit that cannot be read is a problem."""
    unit = file.unit(name)
    if units.canonical_unit(name) is not None and name not in ("lat2d", "lon2d"):
        try:
            return units.conversion(name, unit, f"{name!r}")
        except AqnetError as error:
            found.problems.append(str(error))
    return units.Conversion(1.0, 0.0, unit or "")


def _progressing(rows: int, at_once: int) -> Iterator[slice]:
    """Slices of `at_once` rows, with a line on stderr where they take long."""
    progress = ProgressLines("inspect", rows, sys.stderr)
    for start in range(0, rows, at_once):
        yield slice(start, min(start + at_once, rows))
        progress.add(at_once)


def draw(found: Findings, target: Path) -> Path:
    """The mean map of every field in one picture; returns the file.

    Raises:
        AqnetError: matplotlib is not installed, or there is no field to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise AqnetError("--png needs matplotlib; install it with pip install 'aqnet[maps]'") from (
            None
        )
    variables = [variable for variable in found.variables.values() if variable.counts is not None]
    if not variables:
        raise AqnetError(f"{found.path}: holds no field to draw")
    if target.suffix != ".png":
        target = target / f"{found.path.stem}.png"
    columns = min(4, len(variables))
    rows = -(-len(variables) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    figure.suptitle(f"{found.path.name}: means of {found.span()}")
    for place, variable in enumerate(variables, start=1):
        _map(figure, figure.add_subplot(rows, columns, place), found, variable)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    return target


def _map(figure: Any, axes: Any, found: Findings, variable: Variable) -> None:
    mean = variable.mean_map()
    colours: dict[str, Any] = {"cmap": "viridis"}
    if variable.name in ("u", "v") and np.isfinite(mean).any():
        reach = float(np.nanmax(np.abs(mean)))
        colours = {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach}
    if found.lat is None or found.lon is None:
        drawn = axes.imshow(mean, **colours)
    else:
        drawn = axes.pcolormesh(found.lon, found.lat, mean, shading="nearest", **colours)
    figure.colorbar(drawn, ax=axes)
    axes.set_title(f"{variable.name} [{variable.convert.unit or '?'}]", fontsize=10)
    axes.tick_params(labelsize=7)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m aqnet.data.inspect", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("path", type=Path, metavar="PATH")
    parser.add_argument("--png", type=Path, metavar="FILE_OR_DIR", help="draw the mean maps there")
    arguments = parser.parse_args()
    found = inspect(arguments.path)
    print(found.text(), flush=True)
    if arguments.png is not None:
        print(f"written: {draw(found, arguments.png)}", flush=True)
    return 1 if found.problems else 0
