"""Years, months and date ranges as hours since 1970-01-01 00:00 UTC."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from aqnet.errors import AqnetError

_DATE = r"\d{4}(?:-\d{2}(?:-\d{2})?)?"
_PERIOD = re.compile(f"({_DATE})(?:/({_DATE}))?")


def intervals(periods: Sequence[str]) -> list[tuple[int, int]]:
    """Half-open [first, end) hours of each period, in the order given.

    Args:
        periods: years (2013), months (2013-10), days (2013-10-05) or ranges of two of them joined
            by a slash, whose last year, month or day is included.
    Raises:
        AqnetError: a period is no date, or ends before it begins.
    """
    return [_interval(period) for period in periods]


def years(periods: Sequence[str]) -> list[int]:
    """The calendar years that the periods touch, ascending."""
    touched: set[int] = set()
    for first, end in intervals(periods):
        touched.update(range(year_of(first), year_of(end - 1) + 1))
    return sorted(touched)


def year_of(hour: int) -> int:
    """Calendar year (UTC) of an hour since 1970."""
    return int(np.datetime64(hour, "h").astype("datetime64[Y]").astype(int)) + 1970


def hour_text(hour: int) -> str:
    """An hour since 1970 as `2013-01-31 06:00`."""
    return str(np.datetime64(int(hour), "h").astype("datetime64[m]")).replace("T", " ")


def _interval(period: str) -> tuple[int, int]:
    match = _PERIOD.fullmatch(period)
    try:
        if match is None:
            raise ValueError
        # a datetime64 has the unit its text has, so adding 1 steps a year, a month or a day
        begin, end = np.datetime64(match[1]), np.datetime64(match[2] or match[1]) + 1
    except ValueError:
        raise AqnetError(
            f"{period!r} is no year (2013), month (2013-10) or date range (2013-03-01/2013-09-30)"
        ) from None
    first, after = (int(date.astype("datetime64[h]").astype(int)) for date in (begin, end))
    if first >= after:
        raise AqnetError(f"{period!r} ends before it begins")
    return first, after
