"""The types that all parts share."""

import json

import pytest
import torch

from aqnet.batch import Batch, Statistics
from aqnet.grid import Grid


def test_a_batch_moves_as_a_whole_and_keeps_its_types():
    fields, targets = torch.rand(2, 3, 4, 5), torch.rand(2, 1, 2, 4, 5)
    hours = torch.tensor([7, 8])
    batch = Batch(fields, hours, torch.tensor([[12], [12]]), targets, targets > 0.5)
    moved = batch.to(torch.device("cpu"))
    assert isinstance(moved, Batch)
    assert moved.time.dtype == torch.int64 and moved.mask.dtype == torch.bool
    assert all(torch.equal(new, old) for new, old in zip(moved, batch, strict=True))
    meta = batch.to(torch.device("meta"))
    assert {tensor.device.type for tensor in meta} == {"meta"}


def test_a_grid_whose_parts_differ_in_shape_is_refused_by_name():
    lat = torch.zeros(2, 3, dtype=torch.float64)
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert Grid(lat, lat, None, mask).shape == (2, 3)
    with pytest.raises(ValueError, match=r"Grid\.elevation has shape \(3, 2\)"):
        Grid(lat, lat, torch.zeros(3, 2), mask)
    with pytest.raises(ValueError, match=r"Grid\.mask"):
        Grid(lat, lat, None, mask[:1])


def test_statistics_come_in_the_order_asked_for_and_are_shared_by_earlier_hours():
    statistics = Statistics(("u", "pm25"), (0.1, 40.0), (3.0, 25.0))
    mean, std = statistics.of(("pm25", "u", "pm25@-24h"))
    assert mean.dtype == torch.float64
    assert mean.tolist() == [40.0, 0.1, 40.0] and std.tolist() == [25.0, 3.0, 25.0]
    mean, std = statistics.of(("u@+12h", "pm25@mean7d"))
    assert mean.tolist() == [0.1, 0.0] and std.tolist() == [3.0, 25.0]  # a mean less the value
    with pytest.raises(KeyError, match="so2"):
        statistics.of(("so2",))


def test_statistics_survive_json_exactly():
    statistics = Statistics(("a", "b"), (1 / 3, 1e-300), (0.1 + 0.2, 1e300))
    assert Statistics.from_dict(json.loads(json.dumps(statistics.to_dict()))) == statistics
