"""The channels of `Batch.fields`: which variable, at which hour, as what."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

POLLUTANTS = ("pm25", "pm10", "so2", "no2", "co", "o3")  # concentrations
STATIC_VARIABLES = ("lat2d", "lon2d", "elevation", "population")
_NAME = re.compile(r"([^@]+)(?:@([+-]\d+)h|@mean(\d+)d)?")


@dataclass(frozen=True)
class Channel:
    """One channel of `Batch.fields`.

    Attributes:
        variable: its name in `data.variables`, `data.weather` or `data.targets`.
        hours: from the input time to that of the values: 0 now, negative earlier, positive for
            weather to come.
        days: where given, the channel is the mean of the last `days` days less the value now.
    """

    variable: str
    hours: int = 0
    days: int | None = None

    @property
    def name(self) -> str:
        """As in `Config.input_variables`: `pm25`, `pm25@-24h`, `u@+12h`, `pm25@mean7d`."""
        if self.days is not None:
            return f"{self.variable}@mean{self.days}d"
        return f"{self.variable}@{self.hours:+d}h" if self.hours else self.variable

    @property
    def static(self) -> bool:
        """Whether it is the same at all times."""
        return self.variable in STATIC_VARIABLES

    @property
    def to_come(self) -> bool:
        """Whether it is weather after the input time."""
        return self.hours > 0


def lowest(names: Sequence[str]) -> tuple[float, ...]:
    """The lowest value that each variable can have: 0 for a concentration, else -infinity.

    Forecasts below it are set to it, in every output and score.
    """
    return tuple(0.0 if name in POLLUTANTS else -math.inf for name in names)


def channel(name: str) -> Channel:
    """The inverse of `Channel.name`.

    Raises:
        ValueError: no channel is called so.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no channel such as pm25, pm25@-24h, u@+12h or pm25@mean7d")
    variable, hours, days = match.groups()
    return Channel(variable, int(hours or 0), int(days) if days else None)
