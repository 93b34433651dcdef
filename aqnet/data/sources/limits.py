"""Values that cannot be, and codes for missing ones that a file does not declare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aqnet.config.periods import hour_text
from aqnet.data.sources.units import (
    CONCENTRATION,
    MIXING_RATIO,
    PACKING_NOISE,
    Conversion,
    canonical_unit,
    conversion,
)
from aqnet.errors import AqnetError

MINUS_999 = -999.0  # what older AQ_NET2 stores hold outside China

# wide: what no reanalysis, model or instrument at the ground gives, in aqnet's units
LIMITS: Mapping[str, tuple[float, float]] = {
    "temp": (150.0, 350.0),
    "dewpoint": (100.0, 350.0),
    "psfc": (30_000.0, 110_000.0),
    "u": (-150.0, 150.0),
    "v": (-150.0, 150.0),
    "rh": (-5.0, 150.0),
    "pm25": (-PACKING_NOISE, 50_000.0),
    "pm10": (-PACKING_NOISE, 50_000.0),
    "so2": (-PACKING_NOISE, 50_000.0),
    "no2": (-PACKING_NOISE, 20_000.0),
    "co": (-PACKING_NOISE, 1e6),
    "o3": (-PACKING_NOISE, 5_000.0),
    "elevation": (-500.0, 9_000.0),
    "population": (0.0, 1e9),
}
_MIXING_RATIO_LIMITS = (-1e-11, 0.1)  # kg kg-1
_ANYTHING = (-9e19, 9e19)  # of variables that aqnet does not know: 1e20 is a code
_SHOWN = 3


class Beyond(NamedTuple):
    """A value as it is in the file, how many there are, and the place of the first in the block."""

    value: float
    number: int
    first: tuple[int, ...]


def limits(name: str, unit: str) -> tuple[float, float]:
    """Lowest and highest possible value of a variable, in aqnet's unit or as a mixing ratio."""
    return _MIXING_RATIO_LIMITS if unit == MIXING_RATIO else LIMITS.get(name, _ANYTHING)


def without_codes(values: NDArray[Any], codes: Sequence[float]) -> tuple[NDArray[Any], int]:
    """Values with `codes` and -999 as NaN, and how many that were."""
    if not values.size:
        return values, 0
    low, high = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)
    found = 0
    for code in (MINUS_999, *codes):
        if low <= code <= high or values.dtype.type(code) in (low, high):
            marked = values == values.dtype.type(code)
            if marked.any():
                values = np.where(marked, values.dtype.type(np.nan), values)
                found += int(marked.sum())
    return values, found


def beyond(
    values: NDArray[Any], name: str, convert: Conversion, lowest: float | None = None
) -> list[Beyond]:
    """The most frequent impossible values of a block (in the file's unit, NaN = missing).

    `lowest`, in aqnet's unit, takes the place of the lower limit of a concentration.
    """
    if not values.size:
        return []
    low, high = limits(name, convert.unit)
    if lowest is not None and convert.unit == CONCENTRATION:
        low = lowest
    low, high = ((limit - convert.offset) / convert.factor for limit in (low, high))
    with np.errstate(over="ignore"):  # to the last digit of float32
        least, most = values.dtype.type(low - 1e-6 * abs(low)), values.dtype.type(high)
    if np.fmin.reduce(values, axis=None) >= least and np.fmax.reduce(values, axis=None) <= most:
        return []
    wrong = (values < least) | (values > most)
    if not wrong.any():  # all is missing
        return []
    distinct, counts = np.unique(values[wrong], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_SHOWN]
    found = []
    for value, count in zip(distinct[order], counts[order], strict=True):
        place = np.unravel_index(int(np.argmax(values == value)), values.shape)
        found.append(Beyond(value, int(count), tuple(int(index) for index in place)))
    return found


def refuse(
    values: NDArray[Any],
    name: str,
    convert: Conversion,
    origin: str,
    unit: str | None,
    hours: NDArray[np.int64] | None = None,
    lowest: float | None = None,
) -> None:
    """Refuse a block with values that cannot be; see `beyond`.

    Args:
        origin: file and variable, for the error; unit: of the values there.
        hours: since 1970, of the block's first axis; None for a field without a time.
    Raises:
        AqnetError: the most frequent of these values, their number, and the place of the first.
    """
    for found in beyond(values, name, convert, lowest):
        *row, y, x = found.first
        place = f"row {y}, column {x}"
        if hours is not None:
            place = f"{hour_text(hours[row[0]])}, {place}"
        if np.isinf(found.value):
            raise AqnetError(
                f"{origin} holds infinite values ({found.number}, the first at {place}); "
                "mark them as missing in the file"
            )
        low, high = limits(name, convert.unit)
        noise = f" (below {low:g} is no packing noise)" if convert.unit == CONCENTRATION else ""
        raise AqnetError(
            f"{origin} holds {shown(found.value)} {unit or ''} in {found.number:,} values, the "
            f"first at {place}; possible are {low:,g} to {high:,g} {convert.unit}{noise}. Where it "
            f"stands for a missing value, set data.missing_values: [{shown(found.value)}]; "
            "otherwise correct it in a copy"
        )


def shown(value: Any) -> str:
    """The shortest text that is this number in its own precision: 1e20 in float32 is 1e+20."""
    if 1e-3 <= abs(value) < 1e15:
        return str(np.format_float_positional(value, trim="-"))
    return str(value)


def in_our_unit(name: str, value: float, unit: str | None, origin: str) -> float | None:
    """A single value in aqnet's unit, None where it is impossibly high.

    Without a `unit` it is in aqnet's already.

    Raises:
        AqnetError: the unit is unknown, or that of a mixing ratio.
    """
    if not unit:
        unit = canonical_unit(name) or "1"
    convert = conversion(name, unit, f"{origin}: {name}")
    if convert.unit == MIXING_RATIO:
        raise AqnetError(
            f"{origin}: {name} has units {unit!r}, a mixing ratio; it becomes a concentration only "
            "with temperature and pressure at the station: convert the file, or leave it out"
        )
    found = convert.factor * value + convert.offset
    return found if found <= limits(name, convert.unit)[1] else None
