"""configs/china_native.yaml trains on a grid of the native size."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from aqnet import config as configs
from aqnet.data import statistics
from aqnet.data.prepare import store_writer
from aqnet.data.stores.record import open_stores
from aqnet.grid import Grid
from tests.conftest import run

SHAPE = (339, 432)
CONFIG = "configs/china_native.yaml"


def native_grid() -> Grid:
    """Latitudes and longitudes that bend as on a Lambert grid, and an oval domain."""
    row = torch.linspace(-1, 1, SHAPE[0], dtype=torch.float64)[:, None].expand(SHAPE)
    column = torch.linspace(-1, 1, SHAPE[1], dtype=torch.float64).expand(SHAPE)
    lat, lon = 35 + 22 * row - 4 * column**2, 104 + (33 + 9 * row) * column
    elevation = (2500 - 2500 * column).float()
    return Grid(lat, lon, elevation, row**2 + column**2 < 0.36)


# of 2013: inputs at 0 to 36 h for training and at 144 h for validation, and targets of these
HOURS = (0, 12, 24, 36, 48, 60, 72, 96, 108, 120, 132, 144, 156)
SPLIT = {
    "train": "2013-01-01/2013-01-06",
    "validation": "2013-01-07/2013-01-11",
    "test": "2013-01-12/2013-01-16",
}


def write_store(path: Path) -> None:
    data, grid = configs.load(CONFIG).data, native_grid()
    assert grid.elevation is not None
    population = np.broadcast_to(np.arange(SHAPE[1], dtype=np.float32), SHAPE)
    writer = store_writer.create(
        path,
        weather=data.stored_weather,
        air=data.targets,
        units=dict.fromkeys(data.stored, "1"),
        time=np.array(HOURS) + int(np.datetime64("2013-01-01", "h").astype(int)),
        grid=grid,
        static={"elevation": grid.elevation.numpy(), "population": population},
        source={},
    )
    generator = np.random.default_rng(0)
    fields = generator.normal(20, 5, (len(HOURS), len(data.stored), *SHAPE)).astype(np.float32)
    fields[..., ~grid.mask.numpy()] = np.nan
    writer.write(0, fields)
    writer.commit()


@pytest.mark.slow
def test_three_steps_on_the_native_grid(tmp_path: Path):
    """Everything as configured but the width and depth of the network, which cost minutes."""
    stores = tmp_path / "stores"
    write_store(stores / "2013.zarr")
    overrides = [f"run_dir={tmp_path / 'run'}", f"data.stores={stores}"]
    overrides += [f"data.split.{name}=[{period}]" for name, period in SPLIT.items()]
    config = configs.load(CONFIG, overrides)
    statistics.write(config, open_stores(config))
    overrides += ["model.embed_dim=96", "model.depth=3", "train.effective_batch=4"]
    overrides += ["train.max_steps=3", "train.warmup_steps=1", "train.log_every=1"]
    overrides += ["train.evaluate_after_training=false", "train.workers=0", "validation.every=3"]
    run("train.py", "--config", CONFIG, *overrides)
    assert (tmp_path / "run/status").read_text() == "finished\n"
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == 3 and all(map(math.isfinite, losses))
    assert lines[-1].get("train/skipped_steps", 0.0) == 0.0
