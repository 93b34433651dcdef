"""The training store: one year of packed hourly fields, written whole or not at all.

A store is a Zarr v3 group YEAR.zarr: `fields` [time, channel, y, x] with one checksummed chunk per
time step, `static` [channel, y, x], `mask` [y, x], `time` (CF hours), `lat` and `lon` [y, x], and
`moments` [time, 3, channel] (count, mean and squared deviations of `fields` over the mask).
Any Zarr reader opens it. The shard files of `fields` are read and written here, not by zarr-python,
which spends 0.8 ms on each chunk beside decompressing it (0.02 ms on small grids), and whose event
loop would have to be kept out of forked loader workers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import zarr
from numcodecs import blosc
from numcodecs.checksum32 import CRC32C
from numpy.typing import NDArray

from aqnet.errors import AqnetError
from aqnet.grid import Grid

FORMAT_VERSION = 4
HOURS_PER_SHARD = 48
FILL = -np.inf  # no field holds it, so that no Zarr reader takes a lost chunk for missing values
COMPRESSOR: Literal["lz4"] = "lz4"
LEVEL = 5  # both chosen by benchmarks/data_loading.py
NO_CHUNK = np.iinfo(np.uint64).max  # in place of an offset
TIME_UNITS = "hours since 1970-01-01 00:00:00"
_AGAIN = "remove it and prepare it again"


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
        fields = _array(group, "fields")
        self._chunk_shape, self._dtype = fields.shape[1:], fields.dtype
        self._indices: dict[int, NDArray[np.uint64]] = {}  # of the shards read so far

    def moments(self) -> NDArray[np.float64]:
        """Count, mean and sum of squared deviations of each time step and channel over the finite
        values in the mask, physical units, shape [N, 3, C]."""
        with _reading(self.path):
            return _get(zarr.open_group(self.path, mode="r"), "moments")

    def is_unchanged(self) -> bool:
        """Whether its files are those it was finished with; reads all of them."""
        return checksum(self.path) == self.checksum

    def read(self, row: int) -> NDArray[np.float32]:
        """Fields of time step `row` in physical units, NaN where missing, float32 [C, H, W].

        Raises:
            AqnetError: the chunk is missing or damaged; store and time are named.
        """
        number, place = divmod(row, HOURS_PER_SHARD)
        shard = shard_path(self.path, row)
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


def is_store(path: Path) -> bool:
    """Whether `path` is a training store, finished or not."""
    try:
        return "format_version" in zarr.open_group(path, mode="r").attrs
    except (ValueError, OSError):
        return False


def open_store(path: str | Path, *, whole: bool = True) -> Store:
    """Open a finished store.

    Args:
        whole: whether a missing shard file is an error here, or when its hours are read.
    Raises:
        AqnetError: it is missing, unfinished, of another format version, damaged, or not whole.
    """
    path = Path(path)
    if not path.is_dir():
        raise AqnetError(f"{path}: no such store; make it with python -m aqnet.data.prepare")
    try:
        group = zarr.open_group(path, mode="r")
    except (ValueError, OSError) as error:
        raise AqnetError(f"{path}: not a training store ({error})") from None
    if not group.attrs.get("complete"):
        raise AqnetError(f"{path}: not a finished training store; {_AGAIN}")
    version = group.attrs.get("format_version")
    if version != FORMAT_VERSION:
        raise AqnetError(f"{path}: format version {version}, expected {FORMAT_VERSION}; {_AGAIN}")
    with _reading(path):
        store = Store(path, group)
    rows = range(0, len(store.time) if whole else 0, HOURS_PER_SHARD)
    lost = [row for row in rows if not shard_path(path, row).exists()]
    if lost:
        raise AqnetError(
            f"{path}: {shard_path(path, lost[0]).relative_to(path)} is missing, the fields from "
            f"{np.datetime64(int(store.time[lost[0]]), 'h')} on ({len(lost)} in all); {_AGAIN}"
        )
    return store


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say in one line that a store's files are not what was written."""
    try:
        yield
    except (ValueError, RuntimeError, OSError, KeyError, TypeError) as error:
        raise AqnetError(f"{path}: damaged ({error}); {_AGAIN}") from None


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{name!r} is no array")
    return array


def _get(group: zarr.Group, name: str) -> NDArray[Any]:
    array = _array(group, name)
    if array.nchunks_initialized != array.nchunks:  # Zarr would read zeros
        raise FileNotFoundError(f"the file of {name!r} is missing")
    return np.asarray(array[...])


def shard_path(store: Path, row: int) -> Path:
    """The file of `store` that holds time step `row`."""
    return store / f"fields/c/{row // HOURS_PER_SHARD}/0/0/0"


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


def checksum(folder: Path, known: Mapping[str, str] | None = None) -> str:
    """SHA-256 over the array files (not the group's own attributes) in the order of their names.

    Args:
        known: SHA-256 of files by their names in `folder`, which are then not read again.
    """
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.glob("*/**/*") if path.is_file()):
        name = str(file.relative_to(folder))
        if name.startswith("receipts/"):
            continue
        digest.update(name.encode())
        if known is not None and name in known:
            digest.update(bytes.fromhex(known[name]))
            continue
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
