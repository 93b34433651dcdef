"""Tiny prepared stores with gaps, over two years, and their config."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from aqnet import config as configs
from aqnet.batch import Statistics
from aqnet.data.dataset import ForecastDataset
from aqnet.data.prepare import store_writer
from aqnet.data.stores.record import open_stores
from aqnet.grid import Grid

WEATHER, AIR = ("temp",), ("pm25", "o3")
NAMES = (*WEATHER, *AIR)
SHAPE = (3, 4)


def hour(text: str) -> int:
    return int(np.datetime64(text, "h").astype(int))


FIRST = hour("2015-12-29")
LAST = hour("2016-01-04T23")
GAP = range(hour("2015-12-30T05"), hour("2015-12-30T08"))  # these hours are missing


def value(time: int) -> np.ndarray:
    """Physical fields [3, 3, 4] of one hour; some values are missing."""
    generator = np.random.default_rng(time)
    fields = generator.normal((280, 50, 60), (5, 20, 20), (*SHAPE, 3)).transpose(2, 0, 1)
    fields = np.abs(fields)
    fields[:, 2, 3] = np.nan
    fields[1, 1, time % 4] = np.nan
    return fields.astype(np.float32)


def grid(mask: torch.Tensor | None = None) -> Grid:
    lat, lon = torch.meshgrid(
        torch.linspace(20, 50, 3, dtype=torch.float64),
        torch.linspace(80, 130, 4, dtype=torch.float64),
        indexing="ij",
    )
    elevation = torch.arange(12, dtype=torch.float32).reshape(SHAPE)
    elevation[0, 0] = torch.nan
    return Grid(lat, lon, elevation, lon > 90 if mask is None else mask)


def write(folder: Path, year: int, times: list[int], **other: Any) -> None:
    where = other.get("grid") or grid()
    assert where.elevation is not None
    writer = store_writer.create(
        folder / f"{year}.zarr",
        weather=other.get("weather", WEATHER),
        air=other.get("air", AIR),
        units={"temp": "K", "pm25": "ug m-3", "o3": "ug m-3"},
        time=np.array(times, dtype=np.int64),
        grid=where,
        static={"elevation": where.elevation.numpy()},
        source={},
    )
    written = other.get("value", value)
    writer.write(0, np.stack([written(time) for time in times]))
    writer.commit()


def write_both(folder: Path, **other: Any) -> None:
    times = [time for time in range(FIRST, LAST + 1) if time not in GAP]
    border = hour("2016-01-01")
    write(folder, 2015, [time for time in times if time < border], **other)
    write(folder, 2016, [time for time in times if time >= border], **other)


def config(folder: Path, **data: Any) -> configs.Config:
    model = {"scan": "raster", "transport": "off", **data.pop("model", {})}
    tree = {
        "run_dir": "run",
        "data": {
            "stores": str(folder),
            "variables": ["pm25", "lat2d", "temp", "elevation", "o3"],
            "targets": ["o3", "pm25"],
            "lead_times": [3, 24],
            "split": {
                "train": ["2015-12-29/2016-01-01"],
                "validation": ["2016-01-02"],
                "test": ["2016-01-03/2016-01-04"],
            },
            **data,
        },
        "model": model,
        "train": {"max_steps": 1, "effective_batch": 24, "micro_batch": 2},
    }
    return configs.from_dict(tree, "here")


def samples(settings: configs.Config, split_name: str, statistics: Statistics) -> ForecastDataset:
    return ForecastDataset(settings, split_name, statistics, open_stores(settings))
