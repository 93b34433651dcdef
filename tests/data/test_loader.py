import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from aqnet.data import loader
from aqnet.data.prepare import store_writer
from aqnet.data.sampler import EvaluationSampler
from aqnet.errors import AqnetError
from aqnet.grid import Grid
from tests.data.test_dataset import STATISTICS, folder
from tests.data.worlds import AIR, FIRST, WEATHER, config, hour, samples, write_both

__all__ = ["folder"]  # the fixture


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_what_the_main_process_reads(folder: Path, start: str):
    train = samples(config(folder), "train", STATISTICS)
    alone = [train[item] for item in range(8)]  # also makes zarr start its threads before the fork
    batches = loader.loader(train, EvaluationSampler(8, 4, 0, 1), 2)
    batches.multiprocessing_context = start
    found = list(batches)
    workers = {child.pid for child in multiprocessing.active_children()}
    for again, batch in zip(batches, found, strict=True):
        assert torch.equal(again.time, batch.time)
    assert len(workers) == 2
    assert {child.pid for child in multiprocessing.active_children()} == workers  # they stay
    for batch, items in zip(found, (alone[:4], alone[4:]), strict=True):
        for tensor, expected in zip(batch, loader.collate(items), strict=True):
            torch.testing.assert_close(tensor, expected, rtol=0, atol=0, equal_nan=True)


def test_iterating_the_loader_leaves_the_default_random_numbers_alone(folder: Path):
    train = samples(config(folder), "train", STATISTICS)
    before = torch.random.get_rng_state()
    (batch,) = loader.loader(train, EvaluationSampler(3, 4, 0, 1), 0)
    assert batch.fields.shape == (3, 5, 3, 4)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_found_in_a_loader_process_is_the_same_one_line(tmp_path: Path, workers: int):
    write_both(tmp_path)
    train = samples(config(tmp_path), "train", STATISTICS)
    (tmp_path / "2015.zarr/air/c/0/0/0/0").write_bytes(b"short")
    batches = loader.loader(train, EvaluationSampler(4, 2, 0, 1), workers)
    with pytest.raises(AqnetError, match=r"2015\.zarr: the fields of 2015-12-29T") as error:
        next(iter(batches))
    assert "\n" not in str(error.value)


def test_a_process_that_fails_with_living_loader_processes_ends(folder: Path):
    script = f"""
from pathlib import Path
from aqnet import errors
from aqnet.data import loader
from aqnet.data.sampler import EvaluationSampler
from tests.data.test_dataset import STATISTICS, config, samples

train = samples(config(Path({str(folder)!r})), "train", STATISTICS)
batches = loader.loader(train, EvaluationSampler(8, 2, 0, 1), 1)

def main():
    for batch in batches:
        raise errors.AqnetError("something else went wrong")

errors.run(main)
"""
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr == "error: something else went wrong\n"


def memory() -> float:
    """MB in use by this process and its children, what they share counted once."""
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    smaps = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(int(re.findall(r"^Pss:\s+(\d+)", text, re.M)[0]) for text in smaps) / 1024


@pytest.mark.slow
def test_memory_stays_flat_over_20000_items(tmp_path: Path):
    lat, lon = torch.meshgrid(
        torch.linspace(20, 50, 16, dtype=torch.float64),
        torch.linspace(80, 130, 32, dtype=torch.float64),
        indexing="ij",
    )
    everywhere = Grid(lat, lon, torch.zeros(16, 32), torch.ones(16, 32, dtype=torch.bool))
    rng = np.random.default_rng(0)
    for year, first in ((2015, FIRST), (2016, hour("2016-01-01"))):
        writer = store_writer.create(
            tmp_path / f"{year}.zarr",
            weather=WEATHER,
            air=AIR,
            units={"temp": "K", "pm25": "ug m-3", "o3": "ug m-3"},
            time=np.arange(first, first + 72),
            grid=everywhere,
            static={"elevation": np.zeros((16, 32), np.float32)},
            source={},
        )
        writer.write(0, rng.uniform(1, 50, (72, 3, 16, 32)).astype(np.float32))
        writer.commit()
    train = samples(config(tmp_path), "train", STATISTICS)
    batches = loader.loader(train, EvaluationSampler(len(train), 4, 0, 1), 2)
    seen, before = 0, 0.0
    while seen < 21_000:
        for batch in batches:
            seen += len(batch.time)
        if before == 0.0 and seen >= 1000:
            before = memory()
    growth = memory() - before
    print(f"{growth:.1f} MB more after {seen} items")
    assert growth < 50  # an hour kept for each item would be 120 MB


@pytest.mark.parametrize("taken", [1, 3])
def test_workers_that_are_not_kept_end_with_the_epoch_or_when_it_is_left(folder: Path, taken: int):
    train = samples(config(folder), "train", STATISTICS)
    batches = loader.loader(train, EvaluationSampler(6, 2, 0, 1), 2, keep_workers=False)
    for _ in range(2):
        for number, _ in enumerate(batches, start=1):
            assert len(multiprocessing.active_children()) == 2
            if number == taken:
                break
        assert not multiprocessing.active_children()
