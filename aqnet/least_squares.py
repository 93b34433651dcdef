"""Least squares over cells and times that several ranks read, the same for any number of ranks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from aqnet import distributed

Values = NDArray[np.float64]
Hours = NDArray[np.int64]
PARTS = 64  # of the times, each added up by one rank
SMALLEST = 1e-10  # eigenvalue of correlations, below which two regressors are the same


def products(*fields: NDArray[np.floating]) -> Values:
    """Sums over the cells of the products of every two of F fields [..., N], shape [..., F, F].

    A cell counts where all fields have a value; fields that lack leading axes are repeated along
    them.
    """
    stacked = np.stack(np.broadcast_arrays(*fields), axis=-2).astype(np.float64)
    known = np.isfinite(stacked).all(axis=-2, keepdims=True)
    stacked = np.where(known, stacked, 0.0)
    sums: Values = stacked @ stacked.swapaxes(-1, -2)
    return sums


def summed(times: Hours, of: Callable[[int], Values]) -> Values:
    """The sum of `of(time)` over all times; all ranks call, each gets the whole.

    Part j of the times goes to rank j mod world_size and parts are added in their order, so that
    the sum does not depend on how many ranks there are.
    """
    parts = np.array_split(times, min(PARTS, len(times)))
    shape = of(int(times[0])).shape
    sums = np.zeros((len(parts), *shape))
    for number in range(distributed.rank(), len(parts), distributed.world_size()):
        for time in parts[number].tolist():
            sums[number] += of(time)
    distributed.sum_(torch.from_numpy(sums))
    total: Values = sums.sum(axis=0)
    return total


def solve(sums: Values) -> tuple[Values, Values]:
    """Weights of the first fields that come closest to the last one, and what they leave over.

    Args:
        sums: as of `products` [..., R + 1, R + 1].
    Returns:
        Weights [..., R], the smallest ones where regressors are the same, and the sum of squared
        differences [...].
    """
    inner, cross = sums[..., :-1, :-1], sums[..., :-1, -1]
    size = np.sqrt(np.diagonal(inner, axis1=-2, axis2=-1))
    scale = 1.0 / np.where(size > 0.0, size, 1.0)
    correlations = inner * scale[..., :, None] * scale[..., None, :]
    inverse = np.linalg.pinv(correlations, rcond=SMALLEST, hermitian=True)
    weights = scale * (inverse @ (scale * cross)[..., None])[..., 0]
    return weights, sums[..., -1, -1] - (weights * cross).sum(axis=-1)
