"""Sums of squared errors in every cell, counted while scoring: where a forecast helps."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from aqnet import distributed

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]

FINE = 2**20  # a squared error of one training variance
_LARGEST = 1e6  # variances of one pair, so that no sum of a decade's hours overflows


class CellErrors:
    """Squared errors of each forecast in whole millionths of the target's training variance, so
    that their sums are the same in any order, for any number of processes.

    Attributes:
        sums: int64, shape [F, K, T, N]: 70 MB for 7 forecasts, 4 lead times and 6 targets of 52,000
            cells.
    """

    def __init__(self, forecasts: int, leads: int, std: Values, cells: int) -> None:
        self.sums = np.zeros((forecasts, leads, len(std), cells), dtype=np.int64)
        self._std = np.where(std > 0, std, 1.0)[:, None]

    def count(self, number: int, forecast: Values, truth: Values, valid: Flags) -> None:
        """Add the valid pairs of an item, each array [K, T, N], to those of forecast `number`."""
        scaled = np.where(valid, (forecast - truth) / self._std, 0.0)
        squares = np.minimum(np.square(scaled), _LARGEST) * FINE
        self.sums[number] += np.rint(squares).astype(np.int64)

    def gather(self) -> None:
        """Add up the sums of all ranks, which all call it once, at the end."""
        distributed.sum_(torch.from_numpy(self.sums))

    def skill(self, reference: NDArray[np.int64]) -> Values:
        """1 - MSE / MSE of a reference in each cell, of the first forecast, [K, T, N]; NaN where
        the reference makes no error.

        Args:
            reference: number of the forecast to compare with, shape [K, T].
        """
        theirs = np.take_along_axis(self.sums, reference[None, ..., None], axis=0)[0]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(theirs > 0, 1.0 - self.sums[0] / theirs, np.nan)
