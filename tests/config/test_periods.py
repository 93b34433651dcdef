import numpy as np
import pytest

from aqnet.config import periods
from aqnet.errors import AqnetError


def hour(text: str) -> int:
    return int(np.datetime64(text, "h").astype(int))


@pytest.mark.parametrize(
    ("period", "first", "end"),
    [
        ("2016", "2016-01-01", "2017-01-01"),
        ("2016-02", "2016-02-01", "2016-03-01"),
        ("2013-12", "2013-12-01", "2014-01-01"),
        ("2016-02-29", "2016-02-29", "2016-03-01"),
        ("2013-03-01/2013-09-30", "2013-03-01", "2013-10-01"),
        ("2013/2014", "2013-01-01", "2015-01-01"),
    ],
)
def test_the_last_day_of_a_period_is_included(period: str, first: str, end: str):
    assert periods.intervals((period,)) == [(hour(first), hour(end))]


def test_leap_years_have_8784_hours():
    lengths = [end - first for first, end in periods.intervals(("2015", "2016"))]
    assert lengths == [8760, 8784]


def test_years_touched_are_listed_once():
    assert periods.years(("2014-12", "2014-01", "2016-12-31/2017-01-01")) == [2014, 2016, 2017]


@pytest.mark.parametrize("period", ["2013-13", "2013-02-30", "2014/2013"])
def test_impossible_dates_are_named(period: str):
    with pytest.raises(AqnetError, match=period):
        periods.intervals((period,))
