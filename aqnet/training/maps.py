"""Pictures of forecasts for TensorBoard, by plain colour mapping."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aqnet.batch import Batch

Pixels = NDArray[np.uint8]

_MISSING = (128, 128, 128)
_PANEL_HEIGHT = 96  # pixels at least; coarse grids are enlarged to it
_GAP = 2  # white pixels between panels
# viridis (BIDS colormap, CC0) and a blue-white-red scale, in steps of equal distance
_AMOUNT = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_DIFFERENCE = ((33, 102, 172), (146, 197, 222), (247, 247, 247), (244, 165, 130), (178, 24, 43))


class Examples(NamedTuple):
    """Validation items whose maps are drawn, always the same.

    Attributes:
        batch: the items, on the CPU.
        south_first: whether the grid's first row is the southernmost (pictures have north above).
    """

    batch: Batch
    south_first: bool


def mosaic(forecast: NDArray[np.float32], truth: NDArray[np.float32], south_first: bool) -> Pixels:
    """Forecast, truth and forecast - truth from left to right, lead times from top to bottom.

    The colours of a lead time span 96 % of its true values, so that they keep their meaning from
    one validation to the next; those of the differences half of that to either side. Grey is
    missing.

    Args:
        forecast, truth: of one pollutant in any unit, NaN where missing, shape [K, H, W].
    Returns:
        Red, green and blue, shape [pixels, pixels, 3].
    """
    rows = []
    for ours, real in zip(forecast, truth, strict=True):
        known = real[np.isfinite(real)]
        low, high = np.percentile(known, (2, 98)) if known.size else (0.0, 1.0)
        span = max(float(high - low), 1e-6)
        panels = (
            _coloured((ours - low) / span, _AMOUNT),
            _coloured((real - low) / span, _AMOUNT),
            _coloured((ours - real) / span + 0.5, _DIFFERENCE),
        )
        rows.append(_joined([_enlarged(panel, south_first) for panel in panels], axis=1))
    return _joined(rows, axis=0)


def _coloured(values: NDArray[np.float32], colours: tuple[tuple[int, int, int], ...]) -> Pixels:
    """Colours of values from 0 to 1 (beyond: the nearest), shape [H, W, 3]."""
    places = np.linspace(0, 1, len(colours))
    inside = np.nan_to_num(values)
    channels = [np.interp(inside, places, channel) for channel in zip(*colours, strict=True)]
    picture = np.stack(channels, -1).astype(np.uint8)
    picture[~np.isfinite(values)] = _MISSING
    return picture


def _enlarged(panel: Pixels, south_first: bool) -> Pixels:
    factor = -(-_PANEL_HEIGHT // panel.shape[0])
    return (panel[::-1] if south_first else panel).repeat(factor, axis=0).repeat(factor, axis=1)


def _joined(parts: list[Pixels], axis: int) -> Pixels:
    shape = list(parts[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, 255, dtype=np.uint8)
    spaced = [piece for part in parts for piece in (gap, part)][1:]
    return np.concatenate(spaced, axis=axis)
