"""One item: the normalised inputs and targets of an input time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aqnet.batch import Batch, Statistics
from aqnet.config import Config
from aqnet.data.stores.layout import Layout
from aqnet.data.stores.record import Fields, Hours
from aqnet.data.stores.store import Kind
from aqnet.data.weather import Stored, Weather, stored_weather
from aqnet.errors import AqnetError

Array = NDArray[np.float32]


class ItemReader:
    """Normalised inputs and targets of any input time, and physical fields beside them.

    Attributes:
        layout: grid, channels and static fields of what is read.
        weather: what is given as weather to come.
    """

    def __init__(
        self,
        config: Config,
        statistics: Statistics,
        layout: Layout,
        source: Fields,
        weather: Stored | Weather = "analysed",
    ) -> None:
        """Nothing is read yet.

        Args:
            weather: what is given for the hours of `data.weather_hours`: fields of `source` by
                name, or another forecast.
        Raises:
            AqnetError: a variable has no statistics.
        """
        data = config.data
        self.config, self.layout, self._source = config, layout, source
        self.grid = layout.grid
        self.lead_times = torch.tensor(data.lead_times)
        if isinstance(weather, str):
            weather = stored_weather(weather, source, layout, config)
        self.weather = weather
        self._target_channels = layout.places(data.targets, "air")
        self._target_numbers = _numbers(statistics, data.targets)
        self._input_numbers = _numbers(statistics, config.input_variables)
        self._blank = np.full((len(self._input_numbers), *self.grid.shape), np.nan, np.float32)
        # which channel is written to which row of the inputs, by what is read for it
        self._reads: dict[tuple[Kind, int], list[tuple[int, int]]] = {}
        self._to_come: dict[int, list[int]] = {}  # rows in the order of `data.weather`
        self._recent: list[tuple[int, int, int]] = []  # place in recent_days, channel, row
        for row, channel in enumerate(config.input_channels):
            if channel.static:
                field = layout.static[channel.variable]
                _normalise(field, self._input_numbers[row], self._blank[row])
            elif channel.to_come:
                self._to_come.setdefault(channel.hours, []).append(row)
            elif channel.days is not None:
                at = data.recent_days.index(channel.days)
                self._recent.append((at, layout.places((channel.variable,), "air")[0], row))
            else:
                kind = layout.kind(channel.variable)
                place = layout.places((channel.variable,), kind)[0]
                self._reads.setdefault((kind, channel.hours), []).append((place, row))
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

    def known(self, times: Hours) -> Hours:
        """Those of some input times of which, and of whose history, there are fields."""
        needed = times[:, None] + np.array(self.config.data.history_hours)
        return times[np.isin(needed, self._source.hours).all(axis=1)]

    def wind(self, time: int) -> Array | None:
        """Eastward and northward wind [2, H, W] in m/s of one hour, None where there is none."""
        names, kind = ("u", "v"), self.layout.kind("u")
        if not set(names) <= set(self.layout.channels[kind]):
            return None
        values = self._source.read(time, kind)
        return None if values is None else values[self.layout.places(names, kind)]

    def observed(self, time: int) -> Array:
        """Physical targets [T, H, W] of one hour, NaN where missing."""
        values = self._source.read(time, "air")
        if values is None:
            return np.full((len(self._target_channels), *self.grid.shape), np.nan, np.float32)
        return values[self._target_channels]

    def recent(self, time: int, days: Sequence[int]) -> Array:
        """Physical means of the targets over the last days before the day of an hour, shape
        [len(days), T, H, W]; see `Fields.recent`."""
        return self._source.recent(time, days)[:, self._target_channels]

    # numpy, because threads of torch, at work on so little, wait for each other: on a busy machine
    # an item took a hundred times as long in the training process as in a loader process

    def _fields(self, time: int) -> Array:
        """Normalised inputs [V, H, W] of one time, in the order of `Config.input_channels`."""
        fields = self._blank.copy()
        for (kind, hours), places in self._reads.items():
            values = self._source.read(time + hours, kind)
            if values is not None:
                for channel, row in places:
                    _normalise(values[channel], self._input_numbers[row], fields[row])
                if self._recent and (kind, hours) == ("air", 0):
                    self._add_recent(time, values, fields)
        for hours, rows in self._to_come.items():
            values = self.weather.weather_at(time, time + hours)
            if values is not None:
                for value, row in zip(values, rows, strict=True):
                    _normalise(value, self._input_numbers[row], fields[row])
        return fields

    def _add_recent(self, time: int, now: Array, fields: Array) -> None:
        """Means of the last days, less the values `now` of `air`."""
        means = self._source.recent(time, self.config.data.recent_days)
        for at, channel, row in self._recent:
            _normalise(means[at, channel] - now[channel], self._input_numbers[row], fields[row])

    def _targets(self, time: int) -> Array:
        """Normalised targets [K, T, H, W], NaN where missing."""
        leads = self.config.data.lead_times
        shape = (len(leads), len(self._target_channels), *self.grid.shape)
        targets = np.full(shape, np.nan, np.float32)
        for at, lead in enumerate(leads):
            values = self._source.read(time + lead, "air")
            if values is not None:
                for row, channel in enumerate(self._target_channels):
                    _normalise(values[channel], self._target_numbers[row], targets[at, row])
        return targets


def _numbers(statistics: Statistics, names: tuple[str, ...]) -> list[tuple[np.float32, np.float32]]:
    """Mean and standard deviation of each name."""
    try:
        mean, std = statistics.of(names)
    except KeyError as error:
        raise AqnetError(f"the statistics lack the variable {error}; compute them again") from None
    pairs = zip(mean.tolist(), std.tolist(), strict=True)
    return [(np.float32(mean), np.float32(std)) for mean, std in pairs]


def _normalise(values: NDArray[Any], numbers: tuple[np.float32, np.float32], out: Array) -> None:
    np.subtract(values, numbers[0], out=out, casting="same_kind")
    np.divide(out, numbers[1], out=out)
