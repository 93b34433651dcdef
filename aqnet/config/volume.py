"""How much an item reads."""

from __future__ import annotations

from aqnet.config.keys import Data

_VALUE_BYTES = {"float32": 4, "float16": 2}
_DAILY_BYTES = 4 + 2  # a running sum and its count


def item_bytes(data: Data, cells: int) -> int:
    """Bytes of the stores' chunks that one item reads, before compression.

    A chunk holds all weather or all targets of an hour, or the daily sums of a day.
    """
    weather, air = len(data.stored_weather), len(data.targets)
    now = len(data.history_hours)
    hours_of_weather, hours_of_air = len(data.weather_hours), len(data.lead_times)
    hours_of_weather += now if set(data.variables) & set(data.stored_weather) else 0
    hours_of_air += now if set(data.variables) & set(data.targets) else 0
    days = len(data.recent_days) + 1 if data.recent_days else 0
    values = hours_of_weather * weather + hours_of_air * air
    return cells * (_VALUE_BYTES[data.dtype] * values + _DAILY_BYTES * days * air)
