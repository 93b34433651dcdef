"""Pollutants and units as people write them, in pages and in pictures."""

from __future__ import annotations

from html import escape

_NAMES = {
    "pm25": ("PM", "2.5"),
    "pm10": ("PM", "10"),
    "so2": ("SO", "2"),
    "no2": ("NO", "2"),
    "co": ("CO", ""),
    "o3": ("O", "3"),
}


def plain(name: str) -> str:
    """`PM2.5` of `pm25`, for titles of windows; an unknown name as it is."""
    return "".join(_NAMES.get(name, (name,)))


def in_html(name: str) -> str:
    """`PM<sub>2.5</sub>` of `pm25`; an unknown name escaped."""
    letters, index = _NAMES.get(name, (escape(name), ""))
    return f"{letters}<sub>{index}</sub>" if index else letters


def in_picture(name: str) -> str:
    """`PM$_{2.5}$` of `pm25`, as matplotlib sets it."""
    letters, index = _NAMES.get(name, (name, ""))
    return f"{letters}$_{{{index}}}$" if index else letters


def unit(text: str) -> str:
    """`µg m⁻³` of `ug m-3`."""
    return text.replace("ug ", "µg ").replace("m-3", "m⁻³")
