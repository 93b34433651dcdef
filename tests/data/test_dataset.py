import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from aqnet.batch import Statistics
from aqnet.data import dataset
from aqnet.data.stores import record
from aqnet.data.stores.store import Kind, Store, open_store
from aqnet.errors import AqnetError
from tests.data.worlds import (
    FIRST,
    GAP,
    LAST,
    NAMES,
    config,
    grid,
    hour,
    samples,
    value,
    write,
    write_both,
)

STATISTICS = Statistics(
    ("temp", "pm25", "o3", "lat2d", "elevation"),
    (280.0, 50.0, 60.0, 30.0, 5.0),
    (5.0, 20.0, 10.0, 7.0, 2.0),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores")
    write_both(path)
    return path


def physical(name: str, time: int) -> np.ndarray:
    if name == "lat2d":
        return grid().lat.numpy()
    if name == "elevation":
        return grid().elevation.numpy()
    if time in GAP or not FIRST <= time <= LAST:
        return np.full((3, 4), np.nan)
    return value(time)[NAMES.index(name)]


def normalised(name: str, time: int) -> np.ndarray:
    mean, std = (float(number) for number in STATISTICS.of((name,)))
    return (physical(name, time) - mean) / std


def test_every_item_holds_what_the_clock_says(folder: Path):
    settings = config(folder)
    train = samples(settings, "train", STATISTICS)
    for item in range(len(train)):
        batch, time = train[item], int(train.times[item])
        assert batch.time.item() == time
        assert batch.lead_time.tolist() == [3, 24]
        for place, name in enumerate(settings.data.variables):
            np.testing.assert_allclose(batch.fields[place], normalised(name, time), rtol=1e-5)
        for k, lead in enumerate((3, 24)):
            for t, name in enumerate(("o3", "pm25")):
                expected = normalised(name, time + lead)
                np.testing.assert_allclose(batch.targets[k, t], expected, rtol=1e-4, atol=1e-6)
                counts = np.isfinite(expected) & grid().mask.numpy()
                np.testing.assert_array_equal(batch.mask[k, t], counts)
    years = {str(np.datetime64(int(time), "h"))[:4] for time in train.times}
    assert years == {"2015"}  # some of whose targets lie in the store of 2016
    assert train.times.max() + 24 == hour("2016-01-01T23")


def test_gap_masks_targets_and_removes_inputs(folder: Path):
    train = samples(config(folder), "train", STATISTICS)
    times = train.times.tolist()
    assert not set(GAP) & set(times)
    item = train[times.index(GAP[0] - 3)]
    assert item.targets[0].isnan().all()
    assert not item.mask[0].any()
    assert item.mask[1].any()


def test_samples_whose_targets_lie_in_another_split_are_dropped_and_counted(folder: Path):
    train = samples(config(folder), "train", STATISTICS)
    first, end = hour("2015-12-29"), hour("2016-01-02")
    wanted = [time for time in range(first, end - 24) if time not in GAP]
    assert train.times.tolist() == wanted
    assert "dropped 24 with a target outside the split" in train.report()
    masked = sum(time + lead in GAP for time in wanted for lead in (3, 24))
    assert f"{masked} times do not exist" in train.report()
    test = samples(config(folder), "test", STATISTICS)
    assert len(test) == 24  # the last day has targets after the end of the split


def test_samples_that_are_trained_on_as_well_are_counted(folder: Path):
    split = {"train": ["2015", "2016-01-01"], "validation": ["2016-01-01/2016-01-03"], "test": []}
    validation = samples(config(folder, split=split), "validation", STATISTICS)
    assert "24 of them lie in data.split.train too" in validation.report()
    apart = samples(config(folder, lead_times=[3]), "validation", STATISTICS)
    assert "data.split.train" not in apart.report()


def test_history_adds_the_day_before_as_further_channels(folder: Path):
    settings = config(folder, history_hours=[0, -24])
    assert settings.input_variables[5:] == ("pm25@-24h", "temp@-24h", "o3@-24h")
    train = samples(settings, "train", STATISTICS)
    assert train.times[0] == FIRST + 24
    assert not {time + 24 for time in GAP} & set(train.times.tolist())
    assert "27 without all of data.history_hours" in train.report()
    for item in (0, 20):
        fields, time = train[item].fields, int(train.times[item])
        assert fields.shape == (8, 3, 4)
        for place, name in enumerate(("pm25", "temp", "o3"), start=5):
            np.testing.assert_allclose(fields[place], normalised(name, time - 24), rtol=1e-4)


def test_history_may_lie_outside_the_split(folder: Path):
    settings = config(folder, history_hours=[0, -24], lead_times=[3])
    validation = samples(settings, "validation", STATISTICS)
    assert validation.times[0] == hour("2016-01-02")


def test_an_item_reads_one_chunk_for_each_time(folder: Path, monkeypatch: pytest.MonkeyPatch):
    train = samples(config(folder), "train", STATISTICS)
    rows, read = [], Store.read

    def noted(self: Store, row: int, kind: Kind) -> np.ndarray:
        rows.append((row, kind))
        return read(self, row, kind)

    monkeypatch.setattr(Store, "read", noted)
    _ = train[2]
    assert sorted(rows) == [(2, "air"), (2, "weather"), (5, "air"), (26, "air")]
    _ = train[-1]
    assert len(rows) == 4
    rows.clear()
    history = config(folder, history_hours=[0, -24])
    _ = samples(history, "train", STATISTICS)[2]
    assert sorted(rows) == [  # its target in 3 h lies in the gap
        *((2, "air"), (2, "weather")),
        *((26, "air"), (26, "weather"), (47, "air")),
    ]


def test_the_empty_item_has_the_shapes_of_others_and_counts_nowhere(folder: Path):
    train = samples(config(folder), "train", STATISTICS)
    empty = train[-1]
    for tensor, other in zip(empty, train[0], strict=True):
        assert tensor.shape == other.shape
        assert tensor.dtype == other.dtype
    assert empty.fields.isnan().all()
    assert empty.targets.isnan().all()
    assert not empty.mask.any()
    with pytest.raises(IndexError):
        _ = train[len(train)]
    with pytest.raises(IndexError):
        _ = train[-2]


def test_target_fields_are_physical_and_in_time_order(folder: Path):
    settings = config(folder)
    stores = record.open_stores(settings)
    found = list(dataset.target_fields(settings, stores, "train", lambda hours: hours % 24 != 7))
    times = [time for time, _ in found]
    expected_times = [t for t in range(FIRST, hour("2016-01-02")) if t not in GAP and t % 24 != 7]
    assert times == expected_times
    for time, fields in found[::10]:
        expected = np.where(grid().mask.numpy(), value(time)[[2, 1]], np.nan)
        np.testing.assert_array_equal(fields, expected)


def test_thinned_items_are_evenly_spread(folder: Path):
    train = samples(config(folder), "train", STATISTICS)
    few = train.thinned(5)
    assert len(few) == 5
    assert {few.times[0], few.times[-1]} == {train.times[0], train.times[-1]}
    assert train.thinned(1000) is train
    assert len(train.thinned(len(train) - 1)) == len(set(train.thinned(len(train) - 1).times))


def test_lead_times_that_no_hour_of_the_stores_has_are_refused(folder: Path):
    split = {"train": ["2015/2016"], "validation": ["2016"], "test": ["2016"]}
    settings = config(folder, lead_times=[2400, 2403], split=split)
    with pytest.raises(AqnetError, match=r"data\.split\.train: .*no hour \[2400, 2403\] h after"):
        samples(settings, "train", STATISTICS)


def test_damaged_chunk_is_named_with_its_time(tmp_path: Path):
    write_both(tmp_path)
    train = samples(config(tmp_path), "train", STATISTICS)
    shard = sorted(p for p in (tmp_path / "2015.zarr/air/c").rglob("*") if p.is_file())[0]
    data = bytearray(shard.read_bytes())
    data[20] ^= 1
    shard.write_bytes(data)
    with pytest.raises(AqnetError, match=r"2015\.zarr: the fields of 2015-12-29T00"):
        for item in range(48):
            _ = train[item]


def test_a_store_under_the_name_of_another_year_is_refused(tmp_path: Path):
    write_both(tmp_path)
    shutil.rmtree(tmp_path / "2016.zarr")
    shutil.copytree(tmp_path / "2015.zarr", tmp_path / "2016.zarr")
    with pytest.raises(AqnetError, match=r"2016\.zarr: holds 2015-12-29T00, which is not of 2016"):
        record.open_stores(config(tmp_path))


def test_stores_that_do_not_fit_together_are_refused_by_name(tmp_path: Path):
    write(tmp_path, 2015, list(range(FIRST, FIRST + 30)))
    with pytest.raises(AqnetError, match=r"2016\.zarr: no such store"):
        record.open_stores(config(tmp_path))
    for at, (other, message) in enumerate(
        [
            ({"grid": grid(mask=torch.ones(3, 4, dtype=torch.bool))}, "another mask"),
            ({"air": ("o3", "pm25")}, "other channels"),
            ({"air": ("pm25", "co")}, "lacks the variable 'o3'"),
        ]
    ):
        folder = tmp_path / str(at)
        write(folder, 2015, list(range(FIRST, FIRST + 30)))
        write(folder, 2016, list(range(FIRST + 72, FIRST + 102)), **other)
        with pytest.raises(AqnetError, match=rf"2016\.zarr: .*{message}"):
            record.open_stores(config(folder))


def test_an_hour_in_two_stores_is_refused(tmp_path: Path):
    write(tmp_path, 2015, list(range(FIRST, FIRST + 30)))
    first = open_store(tmp_path / "2015.zarr")
    with pytest.raises(AqnetError, match="2015-12-29T00 is there twice"):
        record.TimeIndex([first, first])


def test_a_split_without_samples_and_missing_statistics_are_errors(folder: Path):
    settings = config(folder, split={"train": ["2015-01"], "validation": ["2016"], "test": []})
    with pytest.raises(AqnetError, match=r"data\.split\.train: no sample"):
        samples(settings, "train", STATISTICS)
    with pytest.raises(AqnetError, match="lack the variable 'pm25'"):
        samples(config(folder), "train", Statistics(("o3",), (0.0,), (1.0,)))


def test_a_dataset_can_be_pickled(folder: Path):
    train = samples(config(folder), "train", STATISTICS)
    again = pickle.loads(pickle.dumps(train))
    torch.testing.assert_close(again[3].fields, train[3].fields, equal_nan=True)
