"""Pictures of forecasts for TensorBoard in the colours of the report's maps, by Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from aqnet.batch import Batch, Statistics

Pixels = NDArray[np.uint8]
Values = NDArray[np.float64]

MISSING = (204, 204, 204)
SIDE = 96  # pixels of a panel at least; coarse grids are enlarged to it
LEFT, TOP, GAP, BELOW = 44, 14, 4, 30  # pixels around panels: lead times, titles, scales
BAR = 8  # pixels of a scale's height
# YlGnBu and, from its other end, PuOr of ColorBrewer (Apache 2.0), in steps of equal distance
AMOUNT = (
    *((255, 255, 217), (237, 248, 177), (199, 233, 180), (127, 205, 187), (65, 182, 196)),
    *((29, 145, 192), (34, 94, 168), (37, 52, 148), (8, 29, 88)),
)
DIFFERENCE = (
    *((45, 0, 75), (84, 39, 136), (128, 115, 172), (178, 171, 210), (216, 218, 235)),
    (247, 247, 247),
    *((254, 224, 182), (253, 184, 99), (224, 130, 20), (179, 88, 6), (127, 59, 8)),
)


class Examples(NamedTuple):
    """Validation items whose maps are drawn, always the same.

    Attributes:
        batch: the items, on the CPU.
        statistics, units: of the targets, by name.
        south_first: whether the grid's first row is the southernmost (pictures have north above).
    """

    batch: Batch
    statistics: Statistics
    units: dict[str, str]
    south_first: bool


def mosaic(
    present: Values,
    forecast: Values,
    truth: Values,
    leads: Sequence[int],
    unit: str,
    south_first: bool,
) -> Pixels:
    """One pollutant: at the input time, then forecast, truth and forecast - truth from left to
    right, lead times from top to bottom, with their scales below.

    One scale for all times spans 96 % of the true values, so that colours keep their meaning from
    one validation to the next; that of the differences half of it to either side. Grey is missing;
    where no truth is known there is the forecast alone.

    Args:
        present: shape [H, W], NaN where unknown; forecast, truth: [K, H, W]; all in `unit`.
    Returns:
        Red, green and blue, shape [pixels, pixels, 3].
    """
    known = truth[np.isfinite(truth)]
    low, high = np.percentile(known, (2, 98)) if known.size else (0.0, 1.0)
    span = max(float(high - low), 1e-6)
    rows = [("input", [present])] if np.isfinite(present).any() else []
    for lead, ours, real in zip(leads, forecast, truth, strict=True):
        told = np.isfinite(real).any()
        rows.append((f"+{lead} h", [ours, real, ours - real] if told else [ours]))
    factor = -(-SIDE // min(present.shape))
    height, width = (factor * side + GAP for side in present.shape)
    size = LEFT + 3 * width, TOP + len(rows) * height + BELOW
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    ends = (low, high), (low, high), (-span / 2, span / 2)
    titles = "forecast", "truth", "forecast - truth"
    shades = AMOUNT, AMOUNT, DIFFERENCE
    for column, ((first, last), colours) in enumerate(zip(ends, shades, strict=True)):
        left = LEFT + column * width
        pen.text((left, 0), titles[column], fill="black")
        for row, (label, fields) in enumerate(rows):
            top = TOP + row * height
            if column == 0:
                pen.text((2, top + height // 2 - 8), label, fill="black")
            if column < len(fields):
                panel = _coloured((fields[column] - first) / (last - first or 1e-6), colours)
                panel = panel[::-1] if south_first else panel
                panel = panel.repeat(factor, axis=0).repeat(factor, axis=1)
                canvas.paste(Image.fromarray(panel), (left, top))
        bar = np.broadcast_to(np.linspace(0.0, 1.0, width - GAP), (BAR, width - GAP))
        canvas.paste(Image.fromarray(_coloured(bar, colours)), (left, size[1] - BELOW + 2))
        text = f"{first:.3g} to {last:.3g}" + (f" {unit}" if column != 1 else "")
        pen.text((left, size[1] - 16), text, fill="black")
    return np.asarray(canvas)


def _coloured(values: Values, colours: Sequence[tuple[int, int, int]]) -> Pixels:
    """Colours of values from 0 to 1 (beyond: the nearest), shape [H, W, 3]."""
    places = np.linspace(0, 1, len(colours))
    inside = np.nan_to_num(values)
    channels = [np.interp(inside, places, channel) for channel in zip(*colours, strict=True)]
    picture = np.stack(channels, -1).astype(np.uint8)
    picture[~np.isfinite(values)] = MISSING
    return picture
