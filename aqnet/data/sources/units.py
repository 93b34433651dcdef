"""Units of the source files, read and converted to aqnet's own; never assumed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aqnet.config import POLLUTANTS
from aqnet.errors import AqnetError

PACKING_NOISE = 0.01  # ug/m3; packed files hold values down to this far below zero

CONCENTRATION = "ug m-3"
MIXING_RATIO = "kg kg-1"
DRY_AIR = 287.05  # specific gas constant [J kg-1 K-1]
_MOLAR_MASS = {"so2": 64.066, "no2": 46.0055, "co": 28.0101, "o3": 47.9982}  # g mol-1 (IUPAC)
_MOLAR_MASS_OF_AIR = 28.9647  # g mol-1, dry (US Standard Atmosphere)
CANONICAL: Mapping[str, str] = {
    **dict.fromkeys(POLLUTANTS, CONCENTRATION),
    "u": "m s-1",
    "v": "m s-1",
    "temp": "K",
    "dewpoint": "K",
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


# by aqnet's unit: what it is read from, and the factor to it
_ACCEPTED: Mapping[str, Mapping[str, float]] = {
    CONCENTRATION: {"ug m-3": 1.0, "ng m-3": 1e-3, "mg m-3": 1e3, "g m-3": 1e6, "kg m-3": 1e9},
    "m s-1": {"m s-1": 1.0, "km h-1": 1 / 3.6},
    "K": {"K": 1.0, "degC": 1.0},
    "Pa": {"Pa": 1.0, "hPa": 100.0, "kPa": 1000.0},
    "%": {"%": 1.0, "1": 100.0},
    "m": {"m": 1.0, "km": 1000.0},
    "degrees": {"degrees": 1.0},
    "people": {"people": 1.0, "1": 1.0},
}
_OFFSET = {"degC": 273.15}  # in aqnet's unit
_KNOWN = tuple(dict.fromkeys(spelling for units in _ACCEPTED.values() for spelling in units))
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
_PREFIX = {"": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9, "p": 1e-12, "k": 1e3}
_PARTS_PER = {"m": 1e-6, "b": 1e-9, "t": 1e-12}
_BY_MASS = re.compile(r"([kmunp]?)g (k?)g-1")
_BY_VOLUME = re.compile(r"([munp]?)mol mol-1|pp([mbt])v?")


def canonical_unit(name: str) -> str | None:
    """aqnet's unit of a variable, None where it knows no such variable."""
    return CANONICAL.get(name)


def conversion(name: str, found: str | None, origin: str) -> Conversion:
    """How to bring values of the variable `name` to aqnet's unit.

    Mixing ratios of pollutants come to kg kg-1, and become concentrations where the density of the
    air is known. Variables that aqnet does not know keep their values and their unit.

    Args:
        found: the unit as the file (or `data.units`) spells it, None where it says nothing.
        origin: the file and its variable, for the error.
    Raises:
        AqnetError: the unit is absent, unknown or of another quantity.
    """
    expected = CANONICAL.get(name)
    hint = f"set data.units.{name} in the config if the file is wrong"
    if found is None or not found.strip():
        raise AqnetError(
            f"{origin} has no units; expected {expected or 'a units attribute'}; {hint}"
        )
    text = _spelled_alike(found)
    if expected is None:
        return Conversion(1.0, 0.0, found.strip())
    if expected == CONCENTRATION and (factor := _mixing_ratio(name, text)) is not None:
        return Conversion(factor, 0.0, MIXING_RATIO)
    if text in _ACCEPTED[expected]:
        return Conversion(_ACCEPTED[expected][text], _OFFSET.get(text, 0.0), expected)
    if text in _KNOWN:
        raise AqnetError(f"{origin} has units {found!r}; expected {expected!r} or alike; {hint}")
    raise AqnetError(
        f"{origin} has unknown units {found!r}; expected {expected!r} "
        f"(known: {', '.join(_KNOWN)}); {hint}"
    )


def readable(name: str, found: str | None) -> bool:
    """Whether a unit, as a file spells it, is one that a variable can be converted from."""
    try:
        conversion(name, found, "")
    except AqnetError:
        return False
    return True


def _mixing_ratio(name: str, text: str) -> float | None:
    """The factor to kg kg-1; None where the unit is no mixing ratio, or one by volume of what is no
    gas."""
    if match := _BY_MASS.fullmatch(text):
        return _PREFIX[match[1]] / _PREFIX[match[2]]
    match = _BY_VOLUME.fullmatch(text)
    if match is None or name not in _MOLAR_MASS:
        return None
    share = _PARTS_PER[match[2]] if match[2] else _PREFIX[match[1]]
    return share * _MOLAR_MASS[name] / _MOLAR_MASS_OF_AIR


def no_density(origin: str) -> AqnetError:
    """The error for a mixing ratio without the temperature and pressure of its air."""
    return AqnetError(
        f"{origin} has units of a mixing ratio, which becomes a concentration only with the "
        "density of the air, from its temperature and surface pressure; name what the files (or "
        "another entry of data.sources) call them in data.sources[].names: {temp: ..., psfc: ...}, "
        f"or convert the file to {CONCENTRATION!r} first"
    )


def concentration(
    ratio: NDArray[Any], temperature: NDArray[Any], pressure: NDArray[Any]
) -> NDArray[np.float32]:
    """Mixing ratios [kg kg-1] as concentrations [ug m-3], by the density of dry air at
    `temperature` [K] and `pressure` [Pa]."""
    density = pressure.astype(np.float64) / (DRY_AIR * temperature.astype(np.float64))
    return (1e9 * ratio * density).astype(np.float32)


def relative_humidity(temperature: NDArray[Any], dewpoint: NDArray[Any]) -> NDArray[Any]:
    """Relative humidity [%] over water from temperature and dew point [K], as ECMWF defines it: the
    ratio of the saturation pressures of Tetens' formula (IFS documentation, part IV, eq. 7.5)."""

    def exponent(kelvin: NDArray[Any]) -> NDArray[Any]:
        return 17.502 * (kelvin - 273.16) / (kelvin - 32.19)

    found: NDArray[Any] = 100.0 * np.exp(exponent(dewpoint) - exponent(temperature))
    return found


def without_noise(values: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Concentrations with packing noise (-`PACKING_NOISE` to 0 ug/m3), the only negative values
    that `limits.beyond` lets pass, set to 0, and how many that were."""
    negative = values < 0  # NaN compares false
    if not negative.any():
        return values, 0
    return np.where(negative, values.dtype.type(0), values), int(negative.sum())


def _spelled_alike(text: str) -> str:
    """One spelling for `µg/m3`, `ug m**-3`, `ug m^-3` and `ug m-3`."""
    text = text.strip().replace("µ", "u").replace("μ", "u")  # the two code points of mu
    text = text.translate(str.maketrans("⁻¹²³", "-123")).replace("**", "").replace("^", "")
    text = re.sub(r"\s*/\s*([A-Za-z]+)(\d?)", lambda m: f" {m[1]}-{m[2] or 1}", text)
    text = " ".join(re.sub(r"[.*]", " ", text).split())
    return _ALIASES.get(text, text)
