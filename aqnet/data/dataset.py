"""Samples found by time: (input time, lead times) to normalised fields, targets and mask."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from aqnet import distributed
from aqnet.batch import Batch, Statistics
from aqnet.config import STATIC_VARIABLES, Config, periods
from aqnet.data.layout import Layout
from aqnet.data.store import Store, open_store
from aqnet.errors import AqnetError

Hours = NDArray[np.int64]
Flags = NDArray[np.bool_]


def open_stores(config: Config, years: Sequence[int] | None = None) -> list[Store]:
    """The stores of `years` (all that the split touches) in time order; once in a process.

    Raises:
        AqnetError: one is missing, unfinished, on another grid, or lacks a variable; or two hold
            the same hour.
    """
    years = config.data.split.years if years is None else years
    # looking for every shard file is for one process: 800 would ask the file system a million times
    whole = distributed.is_main()
    stores = [open_store(Path(config.data.stores) / f"{year}.zarr", whole=whole) for year in years]
    for year, store in zip(years, stores, strict=True):
        _check_store(store, stores[0], config)
        _check_year(store, year)
    return stores


class Fields(Protocol):
    """Hours, since 1970 UTC, and their fields [C, H, W] by the stores' channels."""

    hours: Hours

    def read(self, hour: int) -> NDArray[np.float32] | None:
        """Physical fields of one hour, NaN = missing; None where there is none."""


class TimeIndex:
    """Every hour of several stores: whether it exists, and its fields."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = stores
        hours = np.concatenate([store.time for store in stores])
        owners = np.repeat(np.arange(len(stores)), [len(store.time) for store in stores])
        rows = np.concatenate([np.arange(len(store.time)) for store in stores])
        order = np.argsort(hours, kind="stable")
        self.hours: Hours = hours[order]
        self._owners, self._rows = owners[order], rows[order]
        for at in np.flatnonzero(self.hours[1:] == self.hours[:-1])[:1]:
            names = " and ".join(str(stores[self._owners[place]].path) for place in (at, at + 1))
            time = np.datetime64(int(self.hours[at]), "h")
            raise AqnetError(f"{names}: the hour {time} is there twice; prepare the stores again")

    def read(self, hour: int) -> NDArray[np.float32] | None:
        """Fields [C, H, W] of one hour in physical units, NaN = missing; None where there is none.

        Raises:
            AqnetError: the chunk is damaged; store and time are named.
        """
        at = int(np.searchsorted(self.hours, hour))
        if at == len(self.hours) or self.hours[at] != hour:
            return None
        return self.stores[self._owners[at]].read(int(self._rows[at]))


class ItemReader:
    """Normalised inputs and targets of any input time, and physical fields beside them.

    Attributes:
        layout: grid, channels and static fields of what is read.
    """

    def __init__(
        self, config: Config, statistics: Statistics, layout: Layout, source: Fields
    ) -> None:
        """Nothing is read yet.

        Raises:
            AqnetError: a variable has no statistics.
        """
        data = config.data
        self.config, self.layout, self._source = config, layout, source
        self.grid = layout.grid
        self.lead_times = torch.tensor(data.lead_times)
        self._target_channels = [layout.names.index(name) for name in data.targets]
        self._target_numbers = _numbers(statistics, data.targets)
        self._input_numbers = _numbers(statistics, config.input_variables)
        self._blank = np.full((len(self._input_numbers), *self.grid.shape), np.nan, np.float32)
        self._reads: dict[int, list[tuple[int, int]]] = {}  # of each hour: channels and their rows
        for row, full_name in enumerate(config.input_variables):
            name, _, earlier = full_name.partition("@")
            if name in STATIC_VARIABLES:
                _normalise(layout.static[name], self._input_numbers[row], self._blank[row])
            else:
                hours = int(earlier.removesuffix("h") or 0)
                self._reads.setdefault(hours, []).append((layout.names.index(name), row))
        self._mask = self.grid.mask.numpy()

    def item(self, time: int) -> Batch:
        """The item of an input time, hours since 1970 UTC, without the batch axis; what is missing,
        inputs or targets, is NaN."""
        targets = self._targets(time)
        mask = torch.from_numpy(np.isfinite(targets) & self._mask)
        fields = torch.from_numpy(self._fields(time))
        return Batch(fields, torch.tensor(time), self.lead_times, torch.from_numpy(targets), mask)

    def empty(self, time: int) -> Batch:
        """The empty item, which reads nothing."""
        shape = (len(self.lead_times), len(self.config.data.targets), *self.grid.shape)
        fields = torch.full(self._blank.shape, torch.nan)
        targets = torch.full(shape, torch.nan)
        mask = torch.zeros(shape, dtype=torch.bool)
        return Batch(fields, torch.tensor(time), self.lead_times, targets, mask)

    def check(self, times: Hours) -> None:
        """Refuse input times of which, or of whose history, there are no fields.

        Raises:
            AqnetError: names the first hour that does not exist.
        """
        hours = self._source.hours
        needed = (times[:, None] + np.array(self.config.data.history_hours)).flatten()
        lost = needed[~np.isin(needed, hours)]
        if len(lost):
            lacking, first, last = np.array([lost[0], *hours[[0, -1]]], "datetime64[h]")
            raise AqnetError(
                f"there are no fields of {lacking}, only of {first} to {last} (hours of "
                "data.history_hours before an input time count as well)"
            )

    def wind(self, time: int) -> NDArray[np.float32] | None:
        """Eastward and northward wind [2, H, W] in m/s of one hour, None where there is none."""
        names = self.layout.names
        values = self._source.read(time) if {"u", "v"} <= set(names) else None
        return None if values is None else values[[names.index("u"), names.index("v")]]

    def observed(self, time: int) -> NDArray[np.float32]:
        """Physical targets [T, H, W] of one hour, NaN where missing."""
        values = self._source.read(time)
        if values is None:
            return np.full((len(self._target_channels), *self.grid.shape), np.nan, np.float32)
        return values[self._target_channels]

    # numpy, because threads of torch, at work on so little, wait for each other: on a busy machine
    # an item took a hundred times as long in the training process as in a loader process

    def _fields(self, time: int) -> NDArray[np.float32]:
        """Normalised inputs [V, H, W] of one time: `data.variables`, then the earlier hours."""
        fields = self._blank.copy()
        for hours, places in self._reads.items():
            values = self._source.read(time + hours)
            if values is not None:
                for channel, row in places:
                    _normalise(values[channel], self._input_numbers[row], fields[row])
        return fields

    def _targets(self, time: int) -> NDArray[np.float32]:
        """Normalised targets [K, T, H, W], NaN where missing."""
        leads = self.config.data.lead_times
        shape = (len(leads), len(self._target_channels), *self.grid.shape)
        targets = np.full(shape, np.nan, np.float32)
        for at, lead in enumerate(leads):
            values = self._source.read(time + lead)
            if values is not None:
                for row, channel in enumerate(self._target_channels):
                    _normalise(values[channel], self._target_numbers[row], targets[at, row])
        return targets


class ForecastDataset(Dataset[Batch]):
    """Map-style: item i is input time `times[i]` with all lead times, without the batch axis.

    A sample exists where all its input times do; it belongs to a split if its input time and all
    its target times lie in it. A target time without data is a masked target.

    Attributes:
        times: input times, hours since 1970 UTC, ascending, int64, shape [N].
        reader: reads the items, and other times of the same stores.
        grid: where the cells are.
    """

    def __init__(
        self, config: Config, split_name: str, statistics: Statistics, stores: Sequence[Store]
    ) -> None:
        """Find the samples of `split_name` (train, validation or test) in `open_stores(config)`;
        nothing is read yet.

        Raises:
            AqnetError: a variable has no statistics, or the split holds no sample or target.
        """
        data, index = config.data, TimeIndex(stores)
        self.config, self.split_name = config, split_name
        self.reader = ItemReader(config, statistics, Layout.of(stores[0]), index)
        self.grid = self.reader.grid
        self.times, self._facts = _samples(config, split_name, index.hours)
        if len(self.times) == 0:
            raise AqnetError(
                f"data.split.{split_name}: no sample in {data.stores} for data.lead_times "
                f"{list(data.lead_times)}: {self._facts}"
            )

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, item: int) -> Batch:
        """Batch of one item without the batch axis; -1 is the empty item, which reads nothing."""
        if item == -1:
            return self.reader.empty(int(self.times[0]))
        if not 0 <= item < len(self.times):
            raise IndexError(f"item {item} of {len(self.times)}")
        return self.reader.item(int(self.times[item]))

    def report(self) -> str:
        """One line: how many samples there are and what was left out."""
        return f"{self.split_name}: {len(self.times)} samples; {self._facts}"

    def thinned(self, max_items: int | None) -> ForecastDataset:
        """At most `max_items` items, always the same, evenly spread over this dataset's."""
        if max_items is None or max_items >= len(self.times):
            return self
        places = np.linspace(0, len(self.times) - 1, max_items).round().astype(np.int64)
        other = self.at(self.times[places])
        other._facts = f"evenly spread among {len(self.times)}; {self._facts}"
        return other

    def at(self, times: Hours) -> ForecastDataset:
        """The samples of some input times, hours since 1970 UTC."""
        other = copy.copy(self)
        other.times = times
        return other


def target_fields(
    config: Config, stores: Sequence[Store], split_name: str, wanted: Callable[[Hours], Flags]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Existing hours of a split in time order, with their targets.

    Args:
        wanted: which of many hours are read.
    Yields:
        Hours since 1970 UTC, and physical values [T, H, W], NaN where missing or outside the mask.
    """
    index = TimeIndex(stores)
    first = stores[0]
    channels = [first.names.index(name) for name in config.data.targets]
    mask = first.grid.mask.numpy()
    hours = index.hours[_inside(config, split_name, index.hours)]
    for hour in hours[wanted(hours)].tolist():
        values = index.read(hour)
        assert values is not None
        yield hour, np.where(mask, values[channels], np.float32(np.nan))


def _samples(config: Config, split_name: str, hours: Hours) -> tuple[Hours, str]:
    """Input times of a split, and a sentence on what was left out."""
    data = config.data
    candidates = hours[_inside(config, split_name, hours)]
    earlier = candidates[:, None] + np.array(data.history_hours)
    no_history = ~np.isin(earlier, hours).all(axis=1)
    later = candidates[:, None] + np.array(data.lead_times)
    exists = np.isin(later, hours)
    crosses = ~_inside(config, split_name, later).all(axis=1)
    keep = ~no_history & ~crosses
    if split_name == "train" and keep.any() and not exists[keep].any():
        raise AqnetError(
            f"data.split.{split_name}: the stores have no hour {list(data.lead_times)} h after any "
            f"of {int(keep.sum())} input times; choose data.lead_times by the step of the stores"
        )
    facts = (
        f"dropped {int((crosses & ~no_history).sum())} with a target outside the split and "
        f"{int(no_history.sum())} without all of data.history_hours; of the targets kept, "
        f"{int((~exists[keep]).sum())} times do not exist and are masked"
    )
    if split_name != "train" and (shared := int(_inside(config, "train", candidates[keep]).sum())):
        facts += f"; {shared} of them lie in data.split.train too, so a score says little"
    return candidates[keep], facts


def _inside(config: Config, split_name: str, hours: Hours) -> Flags:
    """Whether each hour lies in a split, same shape."""
    inside = np.zeros(hours.shape, dtype=bool)
    for first, end in periods.intervals(getattr(config.data.split, split_name)):
        inside |= (hours >= first) & (hours < end)
    return inside


def _numbers(statistics: Statistics, names: tuple[str, ...]) -> list[tuple[np.float32, np.float32]]:
    """Mean and standard deviation of each name."""
    try:
        mean, std = statistics.of(names)
    except KeyError as error:
        raise AqnetError(f"the statistics lack the variable {error}; compute them again") from None
    pairs = zip(mean.tolist(), std.tolist(), strict=True)
    return [(np.float32(mean), np.float32(std)) for mean, std in pairs]


def _normalise(
    values: NDArray[Any], numbers: tuple[np.float32, np.float32], out: NDArray[np.float32]
) -> None:
    np.subtract(values, numbers[0], out=out, casting="same_kind")
    np.divide(out, numbers[1], out=out)


def _check_year(store: Store, year: int) -> None:
    for hour in store.time[[0, -1]].tolist():
        if periods.year_of(hour) != year:
            raise AqnetError(
                f"{store.path}: holds {np.datetime64(hour, 'h')}, which is not of {year}; put the "
                "stores back under their own names"
            )


def _check_store(store: Store, first: Store, config: Config) -> None:
    """Refuse a store that lacks a variable, or differs from the first in grid, mask or channels."""
    again = "remove it and run python -m aqnet.data.prepare again"
    known = {*store.names, *store.static}
    for name in (*config.data.variables, *config.data.targets):
        if name not in known:
            raise AqnetError(f"{store.path}: lacks the variable {name!r}; {again}")
    if store.names != first.names or store.units != first.units:
        raise AqnetError(f"{store.path}: other channels or units than {first.path}; {again}")
    for what in ("lat", "lon", "mask"):
        if not torch.equal(getattr(store.grid, what), getattr(first.grid, what)):
            raise AqnetError(f"{store.path}: another {what} than {first.path}; {again}")
    for name, field in first.static.items():
        if not np.array_equal(store.static.get(name, np.array([])), field, equal_nan=True):
            raise AqnetError(f"{store.path}: another {name} than {first.path}; {again}")
