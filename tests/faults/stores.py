"""Random and hostile edits of a store's metadata, and what must hold for each: the fields that were
written, or one clear line, without much memory."""

from __future__ import annotations

import contextlib
import io
import json
import random
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from aqnet import errors
from aqnet.data import statistics
from aqnet.data.dataset import ForecastDataset
from aqnet.data.inspect import run as inspect
from aqnet.data.stores import store
from aqnet.data.stores.layout import Layout
from aqnet.data.stores.record import open_stores
from aqnet.errors import AqnetError
from tests.data import worlds
from tests.data.test_dataset import STATISTICS

SPARE_BYTES = 2**30  # what reading a hostile store may take besides
HOSTILE = (0, -1, 1, 2, 10**12, 2**63, 10**30, 1e300, None, True, "", "../../x", "float16", [], {})


def original(folder: Path) -> Path:
    """A store of three days."""
    worlds.write_both(folder)
    return folder / "2015.zarr"


def bytes_edited(path: Path, chance: random.Random) -> None:
    """One to eight bytes of a metadata file are others, removed or doubled."""
    file = chance.choice(sorted(path.rglob("zarr.json")))
    data = bytearray(file.read_bytes())
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(len(data))
        what = chance.randrange(4)
        if what == 0:
            data[at] = chance.randrange(256)
        elif what == 1:
            data[at] = chance.choice(b'0123456789{}[]",:-')
        elif what == 2:
            del data[at : at + chance.choice((1, 30))]
        else:
            data[at:at] = data[at : at + chance.choice((1, 30))]
    file.write_bytes(data)


def value_edited(path: Path, chance: random.Random) -> None:
    """One value of the JSON tree of a metadata file is another, or gone."""
    file = chance.choice(sorted(path.rglob("zarr.json")))
    tree = json.loads(file.read_bytes())
    holder, key = chance.choice(list(_places(tree)))
    what = chance.choice((*HOSTILE, "nested", "gone"))
    if what == "nested":
        file.write_text(json.dumps(tree).replace(json.dumps(holder[key]), "[" * 100_000, 1))
        return
    if what == "gone":
        del holder[key]
    else:
        holder[key] = what
    file.write_text(json.dumps(tree))


def index_edited(path: Path, chance: random.Random) -> None:
    """An offset or length in the index of a shard is another, its checksum mended."""
    from numcodecs.checksum32 import CRC32C

    file = chance.choice(sorted(path.glob("*/c/0/0/0/0")))
    data, size = file.read_bytes(), store.HOURS_PER_SHARD * 16
    index = np.frombuffer(data[-size - 4 : -4], "<u8").copy()
    index[chance.randrange(8)] = chance.choice((0, 1, 20, 2**32, 2**63, 2**64 - 2, 10**12))
    file.write_bytes(data[: -size - 4] + bytes(CRC32C().encode(index.view("u1"))))


KINDS = (bytes_edited, value_edited, index_edited)


def check(good: Path, scratch: Path, kind: Any, chance: random.Random) -> str:
    """Edit a copy of a store, read all of it, make the samples that training reads of it, and
    inspect it; returns `read` or `refused`.

    Raises:
        AssertionError: other fields were read, or something else than one line came of it.
    """
    path = scratch / good.name
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(good, path)
    kind(path, chance)
    with little_memory():
        outcome = _read(good, path)
        _made_samples(scratch)
        status, told = inspected(path)
    assert status in (0, 1, 2) and "Traceback" not in told, told
    return outcome


def _read(good: Path, path: Path) -> str:
    expected = store.open_store(good)
    try:
        opened = store.open_store(path)
        opened.moments()
        rows = [opened.read(row) for row in range(len(opened.time))]
        for day in range(opened.first_day, opened.first_day + 4):
            opened.before(day)
    except AqnetError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, str(error)
        return "refused"
    if opened.names == expected.names and len(rows) == len(expected.time):
        for row, values in enumerate(rows):
            assert (
                np.array_equal(values, expected.read(row), equal_nan=True)
                or opened.time[row] != expected.time[row]
            ), f"row {row} is not what was written"
    return "read"


def _made_samples(folder: Path) -> None:
    """Do what train.py does with the stores of a folder: fields or one line come of it."""
    days = ["2015-12-29/2015-12-31"]
    split = dict.fromkeys(("train", "validation", "test"), days)
    config = worlds.config(folder, split=split, lead_times=[3], recent_days=[1])
    try:
        opened = open_stores(config)
        statistics.compute(config, opened)
        for name in ("train", "validation"):
            dataset = ForecastDataset(config, name, STATISTICS, opened)
            dataset.report()
            for item in {0, len(dataset) // 2, len(dataset) - 1}:
                batch = dataset[item]
                assert batch.targets[batch.mask].isfinite().all()
        layout = Layout.of(opened[0])
        json.dumps(layout.words())
        layout.tensors()
    except AqnetError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, str(error)


def inspected(path: Path) -> tuple[int, str]:
    """Exit status of `python -m aqnet.data.inspect`, and what it told."""
    before, told = sys.argv, io.StringIO()
    sys.argv = ["inspect", str(path)]
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            errors.run(inspect.main)
    except SystemExit as end:
        return int(end.code or 0), told.getvalue()
    finally:
        sys.argv = before
    raise AssertionError("errors.run returned")


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Inside, this process gets MemoryError where it asks for `SPARE_BYTES` more than it has."""
    if sys.platform != "linux":
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(
        resource.RLIMIT_AS, (pages * resource.getpagesize() + SPARE_BYTES, limits[1])
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    keys = tree if isinstance(tree, dict) else range(len(tree))
    for key in keys:
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])
