"""Weather to come and the means of the last days, as channels of an item."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from aqnet.batch import Statistics
from aqnet.config import item_bytes
from aqnet.data.dataset import ForecastDataset
from aqnet.data.stores.record import TimeIndex, open_stores
from aqnet.data.stores.store import Chunks, Kind, Store
from aqnet.errors import AqnetError
from tests.data.worlds import FIRST, GAP, LAST, NAMES, config, hour, value, write, write_both

STATISTICS = Statistics(
    ("temp", "pm25", "o3", "lat2d", "elevation"),
    (280.0, 50.0, 60.0, 30.0, 5.0),
    (5.0, 20.0, 10.0, 7.0, 2.0),
)
WEATHER = {"weather": ["temp"], "weather_hours": [3, 24]}
TEMP, PM25, O3 = (NAMES.index(name) for name in ("temp", "pm25", "o3"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores")
    write_both(path)
    return path


def dataset(folder: Path, given: object = "analysed", **data: object) -> ForecastDataset:
    settings = config(folder, **data)
    return ForecastDataset(settings, "train", STATISTICS, open_stores(settings), given)  # type: ignore[arg-type]


def physical(time: int, channel: int) -> np.ndarray:
    if time in GAP or not FIRST <= time <= LAST:
        return np.full((3, 4), np.nan)
    return value(time)[channel]


def test_weather_to_come_is_that_of_its_hour_and_a_missing_hour_is_missing(folder: Path):
    train, plain = dataset(folder, **WEATHER), dataset(folder)
    assert train.config.input_variables[5:] == ("temp@+3h", "temp@+24h")
    np.testing.assert_array_equal(train.times, plain.times)  # no sample is lost
    for item, time in enumerate(train.times.tolist()):
        found = train[item]
        for place, hours in enumerate((3, 24), start=5):
            expected = (physical(time + hours, TEMP) - 280) / 5
            np.testing.assert_allclose(found.fields[place], expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.fields[:5], plain[item].fields, equal_nan=True)
    missing = train.times.tolist().index(GAP[0] - 3)
    assert train[missing].fields[5].isnan().all() and train[missing].fields[6].isfinite().any()
    assert "6 times of weather to come" in train.report()


def test_nothing_later_but_the_named_weather_reaches_the_fields(folder: Path, tmp_path: Path):
    """Every later value of every variable is another, save temp at + 3 and + 24 h."""
    recent = {**WEATHER, "recent_days": [1, 2]}
    train = dataset(folder, **recent)
    time = hour("2015-12-31T21")
    item = train.times.tolist().index(time)

    def changed(at: int) -> np.ndarray:
        fields = value(at)
        if at > time:
            other = fields + 1000 + at % 7
            if at in (time + 3, time + 24):
                other[TEMP] = fields[TEMP]
            return other
        return fields

    write_both(tmp_path, value=changed)
    other = dataset(tmp_path, **recent)
    assert other[item].time == time
    np.testing.assert_array_equal(other[item].fields, train[item].fields)
    assert (other[item].targets != train[item].targets)[train[item].mask].all()
    assert not other[item + 1].fields.equal(train[item + 1].fields)


def test_weather_may_be_held_or_none_or_another_forecast(folder: Path):
    train = dataset(folder, **WEATHER)
    item, time = 30, int(train.times[30])
    held = dataset(folder, "persisted", **WEATHER)[item].fields
    for place in (5, 6):
        torch.testing.assert_close(held[place], train[item].fields[2], equal_nan=True)
    none = dataset(folder, "none", **WEATHER)[item].fields
    assert none[5:].isnan().all()
    torch.testing.assert_close(none[:5], train[item].fields[:5], equal_nan=True)

    class Forecast:
        def weather_at(self, base_hour: int, at: int) -> np.ndarray | None:
            assert base_hour == time
            return None if at == time + 3 else np.full((1, 3, 4), 285.0, np.float32)

    other = dataset(folder, Forecast(), **WEATHER)[item].fields
    assert other[5].isnan().all() and (other[6] == 1).all()
    again = pickle.loads(pickle.dumps(dataset(folder, "persisted", **WEATHER)))
    torch.testing.assert_close(again[item].fields, held, equal_nan=True)


def test_weather_hours_between_the_steps_of_the_stores_are_named(tmp_path: Path):
    times = list(range(FIRST, FIRST + 72, 3))
    write(tmp_path, 2015, times)
    split = {"train": ["2015"], "validation": ["2015"], "test": []}
    hours = {"weather": ["temp"], "weather_hours": [2, 3, 10]}
    with pytest.raises(AqnetError, match=r"weather_hours: the stores have no hour \[2, 10\] h"):
        dataset(tmp_path, split=split, **hours)


def test_an_item_reads_only_what_it_needs(folder: Path, monkeypatch: pytest.MonkeyPatch):
    plain, train = dataset(folder), dataset(folder, **WEATHER)
    read: list[tuple[int, Kind]] = []
    original = Store.read

    def noted(self: Store, row: int, kind: Kind) -> np.ndarray:
        read.append((row, kind))
        return original(self, row, kind)

    monkeypatch.setattr(Store, "read", noted)
    _ = plain[2]
    assert sorted(read) == [(2, "air"), (2, "weather"), (5, "air"), (26, "air")]
    read.clear()
    _ = train[2]
    assert sorted(read) == [(row, kind) for row in (2, 5, 26) for kind in ("air", "weather")]
    read.clear()
    _ = dataset(folder, "none", **WEATHER)[2]
    assert len(read) == 4


@pytest.mark.parametrize(
    "data",
    [
        {},
        WEATHER,
        {**WEATHER, "recent_days": [1], "history_hours": [0, -24]},
        {"variables": ["pm25", "o3"]},
        {"variables": ["temp", "lat2d"]},
    ],
)
def test_the_bytes_of_an_item_are_those_told(
    folder: Path, data: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
):
    model = {"predict": "value", "terrain": {"enabled": False}}
    settings = config(folder, **data, model=model)
    train = ForecastDataset(settings, "train", STATISTICS, open_stores(settings))
    read, chunk = [], Chunks.read

    def noted(self: Chunks, row: int) -> np.ndarray:
        values = chunk(self, row)
        read.append(values.nbytes)
        return values

    monkeypatch.setattr(Chunks, "read", noted)
    _ = train[train.times.tolist().index(hour("2015-12-31T12"))]
    assert sum(read) == item_bytes(settings.data, 12)


def recent(time: int, days: int, channel: int) -> np.ndarray:
    """Mean over the hours of the last days before that of `time`, by its definition."""
    day = time // 24
    if 2 * (day - FIRST // 24) < days:
        return np.full((3, 4), np.nan)
    values = np.stack([physical(at, channel) for at in range(24 * (day - days), 24 * day)])
    with np.errstate(invalid="ignore"):
        return np.nansum(values, 0) / np.isfinite(values).sum(0)


def test_means_of_the_last_days_cross_years_and_gaps_and_begin_with_the_record(folder: Path):
    days = [1, 2, 3, 30]
    split = {"train": ["2015-12-29/2016-01-03"], "validation": ["2016-01-04"], "test": []}
    train = dataset(folder, recent_days=days, split=split)
    names = [f"{name}@mean{n}d" for n in days for name in ("o3", "pm25")]
    assert list(train.config.input_variables[5:]) == names
    seen = set()
    for item, time in enumerate(train.times.tolist()):
        found = train[item].fields[5:].reshape(len(days), 2, 3, 4)
        physical_means = train.reader.recent(time, days)
        for at, n in enumerate(days):
            for row, (channel, std) in enumerate(((O3, 10.0), (PM25, 20.0))):
                mean = recent(time, n, channel)
                np.testing.assert_allclose(physical_means[at, row], mean, rtol=1e-5)
                expected = (mean - physical(time, channel)) / std
                np.testing.assert_allclose(found[at, row], expected, rtol=1e-3, atol=1e-4)
                seen.add((n, bool(np.isfinite(expected).any())))
    assert seen == {(n, known) for n in days[:3] for known in (False, True)} | {(30, False)}


def test_a_window_is_two_reads_and_its_end_is_shared(folder: Path, monkeypatch: pytest.MonkeyPatch):
    stores = open_stores(config(folder))
    days: list[int] = []
    before = Store.before
    monkeypatch.setattr(Store, "before", lambda self, day: days.append(day) or before(self, day))
    day = hour("2016-01-03") // 24
    TimeIndex(stores).recent(24 * day + 5, (1, 2))
    assert days == [day, day - 1, day - 2]
