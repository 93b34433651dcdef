"""The arrays of a training store, written: shard files by hand, small ones by zarr-python."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import blosc
from numcodecs.checksum32 import CRC32C
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from aqnet.data.stores.store import COMPRESSOR, HOURS_PER_SHARD, LEVEL, NO_CHUNK


def create_sharded(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    fill: float,
    dims: tuple[str, ...],
) -> None:
    """Create an array without its shard files, which `write_shard` writes."""
    group.create_array(
        name,
        shape=shape,
        chunks=(1, *shape[1:]),
        shards=(HOURS_PER_SHARD, *shape[1:]),
        dtype=dtype,
        fill_value=fill,
        compressors=[
            BloscCodec(cname=COMPRESSOR, clevel=LEVEL, shuffle="shuffle"),
            Crc32cCodec(),
        ],
        dimension_names=dims,
        attributes={"coordinates": "lat lon"},
    )


def packed(values: NDArray[Any]) -> bytes:
    """One chunk, compressed."""
    whole = np.ascontiguousarray(values)
    found: bytes = blosc.compress(whole, COMPRESSOR.encode(), LEVEL, blosc.SHUFFLE)
    return found


def write_shard(shard: Path, chunks: Iterable[NDArray[Any]]) -> str:
    """Write one shard file (sharding codec of the Zarr v3 specification): the chunks, the index of
    their places, and its checksum. Returns its SHA-256."""
    index = np.full((HOURS_PER_SHARD, 2), NO_CHUNK, dtype="<u8")
    shard.parent.mkdir(parents=True, exist_ok=True)
    digest, offset = hashlib.sha256(), 0
    with shard.open("wb") as file:
        for place, values in enumerate(chunks):
            chunk = CRC32C().encode(packed(values))
            digest.update(chunk)
            length = file.write(chunk)
            index[place] = offset, length
            offset += length
        tail = CRC32C().encode(index)
        digest.update(tail)
        file.write(tail)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


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
