"""Metadata and chunks of a training store that are not what was written, by chance or by intent."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numcodecs import blosc
from numcodecs.checksum32 import CRC32C

from aqnet.data.stores import store
from aqnet.errors import AqnetError
from tests.faults import stores

NUMBER = int(os.environ.get("AQNET_FAULTS_STORES", "10"))
SEED = int(os.environ.get("AQNET_FAULTS_SEED", "0"))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stores.original(tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize("kind", stores.KINDS, ids=lambda kind: kind.__name__)
def test_edited_metadata_are_refused_in_one_line_or_change_no_field(
    good: Path, tmp_path: Path, kind: Any
):
    for number in range(NUMBER):
        try:
            stores.check(good, tmp_path, kind, random.Random(SEED + number))
        except Exception as error:
            raise AssertionError(f"case {SEED + number}") from error


@pytest.mark.parametrize("name", ["air", "daily_sum"])
@pytest.mark.parametrize("size", [1, 2])
def test_a_chunk_that_unpacks_to_another_size_is_refused(
    good: Path, tmp_path: Path, name: str, size: int
):
    """A shorter one would leave memory as it was, a longer one be written past the end."""
    path = shutil.copytree(good, tmp_path / good.name)
    file = path / name / "c/0/0/0/0"
    right = 2 * 3 * 4 * 4  # bytes
    values = np.ones(right // 4 * size // 2 + 1 * (size == 2), np.float32)
    chunk = bytes(CRC32C().encode(blosc.compress(values.tobytes(), b"lz4", 5)))
    index = np.full((store.HOURS_PER_SHARD, 2), store.NO_CHUNK, "<u8")
    index[0] = 0, len(chunk)
    file.write_bytes(chunk + bytes(CRC32C().encode(index.view("u1").reshape(-1))))
    opened = store.open_store(path)
    with pytest.raises(
        AqnetError, match=f"from {name} .its chunk unpacks to .* bytes, expected {right}"
    ):
        opened.read(0) if name == "air" else opened.before(opened.first_day + 1)


@pytest.mark.parametrize(
    ("array", "changes"),
    [
        ("time", {"shape": [10**12]}),
        ("static", {"shape": [1, 10**6, 10**6]}),
        ("moments", {"shape": [10**12, 3, 3]}),
        ("air", {"shape": [72, 2, 10**6, 10**6]}),
        (
            "mask",
            {
                "shape": [10**12],
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}},
            },
        ),
        ("lat", {"data_type": "string"}),
        ("day", {"data_type": "complex128"}),
    ],
    ids=str,
)
def test_metadata_that_ask_for_much_memory_are_refused_before(
    good: Path, tmp_path: Path, array: str, changes: dict[str, Any]
):
    path = shutil.copytree(good, tmp_path / good.name)
    for place in (path / array / "zarr.json", path / "zarr.json"):
        tree = json.loads(place.read_bytes())
        if place.parent == path:  # metadata may be repeated there
            members = tree.get("consolidated_metadata") or {"metadata": {}}
            tree_of_array = members["metadata"].get(array, {})
        else:
            tree_of_array = tree
        tree_of_array.update(changes)
        place.write_text(json.dumps(tree))
    with stores.little_memory(), pytest.raises(AqnetError, match="damaged") as error:
        store.open_store(path).moments()
    assert "\n" not in str(error.value)


FILES = {"first_last_and_count_of_files": ["a.nc", "b.nc", 2]}


@pytest.mark.parametrize(
    "changes",
    [
        {"source": 3},
        {"source": FILES},  # without `resample`
        {"source": {**FILES, "resample": 1}},
        {"source": {"first_last_and_count_of_files": 5, "resample": "none"}},
        {"source": {"first_last_and_count_of_files": ["a.nc"], "resample": "none"}},
        {"units": 1e300},
        {"units": {"temp": "K", "pm25": 3, "o3": "ug m-3"}},
        {"air": ["pm25", 3]},
        {"static_names": [{}]},
        {"checksum": 5},
    ],
    ids=str,
)
def test_attributes_of_another_type_are_damage_and_nothing_else(
    good: Path, tmp_path: Path, changes: dict[str, Any]
):
    path = shutil.copytree(good, tmp_path / good.name)
    tree = json.loads((path / "zarr.json").read_bytes())
    tree["attributes"].update(changes)
    (path / "zarr.json").write_text(json.dumps(tree))
    with pytest.raises(AqnetError, match=r"2015\.zarr: damaged") as error:
        store.open_store(path)
    assert "\n" not in str(error.value)
    status, told = stores.inspected(path)
    assert status == 1 and "damaged" in told and "Traceback" not in told


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "", "null", "[]", "1" * 5000])
def test_a_root_that_is_no_metadata_is_one_line(good: Path, tmp_path: Path, text: str):
    path = shutil.copytree(good, tmp_path / good.name)
    (path / "zarr.json").write_text(text)
    with pytest.raises(AqnetError, match=r"2015\.zarr") as error:
        store.open_store(path)
    assert "\n" not in str(error.value)
    assert not store.is_store(path)
