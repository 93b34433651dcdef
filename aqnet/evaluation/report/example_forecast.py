"""One forecast with its truth and wind in physical units, as maps show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from aqnet.batch import Batch, Statistics
from aqnet.config import Config

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Example:
    """One forecast in physical units.

    Attributes:
        time: input time, hours since 1970 UTC.
        forecast: shape [K, T, H, W]; truth: the same, NaN where unknown, or None.
        wind: eastward and northward wind at each target time in m/s, shape [K, 2, H, W], NaN where
            unknown; None where it is no input.
    """

    time: int
    forecast: Values
    truth: Values | None
    wind: Values | None


def of(
    batch: Batch,
    forecast: Tensor,
    statistics: Statistics,
    config: Config,
    wind_at: Callable[[int], NDArray[np.float32] | None],
) -> Example:
    """An example of the first item of `batch`, whose normalised forecast is [B, K, T, H, W].

    Its truth is None where no target is known. `wind_at` gives u and v [2, H, W] of an hour, None
    where the hour is unknown.
    """
    mean, std = (part.numpy()[:, None, None] for part in statistics.of(config.data.targets))
    truth = np.where(batch.mask[0].numpy(), batch.targets[0].numpy(), np.nan)
    wind = None
    if {"u", "v"} <= set(config.data.variables):
        unknown = np.full((2, *truth.shape[-2:]), np.nan)
        hours = [int(batch.time[0]) + lead for lead in config.data.lead_times]
        winds = [wind_at(hour) for hour in hours]
        wind = np.stack([unknown if found is None else found for found in winds])
    known = truth * std + mean if np.isfinite(truth).any() else None
    values = forecast[0].double().cpu().numpy() * std + mean
    return Example(int(batch.time[0]), values, known, wind)
