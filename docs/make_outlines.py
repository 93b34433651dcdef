"""Make aqnet/evaluation/report/pictures/outlines.json, the coasts and borders drawn on maps.

The shapes are Natural Earth's (public domain), as TopoJSON from the npm package world-atlas:

    npm pack world-atlas@2.0.2 && tar xzf world-atlas-2.0.2.tgz
    python docs/make_outlines.py package/countries-50m.json \\
        aqnet/evaluation/report/pictures/outlines.json

A line is simplified (Douglas and Peucker 1973) to TOLERANCE and written in 0.01 degrees: its first
point and the steps that follow. Lines that belong to one country are coasts, to two, borders. The
borders are the de facto ones of Natural Earth and take no side.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

TOLERANCE = 0.06  # degrees, 7 km
SMALLEST = 0.2  # degrees; smaller islands are left out
SOUTHERNMOST = -60.0  # degrees; Antarctica is left out


def main(source: str, target: str) -> None:
    topology = json.loads(Path(source).read_text())
    scale, translate = (np.array(topology["transform"][key]) for key in ("scale", "translate"))
    arcs = [np.cumsum(np.array(arc), axis=0) * scale + translate for arc in topology["arcs"]]
    uses: Counter[int] = Counter()
    for country in topology["objects"]["countries"]["geometries"]:
        uses.update({arc if arc >= 0 else ~arc for arc in numbers(country["arcs"])})
    lines: dict[str, list[list[int]]] = {"coasts": [], "borders": []}
    for number, arc in enumerate(arcs):
        small = np.ptp(arc, axis=0).max() < SMALLEST and (arc[0] == arc[-1]).all()
        if small or arc[:, 1].max() < SOUTHERNMOST:
            continue
        for part in np.split(arc, np.flatnonzero(on_the_edge(arc)) + 1):
            if len(part) > 1:
                points = np.round(simplified(part) * 100).astype(int)
                steps = np.diff(points, axis=0, prepend=0)
                lines["borders" if uses[number] > 1 else "coasts"].append(steps.ravel().tolist())
    text = {"source": "Natural Earth 1:50m (public domain) by docs/make_outlines.py", **lines}
    Path(target).write_text(json.dumps(text, separators=(",", ":")) + "\n")


def numbers(arcs: list) -> list[int]:
    """All arc numbers in nested lists."""
    return [n for item in arcs for n in (numbers(item) if isinstance(item, list) else [item])]


def on_the_edge(arc: np.ndarray) -> np.ndarray:
    """Segments along the edge of the map: cuts at the date line and at the pole, not coasts."""
    edge = (np.abs(arc) > (179.95, 89.9)) | np.array([[False, False]])
    return (edge[1:] & edge[:-1]).any(axis=1) | (np.abs(np.diff(arc[:, 0])) > 180)


def simplified(line: np.ndarray) -> np.ndarray:
    """The points that keep every dropped one within TOLERANCE of the line."""
    keep = np.zeros(len(line), dtype=bool)
    keep[[0, -1]] = True
    todo = [(0, len(line) - 1)]
    while todo:
        first, last = todo.pop()
        if last - first < 2:
            continue
        chord = line[last] - line[first]
        inner = line[first + 1 : last] - line[first]
        length = np.hypot(*chord)
        cross = inner[:, 0] * chord[1] - inner[:, 1] * chord[0]
        away = np.abs(cross) / length if length > 0 else np.hypot(*inner.T)
        if away.max() > TOLERANCE:
            middle = first + 1 + int(away.argmax())
            keep[middle] = True
            todo += [(first, middle), (middle, last)]
    return line[keep]


if __name__ == "__main__":
    main(*sys.argv[1:])
