"""Writing a training store: begun at YEAR.zarr.partial, in blocks of hours by any number of
processes, resumed after an interruption, and renamed once it is whole.

A block is flushed to the disk before its receipt in YEAR.zarr.partial/receipts says what it holds
(moments of each hour over the domain, sums over its days, SHA-256 of its shard files); what has no
receipt is written again. The days are added up, the store is marked complete, the receipts go, and
then it gets its name.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from aqnet.data.moments import moments
from aqnet.data.prepare import days
from aqnet.data.prepare.shards import create_sharded, put, write_shard
from aqnet.data.stores.store import (
    COUNT_FILL,
    DAY_UNITS,
    FILL,
    FORMAT_VERSION,
    HOURS_PER_DAY,
    HOURS_PER_SHARD,
    KINDS,
    TIME_UNITS,
    Kind,
    checksum,
    shard_path,
)
from aqnet.errors import AqnetError
from aqnet.files import partial_of, sync, write_beside, writing
from aqnet.grid import Grid

_ADVICE = "make room, or give another data.stores, and start again: what is written is kept"
_VALUES_AT_ONCE = 2_000_000  # whose moments are taken in float64


@dataclass(frozen=True, eq=False)
class StoreWriter:
    """A store in the making; it may be pickled to other processes, each writing other blocks.

    Attributes:
        path: the name that the store will have; partial: where it is until `commit`.
        channels: names of those of `weather` and of `air`.
        time: hours since 1970 UTC, shape [N]; mask: the domain, bool, shape [H, W].
    """

    path: Path
    partial: Path
    channels: dict[Kind, tuple[str, ...]]
    time: NDArray[np.int64]
    mask: NDArray[np.bool_]
    dtype: str

    @property
    def names(self) -> tuple[str, ...]:
        """Channels of a block: those of `weather`, then those of `air`."""
        return self.channels["weather"] + self.channels["air"]

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
        digests: dict[str, str] = {}
        parts: list[days.Part] = []
        num_weather = len(self.channels["weather"])
        with writing(self.partial, _ADVICE):
            for first in range(0, len(stored), HOURS_PER_SHARD):
                hours = stored[first : first + HOURS_PER_SHARD]
                weather, air = hours[:, :num_weather], hours[:, num_weather:]
                digests |= self._write_shard("air", start_row + first, air)
                if num_weather:
                    digests |= self._write_shard("weather", start_row + first, weather)
                # by shard, so that the order of addition does not depend on the size of blocks
                time = self.time[start_row + first : start_row + first + len(hours)]
                parts += days.parts(time, air)
            with write_beside(self._receipts / f"{start_row}.npz") as stream:
                np.savez(
                    stream,
                    moments=self._moments(stored),
                    digests=json.dumps(digests),
                    days=[part.day for part in parts],
                    sums=[part.sums for part in parts],
                    counts=[part.counts.astype(np.uint8) for part in parts],
                )

    def _write_shard(self, name: str, row: int, chunks: Any) -> dict[str, str]:
        """Write the shard of an array that begins at `row`; returns its SHA-256 by its name."""
        file = shard_path(self.partial / name, row)
        return {str(file.relative_to(self.partial)): write_shard(file, chunks)}

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
        with writing(self.partial, _ADVICE):
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
        known |= self._write_days()
        self_made = (file for file in self.partial.rglob("*") if self._receipts not in file.parents)
        for file in self_made:
            if file.is_dir() or str(file.relative_to(self.partial)) not in known:
                sync(file)
        group.attrs["checksum"] = checksum(self.partial, known)
        group.attrs["complete"] = True
        sync(self.partial / "zarr.json")

    def _write_days(self) -> dict[str, str]:
        """Write the running sums of the days; returns the SHA-256 of their files by name."""
        digests: dict[str, str] = {}
        running = days.running(self._parts())
        row = 0
        while chunks := list(itertools.islice(running, HOURS_PER_SHARD)):
            totals, counts = zip(*chunks, strict=True)
            digests |= self._write_shard("daily_sum", row, totals)
            digests |= self._write_shard("daily_count", row, counts)
            row += HOURS_PER_SHARD
        return digests

    def _parts(self) -> Iterator[days.Part]:
        for start, _, _ in self._written():
            with np.load(self._receipts / f"{start}.npz") as receipt:
                found = receipt["sums"], receipt["counts"].astype(np.int64)
                for part in zip(receipt["days"].tolist(), *found, strict=True):
                    yield days.Part(*part)

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
    weather: tuple[str, ...],
    air: tuple[str, ...],
    units: dict[str, str],
    time: NDArray[np.int64],
    grid: Grid,
    static: dict[str, NDArray[np.float32]],
    source: dict[str, Any],
    dtype: str = "float32",
) -> StoreWriter:
    """Begin a store beside `path`, or go on with one that was begun with the same arguments; an
    unfinished one of others is removed.

    Args:
        weather, air: names of channels; units: of channels and statics, physical.
        time: hours since 1970 UTC, ascending, shape [N]; static: name to [H, W].
        source: what the store was made from, kept as attributes.
    Raises:
        AqnetError: there is a finished store at `path`, or the file system refuses.
    """
    path = Path(path)
    if path.exists():
        raise AqnetError(f"{path}: exists already; remove it to prepare it again")
    height, width = grid.shape
    statics = np.stack(list(static.values())) if static else np.zeros((0, height, width))
    first, last = (int(hour) // HOURS_PER_DAY for hour in time[[0, -1]])
    day = np.arange(first, last + 1)
    arrays: dict[str, tuple[NDArray[Any], tuple[str, ...], dict[str, Any]]] = {
        "static": (statics.astype(np.float32), ("static_channel", "y", "x"), {}),
        "mask": (grid.mask.numpy(), ("y", "x"), {}),
        "time": (time, ("time",), {"units": TIME_UNITS, "calendar": "proleptic_gregorian"}),
        "day": (day, ("day",), {"units": DAY_UNITS, "calendar": "proleptic_gregorian"}),
        "lat": (grid.lat.numpy(), ("y", "x"), {"units": "degrees_north"}),
        "lon": (grid.lon.numpy(), ("y", "x"), {"units": "degrees_east"}),
    }
    attributes: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "weather": list(weather),
        "air": list(air),
        "units": units,
        "static_names": list(static),
        "source": source,
    }
    digest = hashlib.sha256(json.dumps([attributes, dtype], sort_keys=True).encode())
    for values, _, _ in arrays.values():
        digest.update(np.ascontiguousarray(values).data)
    begun = digest.hexdigest()
    channels: dict[Kind, tuple[str, ...]] = {"weather": weather, "air": air}
    writer = StoreWriter(path, partial_of(path), channels, time, arrays["mask"][0], dtype)
    if _attributes(writer.partial).get("begun") == begun:
        return writer
    shutil.rmtree(writer.partial, ignore_errors=True)
    with writing(writer.partial, _ADVICE):
        group = zarr.open_group(writer.partial, mode="w", zarr_format=3)
        for kind in KINDS:
            if channels[kind]:
                shape = (len(time), len(channels[kind]), height, width)
                dims = ("time", f"{kind}_channel", "y", "x")
                create_sharded(group, kind, shape, dtype, FILL, dims)
        shape, dims = (len(day), len(air), height, width), ("day", "air_channel", "y", "x")
        create_sharded(group, "daily_sum", shape, "float32", FILL, dims)
        create_sharded(group, "daily_count", shape, "uint16", COUNT_FILL, dims)
        for name, (values, axes, others) in arrays.items():
            put(group, name, values, axes, **others)
        (writer.partial / "receipts").mkdir()
        group.attrs.update(attributes | {"complete": False, "begun": begun})
    return writer


def _attributes(partial: Path) -> dict[str, Any]:
    """Attributes of an unfinished store, {} where there is none or its start was cut."""
    try:
        found: dict[str, Any] = json.loads((partial / "zarr.json").read_text())["attributes"]
    except (OSError, ValueError, KeyError):
        return {}
    return found
