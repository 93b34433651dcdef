"""The simple forecasts, fitted on the training years, that a model has to beat."""

from aqnet.evaluation.baselines.climatology import month_of
from aqnet.evaluation.baselines.simple import (
    RECENT_DAYS,
    SIMPLE,
    TIMES,
    Baselines,
    Observed,
    fit,
)

__all__ = [
    "RECENT_DAYS",
    "SIMPLE",
    "TIMES",
    "Baselines",
    "Observed",
    "fit",
    "month_of",
]
