"""Quantiles of any number of values from counts, which add up exactly over processes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Bins:
    """Bins that are equal in asinh(fine * value): 1 / `fine` times as wide at 0 as in proportion
    to the value far away; the outermost are open.

    Attributes:
        number: of bins; reach: of asinh(fine * value), to either side.
    """

    number: int
    fine: float
    reach: float

    def of(self, values: Tensor) -> Tensor:
        """The bin of each value, int64, the same shape; values are no NaN."""
        places = torch.asinh(self.fine * values) / self.reach
        return ((places + 1.0) * (self.number / 2)).long().clamp(0, self.number - 1)

    def quantile(self, counts: NDArray[np.integer], level: float) -> NDArray[np.float64]:
        """The value that a share `level` of the counted lies below, linear inside a bin.

        Args:
            counts: shape [..., number], somewhere above 0 along the last axis.
        Returns:
            float64, shape [...].
        """
        ends = np.sinh((np.arange(self.number + 1) / (self.number / 2) - 1.0) * self.reach)
        below = counts.cumsum(-1)
        wanted = level * below[..., -1:]
        at = np.minimum((below < wanted).sum(-1, keepdims=True), self.number - 1)
        inside = np.take_along_axis(counts, at, -1)
        part = (wanted - np.take_along_axis(below, at, -1) + inside) / np.maximum(inside, 1)
        values: NDArray[np.float64] = ends[at] + part * (ends[at + 1] - ends[at])
        return values[..., 0] / self.fine
