"""For which hours the fields of a file hold.

Files say it in several ways: a time for which fields hold (CF's `time`, `valid_time`), or the time
at which a forecast began (`forecast_reference_time`, cfgrib's `time`) and steps after it. A time at
which a forecast began is never taken for the one for which its fields hold.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aqnet.config.periods import hour_text
from aqnet.errors import AqnetError

if TYPE_CHECKING:
    from aqnet.data.sources.files.source_file import SourceFile

Hours = NDArray[np.int64]

_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_SHORT = {"s": "second", "sec": "second", "min": "minute", "h": "hour", "hr": "hour", "d": "day"}
_CALENDARS = ("standard", "gregorian", "proleptic_gregorian")
_FIRST_GREGORIAN_DAY = np.datetime64("1582-10-15")
_SINCE = re.compile(
    r"([a-z]+)\s+since\s+(\d{1,4}-\d{1,2}-\d{1,2})"
    r"(?:[T ](\d{1,2}):(\d{2})(?::(\d{1,2})(?:\.0*)?)?)?(?:\s*(?:Z|UTC|\+00:?00))?"
)
_VALID = ("valid_time", "time", "xtime")  # the Copernicus data stores, CF, WRF
_REFERENCE = ("forecast_reference_time", "reference_time", "reftime", "initial_time", "base_time")
_LEAD = ("forecast_period", "lead_time", "leadtime", "step")


class Times(NamedTuple):
    """The time axis of a file.

    Attributes:
        names: of the coordinates that it was read from, for errors.
        dims: dimensions along which it runs, the outer one first; none in a file of one hour.
        valid: hours since 1970-01-01 00:00 UTC for which the fields hold, in the order of `dims`
            flattened, shape [N].
        base: when the forecast began that each belongs to, shape [N]; None for an analysis.
    """

    names: tuple[str, ...]
    dims: tuple[str, ...]
    valid: Hours
    base: Hours | None = None


def times_of(file: SourceFile) -> Times:
    """The hours of a file.

    Raises:
        AqnetError: no coordinate says them, what says them is ambiguous, or they are no whole hours
            of a calendar with leap days.
    """
    numbers = [name for name in file.names if file.kind(name) in "iuf" and len(file.dims(name)) < 3]
    numbers = [name for name in numbers if name not in file.bounds]
    lead = _first(file, numbers, "forecast_period", _LEAD)
    base = _first(file, numbers, "forecast_reference_time", _REFERENCE)
    initial = {base} | {
        name for name in numbers if "initial time" in str(file.attribute(name, "long_name"))
    }  # as cfgrib calls it, whose standard_name is `time` all the same
    valid = _first(file, [name for name in numbers if name not in initial], "time", _VALID)
    base = base or next((name for name in initial if name is not None), None)
    if lead is not None and valid is not None and base is None:
        if not set(file.dims(lead)) <= set(file.dims(valid)):
            base, valid = valid, None  # steps of their own: the time is where they begin
        elif file.attribute(valid, "standard_name") != "time" and valid != "valid_time":
            _refuse_unclear(file, valid, lead)
    if valid is None:
        return _steps_after(file, base, lead)
    dims, hours = file.dims(valid), _hours(file, valid)
    if base is not None and len(dims) == 2 and file.dims(base) == dims[1:]:
        dims, hours = dims[::-1], hours.T  # one forecast after another, whichever way it is stored
    names = tuple(name for name in (valid, base, lead) if name is not None)
    began: Hours | None = None
    if base is not None and set(file.dims(base)) <= set(dims):
        began = _spread(_hours(file, base), file.dims(base), dims, hours.shape)
    elif lead is not None and set(file.dims(lead)) <= set(dims):
        began = hours - _spread(_lead_hours(file, lead), file.dims(lead), dims, hours.shape)
    if began is not None and (began == hours).all():
        began = None  # an analysis, as GRIB has it: step 0
    return Times(names, dims, hours.ravel(), None if began is None else began.ravel())


def _steps_after(file: SourceFile, base: str | None, lead: str | None) -> Times:
    if base is None:
        raise AqnetError(f"{file.path}: the coordinate 'time' is missing")
    if lead is None:
        raise AqnetError(
            f"{file.path}: {base!r} is when a forecast began, and neither 'valid_time' nor a step "
            f"({', '.join(_LEAD)}) says for when its fields hold; add one to the file, or give "
            f"{base!r} the standard_name 'time' if it is that"
        )
    starts, steps = _hours(file, base), _lead_hours(file, lead)
    if file.dims(lead) == file.dims(base):
        dims, began, after = file.dims(base), starts, steps
    else:
        dims = (*file.dims(base), *file.dims(lead))
        began, after = np.broadcast_arrays(starts[..., None] if steps.ndim else starts, steps)
    return Times((base, lead), dims, (began + after).ravel(), began.ravel().copy())


def _refuse_unclear(file: SourceFile, valid: str, lead: str) -> None:
    if _lead_hours(file, lead).any():
        raise AqnetError(
            f"{file.path}: {valid!r} may be the time for which fields hold or, with {lead!r}, the "
            f"one at which a forecast began; give {valid!r} the standard_name 'time' or "
            "'forecast_reference_time'"
        )


def _first(
    file: SourceFile, candidates: list[str], standard_name: str, known: tuple[str, ...]
) -> str | None:
    """The variable of a meaning: by its name, which is rarely wrong, else by its attributes; None
    where there is none."""
    by_name = {name.lower(): name for name in candidates}
    for name in known:
        if name in by_name and file.attribute(by_name[name], "standard_name") in (
            None,
            "",
            standard_name,
        ):
            return by_name[name]
    of_name = (
        name for name in candidates if file.attribute(name, "standard_name") == standard_name
    )
    return next(of_name, None)


def _spread(values: Hours, own: tuple[str, ...], dims: tuple[str, ...], shape: object) -> Hours:
    """Values along some of `dims` as an array along all of them."""
    places = tuple(slice(None) if dim in own else None for dim in dims)
    ordered = values.transpose([own.index(dim) for dim in dims if dim in own])
    return np.broadcast_to(ordered[places], shape)  # type: ignore[call-overload]


def _hours(file: SourceFile, name: str) -> Hours:
    """A time coordinate as hours since 1970-01-01 00:00 UTC."""
    calendar = str(file.attribute(name, "calendar") or "standard").lower()
    units, where = file.unit(name) or "", f"{file.path}: {name!r}"
    if calendar not in _CALENDARS:
        raise AqnetError(
            f"{file.path}: the calendar of {name!r} is {calendar!r}; expected one of "
            f"{', '.join(_CALENDARS)} (with leap days)"
        )
    match = _SINCE.fullmatch(units.strip())
    try:
        if match is None:
            raise ValueError
        seconds = _seconds_of(match[1])
        year, month, day = (int(part) for part in match[2].split("-"))
        origin = np.datetime64(f"{year:04}-{month:02}-{day:02}", "s")
    except (KeyError, ValueError):
        raise AqnetError(
            f"{where} has units {units!r}; expected such as 'hours since 1970-01-01'"
        ) from None
    if calendar != "proleptic_gregorian" and origin < _FIRST_GREGORIAN_DAY:
        raise AqnetError(
            f"{where} counts from {match[2]}, which in the calendar {calendar!r} is a Julian date, "
            "two days off; count from 1970, or name the calendar proleptic_gregorian if it is meant"
        )
    start = int(origin.astype(np.int64)) + int(match[3] or 0) * 3600 + int(match[4] or 0) * 60
    values = file.values(name).astype(np.float64)
    return _whole_hours(where, values * seconds + start + int(match[5] or 0))


def _lead_hours(file: SourceFile, name: str) -> Hours:
    try:
        seconds = _seconds_of((file.unit(name) or "").strip())
    except KeyError:
        raise AqnetError(
            f"{file.path}: {name!r} has units {file.unit(name)!r}; expected hours"
        ) from None
    return _whole_hours(f"{file.path}: {name!r}", file.values(name).astype(np.float64) * seconds)


def _seconds_of(unit: str) -> int:
    """Seconds in a unit of time.

    Raises:
        KeyError: it is none.
    """
    return _SECONDS[_SHORT.get(unit, _SHORT.get(unit.removesuffix("s"), unit.removesuffix("s")))]


def _whole_hours(where: str, seconds: NDArray[np.float64]) -> Hours:
    if not np.isfinite(seconds).all():
        raise AqnetError(f"{where} holds missing values")
    hours = seconds / 3600
    rounded = np.rint(hours)
    if hours.size and abs(hours - rounded).max() > 1e-3:
        raise AqnetError(f"{where} holds times that are no whole hours")
    return rounded.astype(np.int64)


def check_times(file: SourceFile) -> None:
    """Refuse times that are not strictly ascending, by name.

    Raises:
        AqnetError: there are none, or two are equal or out of order.
    """
    times, path = file.times.valid, file.path
    if len(times) == 0:
        raise AqnetError(f"{path}: the file holds no time")
    wrong = np.flatnonzero(np.diff(times) <= 0)
    if not wrong.size:
        return
    before, hour = (hour_text(times[row]) for row in (wrong[0], wrong[0] + 1))
    if file.times.base is not None:
        names = " and ".join(repr(name) for name in file.times.names)
        raise AqnetError(
            f"{path}: {names} give several lead times for one valid time, or times out of order "
            f"({hour}); cut the lead times to those that follow each other once"
        )
    what = "duplicated" if hour == before else "unsorted"
    raise AqnetError(
        f"{path}: times are {what}: row {wrong[0] + 1} ({hour}) follows {before}; sort the file "
        "and keep each hour once"
    )
