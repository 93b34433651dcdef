"""Count, mean and sum of squared deviations: measured where fields are written, merged later."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Moments = NDArray[np.float64]


def moments(values: NDArray[Any]) -> Moments:
    """Moments over the finite values of the last axis.

    Args:
        values: float, shape [..., V, n].
    Returns:
        Count, mean and sum of squared deviations from the mean, float64, shape [..., 3, V].
    """
    finite = np.isfinite(values)
    if finite.all():
        count = np.full(values.shape[:-1], float(values.shape[-1]))
    else:
        count = finite.sum(axis=-1).astype(np.float64)
        values = np.where(finite, values, 0)
    mean = values.sum(axis=-1, dtype=np.float64) / np.maximum(count, 1.0)
    deviation = values - mean[..., None]
    if count.size and count.min() < values.shape[-1]:
        deviation[~finite] = 0.0
    squares = np.einsum("...i,...i->...", deviation, deviation)
    return np.stack((count, mean, squares), axis=-2)


def merged(parts: Moments) -> Moments:
    """Moments of disjoint sets taken together, in any grouping (Chan, Golub and LeVeque 1979).

    Args:
        parts: shape [N, 3, V].
    Returns:
        shape [3, V].
    """
    count, mean, squares = np.moveaxis(parts, 1, 0)
    total = count.sum(axis=0)
    center = (count * mean).sum(axis=0) / np.maximum(total, 1.0)
    between = count * (mean - center) ** 2
    return np.stack((total, center, (squares + between).sum(axis=0)))
