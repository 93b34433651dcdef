"""Samples found by time: (input time, lead times) to normalised fields, targets and mask."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from aqnet.batch import Batch, Statistics
from aqnet.config import Config, periods
from aqnet.data.items import ItemReader
from aqnet.data.stores.layout import Layout
from aqnet.data.stores.record import Hours, TimeIndex
from aqnet.data.stores.store import Store
from aqnet.data.weather import Stored, Weather
from aqnet.errors import AqnetError

Flags = NDArray[np.bool_]


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
        self,
        config: Config,
        split_name: str,
        statistics: Statistics,
        stores: Sequence[Store],
        weather: Stored | Weather = "analysed",
    ) -> None:
        """Find the samples of `split_name` (train, validation or test) in `open_stores(config)`;
        nothing is read yet.

        Args:
            weather: what is given as weather to come; see `ItemReader`.
        Raises:
            AqnetError: a variable has no statistics, or the split holds no sample or target.
        """
        data, index = config.data, TimeIndex(stores)
        self.config, self.split_name = config, split_name
        self.reader = ItemReader(config, statistics, Layout.of(stores[0]), index, weather)
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
    index, layout = TimeIndex(stores), Layout.of(stores[0])
    channels, mask = layout.places(config.data.targets, "air"), layout.grid.mask.numpy()
    hours = index.hours[_inside(config, split_name, index.hours)]
    for hour in hours[wanted(hours)].tolist():
        values = index.read(hour, "air")
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
    if split_name == "train" and keep.any():
        _check_weather_hours(data.weather_hours, candidates[keep], hours)
    facts = (
        f"dropped {int((crosses & ~no_history).sum())} with a target outside the split and "
        f"{int(no_history.sum())} without all of data.history_hours; of the targets kept, "
        f"{int((~exists[keep]).sum())} times do not exist and are masked"
    )
    if data.weather_hours:
        weather = candidates[keep][:, None] + np.array(data.weather_hours)
        facts += f", as are {int((~np.isin(weather, hours)).sum())} times of weather to come"
    if split_name != "train" and (shared := int(_inside(config, "train", candidates[keep]).sum())):
        facts += f"; {shared} of them lie in data.split.train too, so a score says little"
    return candidates[keep], facts


def _check_weather_hours(weather_hours: Sequence[int], times: Hours, hours: Hours) -> None:
    between = [lead for lead in weather_hours if not np.isin(times + lead, hours).any()]
    if between:
        raise AqnetError(
            f"data.weather_hours: the stores have no hour {between} h after any of {len(times)} "
            "input times; choose the hours by the step of the stores"
        )


def _inside(config: Config, split_name: str, hours: Hours) -> Flags:
    """Whether each hour lies in a split, same shape."""
    inside = np.zeros(hours.shape, dtype=bool)
    for first, end in periods.intervals(getattr(config.data.split, split_name)):
        inside |= (hours >= first) & (hours < end)
    return inside
