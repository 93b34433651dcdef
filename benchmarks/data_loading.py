"""Reading samples: aqnet's stores beside xarray on the AQ_NET2 layout; what weather to come costs;
codecs, shards, `prepare`.

    python -m benchmarks.data_loading [--quick] [--json FILE]

All on the same fields, in one run, files in the page cache. benchmarks/README.md explains the
figures.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numcodecs
import numpy as np
import torch
import xarray
import zarr
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from aqnet import config as configs
from aqnet.config import Config
from aqnet.data import statistics, synthetic
from aqnet.data.dataset import ForecastDataset
from aqnet.data.loader import loader
from aqnet.data.prepare import run as prepare
from aqnet.data.prepare import shards as writing
from aqnet.data.prepare import store_writer
from aqnet.data.sampler import EvaluationSampler
from aqnet.data.stores import store
from aqnet.data.stores.record import open_stores
from aqnet.data.stores.store import Store

NATIVE, MODEL = (339, 432), (128, 256)
HOURS, CHUNK = 288, 24  # of the record; of a chunk of the AQ_NET2 layout
STATICS = ("elevation", "population")
TARGETS = ("pm25", "pm10", "so2", "no2", "co", "o3")
VARIABLES = ("u", "v", "temp", "rh", "psfc", "pm10", "so2", "no2", "co", "o3", "pm25", *STATICS)
DYNAMIC = VARIABLES[:11]
LEADS = [12, 24, 48, 96]
WEATHER = {"weather": list(VARIABLES[:5]), "weather_hours": [6, 12, 18, 24, 36, 48, 72, 96]}
ITEMS: dict[str, dict[str, Any]] = {
    "without weather": {},
    "5 variables at 8 hours": WEATHER,
    "the same, and means of 1, 2 and 4 days": {**WEATHER, "recent_days": [1, 2, 4]},
}
CODECS: dict[str, Any] = {
    "zstd 1": numcodecs.Zstd(level=1),
    "zstd 3": numcodecs.Zstd(level=3),
    "blosc zstd 1, bytes shuffled": numcodecs.Blosc("zstd", 1, numcodecs.Blosc.SHUFFLE),
    "blosc zstd 3, bytes shuffled": numcodecs.Blosc("zstd", 3, numcodecs.Blosc.SHUFFLE),
    "blosc lz4 5": numcodecs.Blosc("lz4", 5, numcodecs.Blosc.NOSHUFFLE),
    "blosc lz4 5, bits shuffled": numcodecs.Blosc("lz4", 5, numcodecs.Blosc.BITSHUFFLE),
    "blosc lz4 5, bytes shuffled": numcodecs.Blosc("lz4", 5, numcodecs.Blosc.SHUFFLE),
    "blosc lz4 9, bytes shuffled": numcodecs.Blosc("lz4", 9, numcodecs.Blosc.SHUFFLE),
}

Array = NDArray[np.float32]


def write_source(folder: Path, shape: tuple[int, int]) -> Path:
    """Twelve days of the embedded world on `shape`, in the AQ_NET2 layout (Zarr v2, blosc lz4)."""
    coarse = synthetic.World(64, 128)
    start = int(np.datetime64("2015-01-01", "h").astype(int))
    hours = list(synthetic.simulate(coarse, start, HOURS))
    mask = _finer(coarse.mask.astype(np.float32), shape) > 0.5
    path = folder / "data_2015_china_masked.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=2)

    def put(name: str, data: NDArray[Any], dims: list[str], **attributes: str) -> None:
        chunks = (CHUNK, *data.shape[1:]) if data.ndim == 3 else data.shape
        array = group.create_array(
            name,
            shape=data.shape,
            dtype=data.dtype,
            chunks=chunks,
            compressors=CODECS["blosc lz4 5, bytes shuffled"],
            fill_value=0,
        )
        array[...] = data
        array.attrs.update({"_ARRAY_DIMENSIONS": dims, **attributes})

    put("time", start + np.arange(HOURS), ["time"], units="hours since 1970-01-01")
    for name, edge in (("lat", coarse.lat), ("lon", coarse.lon)):
        put(name, np.linspace(edge[0], edge[-1], shape[name == "lon"]), [name])
    for name, unit in (("elevation", "m"), ("population", "people per cell")):
        put(
            name,
            _finer(getattr(coarse, name).astype(np.float32), shape),
            ["lat", "lon"],
            units=unit,
        )
    for name in DYNAMIC:
        fields = np.stack([hour[name] for hour in hours]).astype(np.float32)
        fields = np.where(mask, _finer(fields, shape), np.float32(np.nan))
        put(name, fields, ["time", "lat", "lon"], units=synthetic.UNITS[name])
    return path


def _finer(fields: Array, shape: tuple[int, int]) -> Array:
    wide = torch.from_numpy(fields).reshape(-1, 1, *fields.shape[-2:])
    finer = interpolate(wide, shape, mode="bilinear", align_corners=True)
    return finer.numpy().reshape(*fields.shape[:-2], *shape)


def config_for(
    folder: Path, source: Path, resample: str, lead_times: list[int], **data: Any
) -> Config:
    """A config whose training days are the first ten of twelve."""
    tree = {
        "run_dir": str(folder / "run"),
        "data": {
            "sources": [{"path": str(source)}],
            "stores": str(folder / f"stores_{resample}"),
            "variables": list(VARIABLES),
            "targets": list(TARGETS),
            "lead_times": lead_times,
            "resample": resample,
            **({} if resample == "none" else {"shape": list(MODEL)}),
            "split": {
                "train": ["2015-01-01/2015-01-10"],
                "validation": ["2015-01-11"],
                "test": ["2015-01-12"],
            },
            **data,
        },
        "train": {"max_steps": 1, "effective_batch": 2 * len(lead_times), "micro_batch": 2},
    }
    return configs.from_dict(tree, "benchmark")


class Took(NamedTuple):
    """Seconds a call: by the clock, and of all threads of this process."""

    wall: float
    cpu: float


def seconds(function: Callable[[int], object], times: int) -> Took:
    """What a call takes, the first left out."""
    function(0)
    wall, cpu = time.perf_counter(), time.process_time()
    for call in range(1, times + 1):
        function(call)
    return Took((time.perf_counter() - wall) / times, (time.process_time() - cpu) / times)


def xarray_reader(source: Path, leads: list[int], resize: bool) -> Callable[[int], object]:
    """Reads each variable of one sample through xarray, as the earlier code did."""
    opened = xarray.open_zarr(source, consolidated=False, chunks=None)
    starts = np.random.default_rng(0).integers(0, HOURS - max(leads), 1000)

    def read(call: int) -> object:
        row = int(starts[call])
        arrays = [opened[name].isel(time=row).values for name in DYNAMIC]
        arrays += [opened[name].values for name in STATICS]
        arrays += [opened[name].isel(time=row + lead).values for lead in leads for name in TARGETS]
        fields = torch.from_numpy(np.stack(arrays))[None]
        return interpolate(fields, MODEL, mode="bilinear") if resize else fields

    return read


def aqnet_reader(dataset: ForecastDataset) -> Callable[[int], object]:
    """Reads one item in this process, as the loader does."""
    order = np.random.default_rng(0).integers(0, len(dataset), 10_000)
    return lambda call: dataset[int(order[call])]


def zarr_reader(store: Store, leads: list[int]) -> Callable[[int], object]:
    """Reads the hours of one item with zarr-python."""
    group: Any = zarr.open_group(store.path, mode="r")
    air, weather = group["air"], group["weather"]
    return lambda call: [weather[call % 24], *(air[call % 24 + hour] for hour in (0, *leads))]


def decompression(opened: Store, leads: list[int]) -> Callable[[int], object]:
    """Only decompresses the chunks of an item, which lie in memory."""
    chunks = [opened.read(0, "weather"), *(opened.read(row, "air") for row in (0, *leads))]
    packed = [CODECS["blosc lz4 5, bytes shuffled"].encode(chunk) for chunk in chunks]
    into = np.empty_like(max(chunks, key=len))
    return lambda call: [numcodecs.blosc.decompress(chunk, into) for chunk in packed]


def reading(folder: Path, sources: dict[str, Path], quick: bool) -> list[dict[str, Any]]:
    """The table of readers, for one lead time and for four."""
    rows = []
    few, many = (6, 100) if quick else (30, 400)
    for leads in ([24], LEADS):
        config = config_for(folder, sources["native"], "area", leads)
        stores = open_stores(config)
        dataset = ForecastDataset(config, "train", statistics.read(config, stores), stores)
        times = {
            "xarray, AQ_NET2 339x432, resampled": seconds(
                xarray_reader(sources["native"], leads, resize=True), few
            ),
            "xarray, AQ_NET2 128x256": seconds(
                xarray_reader(sources["model"], leads, resize=False), few
            ),
            "zarr-python, aqnet's store, no tensors": seconds(zarr_reader(stores[0], leads), few),
            "aqnet, one process": seconds(aqnet_reader(dataset), many),
            "aqnet, 2 loader processes": Took(with_workers(dataset, many), float("nan")),
            "decompression alone": seconds(decompression(stores[0], leads), many),
        }
        for name, took in times.items():
            rows.append({"lead times": len(leads), "reader": name, **took._asdict()})
    return rows


def items(folder: Path, source: Path, quick: bool) -> list[dict[str, Any]]:
    """What one item of four lead times reads and takes, in this process, without and with weather.

    The variants take turns, so that what else the machine does meets all of them.
    """
    readers, rows = {}, []
    for name, data in ITEMS.items():
        config = config_for(folder, source, "area", LEADS, **data)
        stores = open_stores(config)
        dataset = ForecastDataset(config, "train", statistics.read(config, stores), stores)
        readers[name] = aqnet_reader(dataset.at(dataset.times[-24:]))  # the last days are there
        rows.append({"item": name, "bytes": configs.item_bytes(config.data, int(np.prod(MODEL)))})
        rows[-1] |= {"packed": packed_bytes(readers[name], 20)}
    rounds = [
        {name: seconds(reader, 20) for name, reader in readers.items()}
        for _ in range(5 if quick else 20)
    ]
    for row in rows:
        for kind in ("wall", "cpu"):
            row[kind] = float(np.median([getattr(took[row["item"]], kind) for took in rounds]))
    return rows


def packed_bytes(reader: Callable[[int], object], calls: int) -> float:
    """Bytes of compressed chunks that a call decompresses, on average."""
    sizes: list[int] = []
    unpack = numcodecs.blosc.decompress

    def noted(chunk: bytes, into: NDArray[Any]) -> object:
        sizes.append(len(chunk))
        return unpack(chunk, into)

    with mock.patch.object(numcodecs.blosc, "decompress", noted):
        for call in range(calls):
            reader(call)
    return sum(sizes) / calls


def with_workers(dataset: ForecastDataset, items: int) -> float:
    """Seconds an item with two loader processes, their start left out."""
    batches = loader(dataset, EvaluationSampler(len(dataset), 2, 0, 1), 2)
    for _ in batches:
        pass
    began, seen = time.perf_counter(), 0
    while seen < items:
        for batch in batches:
            seen += len(batch.time)
    return (time.perf_counter() - began) / seen


def codecs(source: Path, quick: bool) -> list[dict[str, Any]]:
    """Size and speed of each codec on hours of all variables; crc32c is common to all."""
    opened = zarr.open_group(source, mode="r")
    hours = range(0, HOURS, 42 if quick else 12)
    blocks = [np.stack([np.asarray(opened[name][row]) for name in DYNAMIC]) for row in hours]  # type: ignore[index]
    rows = []
    with mock.patch.object(numcodecs.blosc, "use_threads", False):
        for name, codec in CODECS.items():
            packed = [codec.encode(block) for block in blocks]
            into = np.empty_like(blocks[0])

            def write(call: int, codec: Any = codec) -> None:
                codec.encode(blocks[call % len(blocks)])

            def read(call: int, codec: Any = codec, packed: Any = packed, into: Any = into) -> None:
                codec.decode(packed[call % len(blocks)], into)

            size = sum(len(chunk) for chunk in packed) / sum(block.nbytes for block in blocks)
            took = seconds(write, len(blocks)), seconds(read, 5 * len(blocks))
            rows.append(
                {"codec": name, "size": size, "write_s": took[0].cpu, "read_s": took[1].cpu}
            )
    return rows


def shards(folder: Path, source: Path) -> list[dict[str, Any]]:
    """Hours in random order from shards of several lengths, by a store opened anew."""
    whole = store.open_store(source)
    block = np.stack([whole.read(row) for row in range(HOURS)])
    rows = []
    for hours in (12, 24, 48, 168):
        with contextlib.ExitStack() as stack:
            for module in (store, store_writer, writing):
                stack.enter_context(mock.patch.object(module, "HOURS_PER_SHARD", hours))
            writer = store_writer.create(
                folder / f"shards{hours}.zarr",
                weather=whole.channels["weather"],
                air=whole.channels["air"],
                units=whole.units,
                time=whole.time,
                grid=whole.grid,
                static={},
                source={},
            )
            began = time.process_time()
            writer.write(0, block)
            write = (time.process_time() - began) / HOURS
            writer.commit()
            opened = store.open_store(writer.path)
            began = time.process_time()
            for row in np.random.default_rng(0).permutation(HOURS).tolist():
                opened.read(row)
            read = (time.process_time() - began) / HOURS
        rows.append({"hours": hours, "files_a_year": -(-8760 // hours), "write_s": write})
        rows[-1] |= {"read_s": read, "mb_in_memory": hours * block[0].nbytes / 1e6}
    return rows


def preparing(folder: Path, source: Path) -> list[dict[str, Any]]:
    """`prepare` of the twelve days by one process, statistics included."""
    rows = []
    for resample in ("area", "none"):
        config = config_for(folder, source, resample, [24])
        began, cpu = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            prepare.prepare(config)
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        size = 4 * HOURS * len(DYNAMIC) * int(np.prod(NATIVE))
        rows.append(
            {
                "resample": resample,
                "wall": took,
                "cpu": cpu,
                "hours_s": HOURS / took,
                "gb_s": size / took / 1e9,
            }
        )
    return rows


def report(figures: dict[str, Any]) -> None:
    """Print the tables."""
    for leads in (1, 4):
        rows = {r["reader"]: r for r in figures["reading"] if r["lead times"] == leads}
        ours = rows["aqnet, one process"]
        print(f"\nA sample with {leads} lead time{'s' * (leads > 1)}, {MODEL[0]}x{MODEL[1]}")
        print(f"  {'':<40} {'clock':>10} {'CPU':>10} {'samples/s':>10}   of aqnet's time")
        for name, row in rows.items():
            print(
                f"  {name:<40} {1e3 * row['wall']:7.2f} ms {1e3 * row['cpu']:7.2f} ms "
                f"{1 / row['wall']:10.1f}   {row['wall'] / ours['wall']:.2f} by the clock, "
                f"{row['cpu'] / ours['cpu']:.2f} CPU"
            )
    print(f"\nAn item with {len(LEADS)} lead times, {MODEL[0]}x{MODEL[1]}, one process")
    for row in figures["items"]:
        print(
            f"  {row['item']:<40} {row['bytes'] / 1e6:5.1f} MB, "
            f"{row['packed'] / 1e6:5.1f} MB packed, "
            f"{1e3 * row['wall']:6.2f} ms by the clock, {1e3 * row['cpu']:6.2f} ms CPU"
        )
    print(
        "\nCodecs, one hour of 11 variables at 128x256, CPU time, one thread, without the checksum"
    )
    for row in figures["codecs"]:
        print(
            f"  {row['codec']:<40} {row['size']:6.1%} of the size, "
            f"write {1e3 * row['write_s']:5.2f} ms, read {1e3 * row['read_s']:5.2f} ms"
        )
    print("\nHours a shard file, CPU time")
    for row in figures["shards"]:
        print(
            f"  {row['hours']:>4}: {row['files_a_year']:4} files a year, "
            f"{row['mb_in_memory']:6.1f} MB, write {1e3 * row['write_s']:5.2f} ms an hour, "
            f"read {1e3 * row['read_s']:5.2f} ms"
        )
    print(f"\nprepare, one process, {HOURS} hours of 11 variables at 339x432, statistics included")
    for row in figures["prepare"]:
        print(
            f"  resample {row['resample']:<5} {row['wall']:6.1f} s ({row['cpu']:.1f} s of CPU), "
            f"{row['hours_s']:6.1f} hours/s, "
            f"{row['gb_s']:5.2f} GB/s of source fields"
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, about a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = {}
        for grid, shape in (("native", NATIVE), ("model", MODEL)):
            (folder / grid).mkdir()
            sources[grid] = write_source(folder / grid, shape)
        figures: dict[str, Any] = {"prepare": preparing(folder, sources["native"])}
        figures["reading"] = reading(folder, sources, options.quick)
        figures["items"] = items(folder, sources["native"], options.quick)
        figures["codecs"] = codecs(sources["model"], options.quick)
        figures["shards"] = shards(folder, folder / "stores_area/2015.zarr")
    report(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
