"""Units of the source files, read and converted to aqnet's own; never assumed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aqnet.errors import AqnetError

POLLUTANTS = ("pm25", "pm10", "so2", "no2", "co", "o3")
PACKING_NOISE = 0.01  # ug/m3; packed files hold values down to this far below zero

CONCENTRATION = "ug m-3"
_CANONICAL: Mapping[str, str] = {
    **dict.fromkeys(POLLUTANTS, CONCENTRATION),
    "u": "m s-1",
    "v": "m s-1",
    "temp": "K",
    "rh": "%",
    "psfc": "Pa",
    "elevation": "m",
    "population": "people",
    "lat2d": "degrees",
    "lon2d": "degrees",
}


class Conversion(NamedTuple):
    """canonical = factor * value + offset, in `unit`."""

    factor: float
    offset: float
    unit: str


_ACCEPTED: Mapping[str, tuple[Conversion, ...]] = {
    "ug m-3": (Conversion(1.0, 0.0, CONCENTRATION),),
    "ng m-3": (Conversion(1e-3, 0.0, CONCENTRATION),),
    "mg m-3": (Conversion(1e3, 0.0, CONCENTRATION),),
    "g m-3": (Conversion(1e6, 0.0, CONCENTRATION),),
    "kg m-3": (Conversion(1e9, 0.0, CONCENTRATION),),
    "m s-1": (Conversion(1.0, 0.0, "m s-1"),),
    "km h-1": (Conversion(1 / 3.6, 0.0, "m s-1"),),
    "K": (Conversion(1.0, 0.0, "K"),),
    "degC": (Conversion(1.0, 273.15, "K"),),
    "Pa": (Conversion(1.0, 0.0, "Pa"),),
    "hPa": (Conversion(100.0, 0.0, "Pa"),),
    "kPa": (Conversion(1000.0, 0.0, "Pa"),),
    "%": (Conversion(1.0, 0.0, "%"),),
    "1": (Conversion(100.0, 0.0, "%"), Conversion(1.0, 0.0, "people")),
    "m": (Conversion(1.0, 0.0, "m"),),
    "km": (Conversion(1000.0, 0.0, "m"),),
    "degrees": (Conversion(1.0, 0.0, "degrees"),),
    "people": (Conversion(1.0, 0.0, "people"),),
}
_ALIASES: Mapping[str, str] = {
    **dict.fromkeys(("celsius", "Celsius", "deg_C", "degree_Celsius", "C", "°C"), "degC"),
    **dict.fromkeys(("kelvin", "Kelvin"), "K"),
    **dict.fromkeys(("mbar", "millibar", "mb"), "hPa"),
    **dict.fromkeys(("percent", "per cent"), "%"),
    **dict.fromkeys(("metre", "metres", "meter", "meters"), "m"),
    **dict.fromkeys(("degrees_north", "degree_north", "degrees_N", "degree"), "degrees"),
    **dict.fromkeys(("degrees_east", "degree_east", "degrees_E"), "degrees"),
    **dict.fromkeys(("people cell-1", "persons", "persons cell-1", "people per cell"), "people"),
    **dict.fromkeys(("persons per cell", "inhabitants", "count"), "people"),
}
_MIXING_RATIO = re.compile(r"([munp]?g|kg) k?g-1|([munp]?mol) mol-1|pp[mbt][vm]?")


def canonical_unit(name: str) -> str | None:
    """aqnet's unit of a variable, None where it knows no such variable."""
    return _CANONICAL.get(name)


def conversion(name: str, found: str | None, origin: str) -> Conversion:
    """How to bring values of the variable `name` to aqnet's unit.

    Args:
        found: the unit as the file (or `data.units`) spells it, None where it says nothing.
        origin: the file and its variable, for the error.
    Raises:
        AqnetError: the unit is absent, unknown, a mixing ratio or of another quantity.
    """
    expected = _CANONICAL.get(name)
    hint = f"set data.units.{name} in the config if the file is wrong"
    if found is None or not found.strip():
        raise AqnetError(
            f"{origin} has no units; expected {expected or 'a units attribute'}; {hint}"
        )
    text = _spelled_alike(found)
    if _MIXING_RATIO.fullmatch(text):
        raise AqnetError(
            f"{origin} has units {found!r}, a mixing ratio, which becomes a concentration only "
            f"with the density of the air at each point; expected {expected or CONCENTRATION!r}: "
            "convert the file first"
        )
    for candidate in _ACCEPTED.get(text, ()):
        if expected in (None, candidate.unit):
            return candidate
    if text in _ACCEPTED:
        raise AqnetError(f"{origin} has units {found!r}; expected {expected!r} or alike; {hint}")
    raise AqnetError(
        f"{origin} has unknown units {found!r}; expected {expected or 'one of aqnet'!r} "
        f"(known: {', '.join(_ACCEPTED)}); {hint}"
    )


def without_noise(values: NDArray[Any]) -> tuple[NDArray[Any], int, float]:
    """Concentrations [ug/m3] with packing noise (-`PACKING_NOISE` to 0) set to 0.

    Returns:
        The values, how many were set to 0, and the lowest value that is below the noise
        (0.0 where there is none).
    """
    negative = values < 0  # NaN compares false
    if not negative.any():
        return values, 0, 0.0
    lowest = float(values[negative].min())
    noise = negative & (values >= -PACKING_NOISE)
    below = lowest if lowest < -PACKING_NOISE else 0.0
    return np.where(noise, 0.0, values), int(noise.sum()), below


def _spelled_alike(text: str) -> str:
    """One spelling for `µg/m3`, `ug m**-3`, `ug m^-3` and `ug m-3`."""
    text = text.strip().replace("µ", "u").replace("μ", "u")  # the two code points of mu
    text = text.translate(str.maketrans("⁻¹²³", "-123")).replace("**", "").replace("^", "")
    text = re.sub(r"\s*/\s*([A-Za-z]+)(\d?)", lambda m: f" {m[1]}-{m[2] or 1}", text)
    text = " ".join(re.sub(r"[.*]", " ", text).split())
    return _ALIASES.get(text, text)
