"""One forecast with its truth and wind in physical units, as maps show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aqnet.batch import Batch, Forecast, Statistics
from aqnet.config import Config
from aqnet.evaluation.odds import probabilities
from aqnet.physical import physical_fields, present

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Example:
    """One forecast in physical units.

    Attributes:
        time: input time, hours since 1970 UTC.
        forecast: shape [K, T, H, W]; truth: the same, NaN where unknown, or None.
        wind: eastward and northward wind at each target time in m/s, shape [K, 2, H, W], NaN where
            unknown; None where it is no input.
        exceedance: probability that each event threshold is reached, shape [K, T, H, W], NaN where
            a target has none; None without `model.quantiles`.
        present: the targets at the input time, shape [T, H, W], NaN where unknown or no input.
    """

    time: int
    forecast: Values
    truth: Values | None
    wind: Values | None
    exceedance: Values | None = None
    present: Values | None = None


def of(
    batch: Batch,
    forecast: Forecast,
    statistics: Statistics,
    config: Config,
    wind_at: Callable[[int], NDArray[np.float32] | None],
) -> Example:
    """An example of the first item of `batch` with its forecast.

    Its truth is None where no target is known. `wind_at` gives u and v [2, H, W] of an hour, None
    where the hour is unknown.
    """

    def in_units(values: Tensor) -> Values:
        return physical_fields(values[0], config.data.targets, statistics)

    truth = in_units(batch.targets.where(batch.mask, torch.nan))
    wind = None
    if {"u", "v"} <= set(config.data.variables):
        unknown = np.full((2, *truth.shape[-2:]), np.nan)
        hours = [int(batch.time[0]) + lead for lead in config.data.lead_times]
        winds = [wind_at(hour) for hour in hours]
        wind = np.stack([unknown if found is None else found for found in winds])
    known = truth if np.isfinite(truth).any() else None
    exceedance = None
    if forecast.quantiles is not None:
        what = config.model.quantiles, config.data.targets
        exceedance = probabilities.exceedances(in_units(forecast.quantiles), *what)
    now = in_units(present(batch, config.data))
    return Example(int(batch.time[0]), in_units(forecast.mean), known, wind, exceedance, now)
