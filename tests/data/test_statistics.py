import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from aqnet import config as configs
from aqnet.data import statistics
from aqnet.data.prepare import store_writer
from aqnet.data.stores import store
from aqnet.errors import AqnetError
from aqnet.grid import Grid

FIRST = 394464  # 2015-01-01 00:00 UTC


def random_fields() -> np.ndarray:
    generator = np.random.default_rng(1)
    fields = generator.normal((1e5, 3.0), (10.0, 2.0), size=(72, 3, 4, 2)).transpose(0, 3, 1, 2)
    fields[generator.random(fields.shape) < 0.2] = np.nan
    return fields.astype(np.float32)


@pytest.fixture
def config(tmp_path: Path) -> configs.Config:
    days = {
        "train": ["2015-01-01/2015-01-02"],
        "validation": ["2015-01-03"],
        "test": ["2015-01-03"],
    }
    tree = {
        "run_dir": "run",
        "data": {
            "stores": str(tmp_path),
            "variables": ["psfc", "pm25", "lat2d"],
            "targets": ["pm25"],
            "split": days,
        },
        "model": {"scan": "raster", "transport": "off", "terrain": {"enabled": False}},
        "train": {"max_steps": 1},
    }
    return configs.from_dict(tree, "here")


@pytest.fixture
def stores(tmp_path: Path) -> list[store.Store]:
    lat = torch.arange(12, dtype=torch.float64).reshape(3, 4)
    writer = store_writer.create(
        tmp_path / "2015.zarr",
        weather=("psfc",),
        air=("pm25",),
        units={"psfc": "Pa", "pm25": "ug m-3"},
        time=np.arange(FIRST, FIRST + 72),
        grid=Grid(lat, lat, None, lat > 2),
        static={},
        source={},
    )
    writer.write(0, random_fields())
    writer.commit()
    return [store.open_store(tmp_path / "2015.zarr")]


def test_equal_to_numpy_over_training_days_and_domain(config, stores):
    found = statistics.compute(config, stores)
    wide = random_fields().astype(np.float64)[:48].reshape(48, 2, 12)[:, :, 3:]
    for at, name in enumerate(("psfc", "pm25")):
        mean, std = found.of((name,))
        assert mean.item() == pytest.approx(np.nanmean(wide[:, at]), rel=1e-9)
        assert std.item() == pytest.approx(np.nanstd(wide[:, at]), rel=1e-9)
    assert found.of(("lat2d",))[0].item() == pytest.approx(np.arange(3, 12).mean())


def test_written_statistics_are_read_back(config, stores):
    statistics.write(config, stores)
    assert statistics.read(config, stores) == statistics.compute(config, stores)


def test_statistics_of_another_split_or_store_are_refused(config, stores, tmp_path: Path):
    with pytest.raises(AqnetError, match=r"statistics\.json"):
        statistics.read(config, stores)
    statistics.write(config, stores)
    split = dataclasses.replace(config.data.split, train=("2015-01-01",))
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, split=split))
    with pytest.raises(AqnetError, match="training split"):
        statistics.read(other, stores)
    stores[0].checksum = "other"
    with pytest.raises(AqnetError, match=r"another 2015\.zarr"):
        statistics.read(config, stores)


def test_a_variable_without_any_value_is_named(config, stores, tmp_path: Path):
    split = dataclasses.replace(config.data.split, train=("2016",))
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, split=split))
    with pytest.raises(AqnetError, match="'psfc' has no value"):
        statistics.compute(other, stores)
