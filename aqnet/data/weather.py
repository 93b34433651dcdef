"""The weather to come that a forecast is given: where it is read."""

from __future__ import annotations

from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from aqnet.config import Config
from aqnet.data.stores.layout import Layout
from aqnet.data.stores.record import Fields

Array = NDArray[np.float32]
Stored = Literal["analysed", "persisted", "none"]
STORED: tuple[Stored, ...] = get_args(Stored)


class Weather(Protocol):
    """Weather after an input time; other people's forecasts are one such source."""

    def weather_at(self, base_hour: int, hour: int) -> Array | None:
        """Fields of `data.weather` at `hour`, as far as known at `base_hour`.

        Returns:
            Physical values, NaN = missing, [len(data.weather), H, W]; None where there are none.
        """


class AnalysedWeather:
    """The weather that came to be: an upper bound of what a weather forecast can give."""

    def __init__(self, source: Fields, layout: Layout, config: Config) -> None:
        self._source = source
        self._channels = layout.places(config.data.weather, "weather")

    def weather_at(self, base_hour: int, hour: int) -> Array | None:
        values = self._source.read(hour, "weather")
        return None if values is None else values[self._channels]


class PersistedWeather(AnalysedWeather):
    """The weather of the input time, held."""

    def weather_at(self, base_hour: int, hour: int) -> Array | None:
        return super().weather_at(base_hour, base_hour)


class NoWeather:
    """None at all."""

    def weather_at(self, base_hour: int, hour: int) -> Array | None:
        return None


def stored_weather(which: Stored, source: Fields, layout: Layout, config: Config) -> Weather:
    """Weather from the fields that a forecast is made of, by its name."""
    if which == "none":
        return NoWeather()
    kind = AnalysedWeather if which == "analysed" else PersistedWeather
    return kind(source, layout, config)
