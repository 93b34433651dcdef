"""Forecasts in physical units, in which a concentration is at least 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aqnet.batch import Batch, Statistics
from aqnet.config import Data, lowest

Values = NDArray[np.float64]


def in_units(values: Tensor, targets: Sequence[str], statistics: Statistics) -> Values:
    """Normalised values [..., T, N] of N cells in the targets' units."""
    mean, std = (part[:, None] for part in statistics.of(tuple(targets)))
    found: Values = (values.double().cpu() * std + mean).numpy()
    return found


def physical(values: Tensor, targets: Sequence[str], statistics: Statistics) -> Values:
    """The same, as `possible` values."""
    return possible(in_units(values, targets, statistics), targets)


def physical_fields(values: Tensor, targets: Sequence[str], statistics: Statistics) -> Values:
    """`physical` of normalised fields [..., T, H, W]."""
    return physical(values.flatten(-2), targets, statistics).reshape(values.shape)


def possible(values: NDArray[Any], targets: Sequence[str]) -> NDArray[Any]:
    """Forecasts [..., T, N] in physical units with 0 for concentrations below it; NaN stays."""
    return np.maximum(values, np.array(lowest(targets), values.dtype)[:, None])


def clipped(values: Values, targets: Sequence[str]) -> int:
    """How many of the values [..., T, N] that `physical` gave were below 0: no other is 0 to the
    last bit."""
    return int((values == np.array(lowest(targets))[:, None]).sum())


def present(batch: Batch, data: Data) -> Tensor:
    """The targets at the input times of a batch, normalised, shape [B, T, H, W]; NaN where one is
    missing or no input."""
    found = torch.full_like(batch.targets[:, 0], torch.nan)
    for row, name in enumerate(data.targets):
        if name in data.variables:  # normalised by the same numbers as a target
            found[:, row] = batch.fields[:, data.variables.index(name)]
    return found
