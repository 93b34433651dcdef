"""One forecast with its truth and wind in physical units, as maps show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from aqnet.batch import Batch, Forecast, Statistics
from aqnet.config import Config
from aqnet.evaluation import probabilities

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
    """

    time: int
    forecast: Values
    truth: Values | None
    wind: Values | None
    exceedance: Values | None = None


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
    mean, std = (part.numpy()[:, None, None] for part in statistics.of(config.data.targets))
    truth = np.where(batch.mask[0].numpy(), batch.targets[0].numpy(), np.nan)
    wind = None
    if {"u", "v"} <= set(config.data.variables):
        unknown = np.full((2, *truth.shape[-2:]), np.nan)
        hours = [int(batch.time[0]) + lead for lead in config.data.lead_times]
        winds = [wind_at(hour) for hour in hours]
        wind = np.stack([unknown if found is None else found for found in winds])
    known = truth * std + mean if np.isfinite(truth).any() else None

    def physical(values: Tensor) -> Values:
        found: Values = values[0].double().cpu().numpy() * std + mean
        return found

    exceedance = None
    if forecast.quantiles is not None:
        what = config.model.quantiles, config.data.targets
        exceedance = probabilities.exceedances(physical(forecast.quantiles), *what)
    return Example(int(batch.time[0]), physical(forecast.mean), known, wind, exceedance)
