"""Writing a training store: begun at YEAR.zarr.partial, in blocks of hours by any number of
processes, resumed after an interruption, and renamed once it is whole.

A block is flushed to the disk before its receipt in YEAR.zarr.partial/receipts says what it holds
(moments of each hour over the domain, SHA-256 of its shard files); what has no receipt is written
again. The store is marked complete, the receipts go, and then it gets its name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import blosc
from numcodecs.checksum32 import CRC32C
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from aqnet.data.moments import moments
from aqnet.data.store import (
    COMPRESSOR,
    FILL,
    FORMAT_VERSION,
    HOURS_PER_SHARD,
    LEVEL,
    NO_CHUNK,
    TIME_UNITS,
    checksum,
    shard_path,
)
from aqnet.errors import AqnetError
from aqnet.files import partial_of, sync, write_beside
from aqnet.grid import Grid

_VALUES_AT_ONCE = 2_000_000  # whose moments are taken in float64


@dataclass(frozen=True, eq=False)
class StoreWriter:
    """A store in the making; it may be pickled to other processes, each writing other blocks.

    Attributes:
        path: the name that the store will have; partial: where it is until `commit`.
        names: of the channels.
        time: hours since 1970 UTC, shape [N]; mask: the domain, bool, shape [H, W].
    """

    path: Path
    partial: Path
    names: tuple[str, ...]
    time: NDArray[np.int64]
    mask: NDArray[np.bool_]
    dtype: str

    def write(self, start_row: int, block: NDArray[np.float32]) -> None:
        """Write time steps start_row, start_row + 1, ...; block is [n, C, H, W], NaN = missing.

        `start_row` is a multiple of HOURS_PER_SHARD, and so is n, save at the store's end.

        Raises:
            AqnetError: the file system refuses (no space left, for one).
        """
        end = start_row + len(block)
        assert start_row % HOURS_PER_SHARD == 0
        assert end % HOURS_PER_SHARD == 0 or end == len(self.time)
        with np.errstate(over="ignore"):
            stored = block.astype(self.dtype, copy=False)
        if self.dtype == "float16":  # psfc in Pa, for one, goes beyond its 65,504
            beyond = np.isinf(stored).any(axis=(0, 2, 3))
            for name in np.array(self.names)[beyond]:
                raise AqnetError(
                    f"{str(name)!r} has values beyond float16; set data.dtype: float32"
                )
        with writing(self.partial):
            digests = {}
            for first in range(0, len(stored), HOURS_PER_SHARD):
                file = shard_path(self.partial, start_row + first)
                digest = _write_shard(file, stored[first : first + HOURS_PER_SHARD])
                digests[str(file.relative_to(self.partial))] = digest
            receipt = self._receipts / f"{start_row}.npz"
            with write_beside(receipt) as stream:
                np.savez(stream, moments=self._moments(stored), digests=json.dumps(digests))

    def missing(self) -> list[range]:
        """Blocks of rows that are still to be written, each beginning at a shard."""
        if _attributes(self.partial).get("complete"):  # its receipts may be gone
            return []
        written = np.zeros(len(self.time), bool)
        for start, measured, _ in self._written():
            written[start : start + len(measured)] = True
        edges = np.flatnonzero(np.diff(written, prepend=True, append=True))
        return [range(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]

    def commit(self) -> NDArray[np.int64]:
        """Check that the store is whole, flush it to disk and rename it to its final name.

        Returns:
            The times at which no value is present in the domain.
        Raises:
            AqnetError: a time step was never written, or the file system refuses.
        """
        if self.path.exists():
            raise AqnetError(f"{self.path}: exists already; remove it to prepare it again")
        with writing(self.partial):
            group = zarr.open_group(self.partial, mode="r+")
            if not group.attrs.get("complete"):
                self._complete(group)
            measured = group["moments"]
            assert isinstance(measured, zarr.Array)
            empty = self.time[np.asarray(measured[:, 0]).sum(axis=1) == 0]
            shutil.rmtree(self._receipts, ignore_errors=True)
            self.partial.rename(self.path)
            sync(self.path.parent)
        return empty

    def _complete(self, group: zarr.Group) -> None:
        for rows in self.missing():
            hour = np.datetime64(int(self.time[rows.start]), "h")
            raise AqnetError(f"{self.partial}: the fields of {hour} were never written")
        written = list(self._written())
        measured = np.concatenate([measured for _, measured, _ in written])
        put(group, "moments", measured, ("time", "moment", "channel"), overwrite=True)
        known = {name: digest for _, _, digests in written for name, digest in digests.items()}
        self_made = (file for file in self.partial.rglob("*") if self._receipts not in file.parents)
        for file in self_made:
            if file.is_dir() or str(file.relative_to(self.partial)) not in known:
                sync(file)
        group.attrs["checksum"] = checksum(self.partial, known)
        group.attrs["complete"] = True
        sync(self.partial / "zarr.json")

    def _moments(self, block: NDArray[Any]) -> NDArray[np.float64]:
        flat, cells = block.reshape(*block.shape[:2], -1), np.flatnonzero(self.mask)
        hours = max(1, _VALUES_AT_ONCE // (block.shape[1] * max(1, len(cells))))
        parts = range(0, len(block), hours)
        return np.concatenate([moments(flat[at : at + hours].take(cells, axis=2)) for at in parts])

    @property
    def _receipts(self) -> Path:
        return self.partial / "receipts"

    def _written(self) -> Iterator[tuple[int, NDArray[np.float64], dict[str, str]]]:
        """First row, moments and digests of each block written, ascending."""
        for file in sorted(self._receipts.glob("*.npz"), key=lambda file: int(file.stem)):
            with np.load(file) as receipt:
                digests: dict[str, str] = json.loads(str(receipt["digests"]))
                # a power failure may keep a receipt and lose the name of what it is for
                if all((self.partial / name).exists() for name in digests):
                    yield int(file.stem), receipt["moments"], digests


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
    """Begin a store beside `path`, or go on with one begun alike; another unfinished one goes.

    Args:
        names: channels of `fields`; units: of channels and statics, physical.
        time: hours since 1970 UTC, ascending, shape [N]; static: name to [H, W].
        source: what the store was made from, kept as attributes.
    Raises:
        AqnetError: a finished store stands at `path`, or the file system refuses.
    """
    path = Path(path)
    if path.exists():
        raise AqnetError(f"{path}: exists already; remove it to prepare it again")
    height, width = grid.shape
    statics = np.stack(list(static.values())) if static else np.zeros((0, height, width))
    arrays: dict[str, tuple[NDArray[Any], tuple[str, ...], dict[str, Any]]] = {
        "static": (statics.astype(np.float32), ("static_channel", "y", "x"), {}),
        "mask": (grid.mask.numpy(), ("y", "x"), {}),
        "time": (time, ("time",), {"units": TIME_UNITS, "calendar": "proleptic_gregorian"}),
        "lat": (grid.lat.numpy(), ("y", "x"), {"units": "degrees_north"}),
        "lon": (grid.lon.numpy(), ("y", "x"), {"units": "degrees_east"}),
    }
    attributes: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "names": list(names),
        "units": units,
        "static_names": list(static),
        "source": source,
    }
    digest = hashlib.sha256(json.dumps([attributes, dtype], sort_keys=True).encode())
    for values, _, _ in arrays.values():
        digest.update(np.ascontiguousarray(values).data)
    begun = digest.hexdigest()
    writer = StoreWriter(path, partial_of(path), names, time, arrays["mask"][0], dtype)
    if _attributes(writer.partial).get("begun") == begun:
        return writer
    shutil.rmtree(writer.partial, ignore_errors=True)
    with writing(writer.partial):
        group = zarr.open_group(writer.partial, mode="w", zarr_format=3)
        group.create_array(
            "fields",
            shape=(len(time), len(names), height, width),
            chunks=(1, len(names), height, width),
            shards=(HOURS_PER_SHARD, len(names), height, width),
            dtype=dtype,
            fill_value=FILL,
            compressors=[
                BloscCodec(cname=COMPRESSOR, clevel=LEVEL, shuffle="shuffle"),
                Crc32cCodec(),
            ],
            dimension_names=("time", "channel", "y", "x"),
            attributes={"coordinates": "lat lon"},
        )
        for name, (values, dims, others) in arrays.items():
            put(group, name, values, dims, **others)
        (writer.partial / "receipts").mkdir()
        group.attrs.update(attributes | {"complete": False, "begun": begun})
    return writer


def put(
    group: zarr.Group,
    name: str,
    values: NDArray[Any],
    dims: tuple[str, ...],
    overwrite: bool = False,
    **attributes: Any,
) -> None:
    """Write one small array of a store, in one chunk."""
    group.create_array(
        name,
        data=values,
        chunks=tuple(max(1, size) for size in values.shape),
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        config={"write_empty_chunks": True},  # so that a file that is not there was lost
        dimension_names=dims,
        attributes=attributes,
        overwrite=overwrite,
    )


def _attributes(partial: Path) -> dict[str, Any]:
    """Of an unfinished store; none where there is none or its start was cut."""
    try:
        found: dict[str, Any] = json.loads((partial / "zarr.json").read_text())["attributes"]
    except (OSError, ValueError, KeyError):
        return {}
    return found


@contextmanager
def writing(partial: Path) -> Iterator[None]:
    """Say in one line that the file system refuses."""
    try:
        yield
    except OSError as error:
        raise AqnetError(
            f"{partial}: cannot be written ({error.strerror}); make room, or give another "
            "data.stores, and start again: what is written is kept"
        ) from None


def _write_shard(shard: Path, hours: NDArray[Any]) -> str:
    """Write one shard file (sharding codec of the Zarr v3 specification): the chunks of `hours`
    [n, C, H, W], the index of their places, and its checksum. Returns its SHA-256."""
    index = np.full((HOURS_PER_SHARD, 2), NO_CHUNK, dtype="<u8")
    shard.parent.mkdir(parents=True, exist_ok=True)
    digest, offset = hashlib.sha256(), 0
    with shard.open("wb") as file:
        for place, values in enumerate(hours):
            packed = CRC32C().encode(
                blosc.compress(
                    np.ascontiguousarray(values), COMPRESSOR.encode(), LEVEL, blosc.SHUFFLE
                )
            )
            digest.update(packed)
            length = file.write(packed)
            index[place] = offset, length
            offset += length
        tail = CRC32C().encode(index)
        digest.update(tail)
        file.write(tail)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
