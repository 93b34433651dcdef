"""The training store: one year of packed hourly fields, written whole or not at all.

A store is a Zarr v3 group YEAR.zarr: `fields` [time, channel, y, x] with one checksummed chunk per
time step, `static` [channel, y, x], `mask` [y, x], `time` (CF hours), `lat` and `lon` [y, x].
Any Zarr reader opens it. The shard files of `fields` are read and written here, not by zarr-python,
which spends 0.8 ms on each chunk beside decompressing it (0.02 ms on small grids), and whose event
loop would have to be kept out of forked loader workers.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import zarr
from numcodecs import blosc
from numcodecs.checksum32 import CRC32C
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from aqnet.batch import Grid
from aqnet.checkpoint_files import sync
from aqnet.errors import AqnetError

FORMAT_VERSION = 3
HOURS_PER_SHARD = 48
FILL = -np.inf  # no field holds it, so that no Zarr reader takes a lost chunk for missing values
COMPRESSOR: Literal["lz4"] = "lz4"
LEVEL = 5  # both chosen by benchmarks/data_loading.py
NO_CHUNK = np.iinfo(np.uint64).max  # in place of an offset
TIME_UNITS = "hours since 1970-01-01 00:00:00"


@dataclass(frozen=True, eq=False)
class StoreWriter:
    """A store in the making at PATH.partial; `commit` gives it its name."""

    path: Path
    partial: Path
    group: zarr.Group

    def write(self, start_row: int, block: NDArray[np.float32]) -> None:
        """Write time steps start_row, start_row + 1, ...; block is [n, C, H, W], NaN = missing.

        `start_row` is a multiple of HOURS_PER_SHARD, and so is n, save at the store's end.

        Raises:
            AqnetError: the file system refuses (no space left, for one).
        """
        fields = self.group["fields"]
        assert isinstance(fields, zarr.Array)
        end = start_row + len(block)
        assert start_row % HOURS_PER_SHARD == 0
        assert end % HOURS_PER_SHARD == 0 or end == fields.shape[0]
        for first in range(0, len(block), HOURS_PER_SHARD):
            hours = block[first : first + HOURS_PER_SHARD].astype(fields.dtype, copy=False)
            shard = _shard(self.partial, start_row + first)
            try:
                _write_shard(shard, hours)
            except OSError as error:
                raise AqnetError(
                    f"{shard}: cannot be written ({error.strerror}); make room, or give another "
                    "data.stores, and start again"
                ) from None

    def commit(self) -> None:
        """Check that the store is whole, flush it to disk and rename it to its final name.

        Raises:
            AqnetError: a time step was never written.
        """
        time = _get(self.group, "time")
        for row in range(0, len(time), HOURS_PER_SHARD):
            if not _shard(self.partial, row).exists():
                hour = np.datetime64(int(time[row]), "h")
                raise AqnetError(f"{self.partial}: the fields of {hour} were never written")
        self.group.attrs["checksum"] = _checksum(self.partial)
        self.group.attrs["complete"] = True
        for file in self.partial.rglob("*"):
            if file.is_file():
                sync(file)
        if self.path.exists():
            raise AqnetError(f"{self.path}: exists already; remove it to prepare it again")
        self.partial.rename(self.path)
        sync(self.path.parent)


def create(
    path: str | Path,
    *,
    names: tuple[str, ...],
    units: dict[str, str],
    time: NDArray[np.int64],
    grid: Grid,
    static: dict[str, NDArray[np.float32]],
    source: dict[str, Any],
    dtype: str = "float32",
) -> StoreWriter:
    """Begin a store beside `path`, replacing an unfinished one.

    Args:
        names: channels of `fields`; units: of channels and statics, physical.
        time: hours since 1970 UTC, ascending, shape [N]; static: name to [H, W].
        source: what the store was made from, kept as attributes.
    Raises:
        AqnetError: a finished store stands at `path`.
    """
    path = Path(path)
    if path.exists():
        raise AqnetError(f"{path}: exists already; remove it to prepare it again")
    partial = path.with_name(path.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    group = zarr.open_group(partial, mode="w", zarr_format=3)
    attributes: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "names": list(names),
        "units": units,
        "static_names": list(static),
        "source": source,
        "complete": False,
    }
    group.attrs.update(attributes)
    height, width = grid.shape
    group.create_array(
        "fields",
        shape=(len(time), len(names), height, width),
        chunks=(1, len(names), height, width),
        shards=(HOURS_PER_SHARD, len(names), height, width),
        dtype=dtype,
        fill_value=FILL,
        compressors=[BloscCodec(cname=COMPRESSOR, clevel=LEVEL, shuffle="shuffle"), Crc32cCodec()],
        dimension_names=("time", "channel", "y", "x"),
        attributes={"coordinates": "lat lon"},
    )
    statics = np.stack(list(static.values())) if static else np.zeros((0, height, width))
    _put(group, "static", statics.astype(np.float32), ("static_channel", "y", "x"))
    _put(group, "mask", grid.mask.numpy(), ("y", "x"))
    _put(group, "time", time, ("time",), units=TIME_UNITS, calendar="proleptic_gregorian")
    _put(group, "lat", grid.lat.numpy(), ("y", "x"), units="degrees_north")
    _put(group, "lon", grid.lon.numpy(), ("y", "x"), units="degrees_east")
    return StoreWriter(path, partial, group)


class Store:
    """A finished store. It keeps no file open, so it may be forked and pickled at any time."""

    def __init__(self, path: Path, group: zarr.Group) -> None:
        attributes: dict[str, Any] = dict(group.attrs)
        self.path = path
        self.attributes = attributes
        self.names: tuple[str, ...] = tuple(attributes["names"])
        self.units: dict[str, str] = attributes["units"]
        self.checksum = str(attributes["checksum"])
        self.time: NDArray[np.int64] = _get(group, "time")
        statics = _get(group, "static")
        static_names: list[str] = attributes["static_names"]
        lat, lon = _get(group, "lat"), _get(group, "lon")
        # the coordinates are statics too, whether or not the store lists them
        self.static = dict(zip(static_names, statics, strict=True)) | {"lat2d": lat, "lon2d": lon}
        elevation = self.static.get("elevation")
        self.grid = Grid(
            torch.from_numpy(lat),
            torch.from_numpy(lon),
            None if elevation is None else torch.from_numpy(elevation),
            torch.from_numpy(_get(group, "mask")),
        )
        fields = group["fields"]
        assert isinstance(fields, zarr.Array)
        self._chunk_shape, self._dtype = fields.shape[1:], fields.dtype
        self._indices: dict[int, NDArray[np.uint64]] = {}  # of the shards read so far

    def read(self, row: int) -> NDArray[np.float32]:
        """Fields of time step `row` in physical units, NaN where missing, float32 [C, H, W].

        Raises:
            AqnetError: the chunk is missing or damaged; store and time are named.
        """
        number, place = divmod(row, HOURS_PER_SHARD)
        shard = _shard(self.path, row)
        try:
            if number not in self._indices:
                self._indices[number] = _index(shard)
            offset, length = self._indices[number][place].tolist()
            if offset == NO_CHUNK:
                raise ValueError("its chunk was lost")
            with shard.open("rb") as file:
                file.seek(offset)
                chunk = CRC32C().decode(file.read(length))
            values = np.empty(self._chunk_shape, self._dtype)
            blosc.decompress(chunk, values)
        except (ValueError, RuntimeError, OSError) as error:
            time = np.datetime64(int(self.time[row]), "h")
            raise AqnetError(
                f"{self.path}: the fields of {time} cannot be read ({error}); "
                "remove the store and prepare it again"
            ) from None
        return values.astype(np.float32, copy=False)


def open_store(path: str | Path) -> Store:
    """Open a finished store.

    Raises:
        AqnetError: it is missing, unfinished, of another format version, or lacks shard files.
    """
    path, again = Path(path), "remove it and prepare it again"
    if not path.is_dir():
        raise AqnetError(f"{path}: no such store; make it with python -m aqnet.data.prepare")
    try:
        group = zarr.open_group(path, mode="r")
    except (ValueError, FileNotFoundError) as error:
        raise AqnetError(f"{path}: not a training store ({error})") from None
    if not group.attrs.get("complete"):
        raise AqnetError(f"{path}: not a finished training store; {again}")
    version = group.attrs.get("format_version")
    if version != FORMAT_VERSION:
        raise AqnetError(f"{path}: format version {version}, expected {FORMAT_VERSION}; {again}")
    store = Store(path, group)
    shards = sum(1 for file in (path / "fields").rglob("*") if file.is_file()) - 1
    expected = -(-len(store.time) // HOURS_PER_SHARD)
    if shards != expected:
        raise AqnetError(
            f"{path}: {shards} files of fields, expected {expected}; prepare the store again"
        )
    return store


def _put(
    group: zarr.Group, name: str, values: NDArray[Any], dims: tuple[str, ...], **attributes: Any
) -> None:
    array = group.create_array(name, data=values, dimension_names=dims, attributes=attributes)
    assert array.shape == values.shape


def _get(group: zarr.Group, name: str) -> NDArray[Any]:
    array = group[name]
    assert isinstance(array, zarr.Array)
    return np.asarray(array[...])


def _shard(store: Path, row: int) -> Path:
    return store / f"fields/c/{row // HOURS_PER_SHARD}/0/0/0"


def _write_shard(shard: Path, hours: NDArray[Any]) -> None:
    """Write one shard file (sharding codec of the Zarr v3 specification) beside, then rename it:
    the chunks of `hours` [n, C, H, W], the index of their places, and its checksum."""
    index = np.full((HOURS_PER_SHARD, 2), NO_CHUNK, dtype="<u8")
    shard.parent.mkdir(parents=True, exist_ok=True)
    beside = shard.with_suffix(".partial")
    offset = 0
    with beside.open("wb") as file:
        for place, values in enumerate(hours):
            packed = blosc.compress(
                np.ascontiguousarray(values), COMPRESSOR.encode(), LEVEL, blosc.SHUFFLE
            )
            length = file.write(CRC32C().encode(packed))
            index[place] = offset, length
            offset += length
        file.write(CRC32C().encode(index))
    beside.replace(shard)


def _index(shard: Path) -> NDArray[np.uint64]:
    """(offset, length) of each chunk of a shard file, [HOURS_PER_SHARD, 2], from the checksummed
    index at its end.

    Raises:
        OSError, RuntimeError: the file is missing or shorter than its index; the index is damaged.
    """
    with shard.open("rb") as file:
        file.seek(-HOURS_PER_SHARD * 16 - 4, os.SEEK_END)
        index: NDArray[np.uint64] = CRC32C().decode(file.read()).view("<u8").reshape(-1, 2)
    return index


def _checksum(folder: Path) -> str:
    """SHA-256 over the array files (not the group's own attributes) in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if file.parent != folder:
            digest.update(str(file.relative_to(folder)).encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
