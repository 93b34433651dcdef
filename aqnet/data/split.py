"""Years, months and date ranges as hours since 1970-01-01 00:00 UTC."""

from __future__ import annotations

import numpy as np

from aqnet.config import Split
from aqnet.errors import AqnetError


def intervals(periods: tuple[str, ...]) -> list[tuple[int, int]]:
    """Half-open [first, end) hours of each period, in the order given.

    Args:
        periods: years (2013), months (2013-10), days (2013-10-05) or ranges of two of them joined
            by a slash, whose last year, month or day is included.
    Raises:
        AqnetError: a period is no date, or ends before it begins.
    """
    return [_interval(period) for period in periods]


def years(periods: tuple[str, ...]) -> list[int]:
    """The calendar years that the periods touch, ascending."""
    touched: set[int] = set()
    for first, end in intervals(periods):
        touched.update(range(year_of(first), year_of(end - 1) + 1))
    return sorted(touched)


def all_years(periods: Split) -> list[int]:
    """The calendar years that training, validation and test touch together, ascending."""
    return years((*periods.train, *periods.validation, *periods.test))


def year_of(hour: int) -> int:
    """Calendar year (UTC) of an hour since 1970."""
    return int(np.datetime64(hour, "h").astype("datetime64[Y]").astype(int)) + 1970


def _interval(period: str) -> tuple[int, int]:
    first, slash, last = period.partition("/")
    try:
        # a datetime64 has the unit its text has, so adding 1 steps a year, a month or a day
        begin, end = np.datetime64(first), np.datetime64(last if slash else first) + 1
    except ValueError:
        raise AqnetError(
            f"data.split: {period!r} is no year, month, day or range of dates"
        ) from None
    hours = (
        int(begin.astype("datetime64[h]").astype(int)),
        int(end.astype("datetime64[h]").astype(int)),
    )
    if hours[0] >= hours[1]:
        raise AqnetError(f"data.split: {period!r} ends before it begins")
    return hours
