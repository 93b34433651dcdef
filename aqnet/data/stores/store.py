"""The training store: one year of hourly fields, written whole or not at all.

A store is a Zarr v3 group YEAR.zarr that any Zarr reader opens:

    weather     [time, weather_channel, y, x]  variables that are no targets
    air         [time, air_channel, y, x]      targets
    daily_sum   [day, air_channel, y, x]       of `air`, over all hours up to the end of the day
    daily_count [day, air_channel, y, x]       how many of them have a value
    moments     [time, 3, channel]             count, mean and squared deviations over the mask
    static [static_channel, y, x], mask, lat, lon [y, x], time, day (CF)

The first four have one checksummed chunk per hour or day. Their shard files are read and written
here, not by zarr-python, which spends 0.8 ms on each chunk beside decompressing it (0.02 ms on
small grids), and whose event loop would have to be kept out of forked loader workers.
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

from aqnet.errors import AqnetError, one_line
from aqnet.grid import Grid

FORMAT_VERSION = 5
HOURS_PER_DAY = 24
HOURS_PER_SHARD = 48  # chunks in a file; of daily arrays as many days
# no array holds these, so that no Zarr reader takes a lost chunk for missing values
FILL, COUNT_FILL = -np.inf, 65535
COMPRESSOR: Literal["lz4"] = "lz4"
LEVEL = 5  # both chosen by benchmarks/data_loading.py
NO_CHUNK = np.iinfo(np.uint64).max  # in place of an offset
TIME_UNITS = "hours since 1970-01-01 00:00:00"
DAY_UNITS = "days since 1970-01-01"
_AGAIN = "remove it and prepare it again"

# what zarr and numpy raise at metadata that are not what was written
_UNREADABLE = (
    *(ValueError, RuntimeError, OSError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, AssertionError, NotImplementedError, ImportError),
)
_MOST_BYTES, _MOST_CHUNKS = 2**32, 2**20  # of arrays that are read whole; one of a year has less

Kind = Literal["weather", "air"]
KINDS: tuple[Kind, ...] = ("weather", "air")


class Chunks:
    """An array of a store, read one chunk (an hour, a day) at a time."""

    def __init__(self, folder: Path, array: zarr.Array[Any]) -> None:
        self._folder, self._steps = folder, array.shape[0]
        self._chunk_shape, self._dtype = array.shape[1:], array.dtype
        self._shards: dict[int, tuple[Path, NDArray[np.uint64]]] = {}  # file and index, once read

    def read(self, row: int) -> NDArray[Any]:
        """The chunk of `row`, without the first axis.

        Raises:
            ValueError, RuntimeError, OSError: it is missing or damaged.
        """
        number, place = divmod(row, HOURS_PER_SHARD)
        if number not in self._shards:
            path = shard_path(self._folder, row)
            self._shards[number] = path, _index(path)
        shard, index = self._shards[number]
        offset, length = index[place].tolist()
        if offset == NO_CHUNK:
            raise ValueError("its chunk was lost")
        with shard.open("rb") as file:
            if offset + length > os.fstat(file.fileno()).st_size:
                raise ValueError("its file is shorter than its index says")
            file.seek(offset)
            chunk = CRC32C().decode(file.read(length))
        values = np.empty(self._chunk_shape, self._dtype)
        # blosc believes its header: another size would leave memory unwritten, or be read beyond
        found = *np.frombuffer(chunk, "<u4", 1, 4), *np.frombuffer(chunk, "<u4", 1, 12)
        if found != (values.nbytes, len(chunk)):
            raise ValueError(f"its chunk unpacks to {found[0]} bytes, expected {values.nbytes}")
        blosc.decompress(chunk, values)
        return values

    def lost(self) -> list[int]:
        """First rows of the files that are not there."""
        rows = range(0, self._steps, HOURS_PER_SHARD)
        return [row for row in rows if not shard_path(self._folder, row).exists()]


class Store:
    """A finished store. It keeps no file open, so it may be forked and pickled at any time.

    Attributes:
        channels: names of the channels of `weather` and of `air`.
        units: of channels and statics.
        time: hours since 1970 UTC, shape [N].
        first_day, last_day: of the daily sums, since 1970.
        static: fields without a time by name, shape [H, W].
    """

    def __init__(self, path: Path, group: zarr.Group) -> None:
        attributes: dict[str, Any] = dict(group.attrs)
        _check_attributes(attributes)
        self.path = path
        self.attributes = attributes
        self.channels: dict[Kind, tuple[str, ...]] = {
            kind: tuple(attributes[kind]) for kind in KINDS
        }
        self.units: dict[str, str] = attributes["units"]
        self.checksum: str = attributes["checksum"]
        self.time: NDArray[np.int64] = _get(group, "time")
        days = _get(group, "day")
        self.first_day, self.last_day = int(days[0]), int(days[-1])
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
        air, steps = len(self.channels["air"]), len(self.time)
        shapes = {"weather": (steps, len(self.channels["weather"])), "air": (steps, air)}
        shapes = {kind: shape for kind, shape in shapes.items() if shape[1]}
        daily = dict.fromkeys(("daily_sum", "daily_count"), (len(days), air))
        self._chunks = {
            name: Chunks(path / name, _array(group, name, (*shape, *self.grid.shape)))
            for name, shape in {**shapes, **daily}.items()
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Channels of `weather`, then of `air`."""
        return self.channels["weather"] + self.channels["air"]

    def moments(self) -> NDArray[np.float64]:
        """Count, mean and sum of squared deviations of each time step and channel over the finite
        values in the mask, physical units, shape [N, 3, C]."""
        with _reading(self.path):
            return _get(zarr.open_group(self.path, mode="r"), "moments")

    def is_unchanged(self) -> bool:
        """Whether its files are those it was finished with; reads all of them."""
        return checksum(self.path) == self.checksum

    def read(self, row: int, kind: Kind | None = None) -> NDArray[np.float32]:
        """Fields of time step `row` in physical units, NaN where missing, float32 [C, H, W].

        Args:
            kind: of which channels, else of all `names`.
        Raises:
            AqnetError: a chunk is missing or damaged; store and time are named.
        """
        if kind is None:
            kinds = [kind for kind in KINDS if self.channels[kind]]
            return np.concatenate([self.read(row, kind) for kind in kinds])
        return self._chunk(kind, row).astype(np.float32, copy=False)

    def before(self, day: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Sum and number of the values of `air` before a day since 1970, each [C, H, W].

        Raises:
            AqnetError: a chunk is missing or damaged; store and day are named.
        """
        row = min(day - 1, self.last_day) - self.first_day
        if row < 0:
            shape = len(self.channels["air"]), *self.grid.shape
            return np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        total, count = (self._chunk(name, row) for name in ("daily_sum", "daily_count"))
        return total, count.astype(np.float32)

    def lost(self) -> list[str]:
        """Files of fields and daily sums that are not there, and what they held."""
        return [
            f"{shard_path(Path(name), row)} is missing, from {self._when(name, row)} on"
            for name, chunks in self._chunks.items()
            for row in chunks.lost()
        ]

    def _chunk(self, name: str, row: int) -> NDArray[Any]:
        try:
            return self._chunks[name].read(row)
        except (ValueError, RuntimeError, OSError) as error:
            raise AqnetError(
                f"{self.path}: the fields of {self._when(name, row)} cannot be read from {name} "
                f"({error}); {_AGAIN}"
            ) from None

    def _when(self, name: str, row: int) -> np.datetime64:
        if name.startswith("daily"):
            return np.datetime64(self.first_day + row, "D")
        return np.datetime64(int(self.time[row]), "h")


def is_store(path: Path) -> bool:
    """Whether `path` is a training store, finished or not."""
    try:
        return "format_version" in zarr.open_group(path, mode="r").attrs
    except _UNREADABLE:
        return False


def open_store(path: str | Path, *, whole: bool = True) -> Store:
    """Open a finished store.

    Args:
        whole: whether a missing shard file is an error here, or when it is read.
    Raises:
        AqnetError: it is missing, unfinished, of another format version, damaged, or not whole.
    """
    path = Path(path)
    if not path.is_dir():
        raise AqnetError(f"{path}: no such store; make it with python -m aqnet.data.prepare")
    try:
        group = zarr.open_group(path, mode="r")
    except _UNREADABLE as error:
        raise AqnetError(f"{path}: not a training store ({one_line(error)})") from None
    if not group.attrs.get("complete"):
        raise AqnetError(f"{path}: not a finished training store; {_AGAIN}")
    version = group.attrs.get("format_version")
    if version != FORMAT_VERSION:
        raise AqnetError(f"{path}: format version {version}, expected {FORMAT_VERSION}; {_AGAIN}")
    with _reading(path):
        store = Store(path, group)
    if whole and (lost := store.lost()):
        raise AqnetError(f"{path}: {lost[0]} ({len(lost)} files in all); {_AGAIN}")
    return store


def _check_attributes(attributes: dict[str, Any]) -> None:
    """Refuse attributes of a group that prepare would not have written.

    Raises:
        LookupError, TypeError: names one.
    """
    for name in (*KINDS, "static_names"):
        value = attributes[name]
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise TypeError(f"the attribute {name!r} is no list of names")
    for name, kind in (("units", dict), ("source", dict), ("checksum", str)):
        if not isinstance(attributes[name], kind):
            raise TypeError(f"the attribute {name!r} is no {kind.__name__}")
    units, source = attributes["units"], attributes["source"]
    for name, unit in units.items():
        if not isinstance(unit, str):
            raise TypeError(f"the attribute 'units' holds no unit of {name!r}")
    if files := source.get("first_last_and_count_of_files"):
        types = [type(part) for part in (*files, source["resample"])]
        if types != [str, str, int, str]:
            raise TypeError("the attribute 'source' is not what prepare writes")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say in one line that a store's files are not what was written."""
    try:
        yield
    except _UNREADABLE as error:
        raise AqnetError(f"{path}: damaged ({one_line(error)}); {_AGAIN}") from None


def _array(group: zarr.Group, name: str, shape: tuple[int, ...] | None = None) -> zarr.Array[Any]:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{name!r} is no array")
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name!r} holds {array.dtype}, expected numbers")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name!r} has shape {array.shape}, expected {shape}")
    return array


def _get(group: zarr.Group, name: str) -> NDArray[Any]:
    array = _array(group, name)
    if array.nbytes > _MOST_BYTES or array.nchunks > _MOST_CHUNKS:
        raise ValueError(f"{name!r} has shape {array.shape}, which no year needs")
    if array.nchunks_initialized != array.nchunks:  # Zarr would read zeros
        raise FileNotFoundError(f"the file of {name!r} is missing")
    return np.asarray(array[...])


def shard_path(array: Path, row: int) -> Path:
    """The file of an array's folder that holds the chunk of `row`."""
    return array / f"c/{row // HOURS_PER_SHARD}/0/0/0"


def _index(shard: Path) -> NDArray[np.uint64]:
    """(offset, length) of each chunk of a shard file, [HOURS_PER_SHARD, 2], from the checksummed
    index at its end.

    Raises:
        OSError, RuntimeError: the file is missing or shorter than its index; the index is damaged.
        ValueError: two hours share bytes of the file.
    """
    with shard.open("rb") as file:
        file.seek(-HOURS_PER_SHARD * 16 - 4, os.SEEK_END)
        index: NDArray[np.uint64] = CRC32C().decode(file.read()).view("<u8").reshape(-1, 2)
    held = index[index[:, 0] != NO_CHUNK]
    held = held[held[:, 0].argsort()]
    # a difference of offsets, as the sum of an offset and a length may not fit in 64 bits
    if (np.diff(held[:, 0]) < held[:-1, 1]).any():
        raise ValueError("two chunks of its index overlap")
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
