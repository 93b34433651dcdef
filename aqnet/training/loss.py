"""The loss over valid cells, as sums, so that micro-batches and ranks add up exactly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aqnet.batch import Batch
from aqnet.config import Config


def loss_sums(forecast: Tensor, batch: Batch, config: Config) -> tuple[Tensor, Tensor]:
    """Sum of the errors and number of valid cells, per lead time and target.

    The error of a cell is that of `train.loss`: the squared difference of normalised values, or
    Huber's function of it. Invalid cells are left out before anything is computed, so their NaN
    reaches neither the sum nor a gradient.

    Args:
        forecast: normalised, shape [B, K, T, H, W].
    Returns:
        Errors, at least float32, and counts, int64, both of shape [K, T].
    """
    valid = batch.mask
    forecast = forecast.to(torch.promote_types(forecast.dtype, torch.float32))
    difference = torch.where(valid, forecast - batch.targets, forecast.new_zeros(()))
    if config.train.loss == "mse":
        errors = difference.square()
    else:
        errors = F.huber_loss(
            difference,
            torch.zeros_like(difference),
            reduction="none",
            delta=config.train.huber_delta,
        )
    return errors.sum((0, 3, 4)), valid.sum((0, 3, 4))


def loss_weights(config: Config, device: torch.device) -> Tensor:
    """Weight of each lead time and target in the loss, 1 where none is given, shape [K, T].

    The loss is sum(weights * errors) / number of valid cells.
    """
    train, data = config.train, config.data
    leads = [train.lead_time_weights.get(str(lead), 1.0) for lead in data.lead_times]
    targets = [train.target_weights.get(name, 1.0) for name in data.targets]
    return torch.outer(torch.tensor(leads), torch.tensor(targets)).to(device)


def pinball_sums(quantiles: Tensor, levels: tuple[float, ...], batch: Batch) -> Tensor:
    """Sum over the valid cells of the pinball loss, the mean of it over the levels.

    The loss of quantile q of level p is p (y - q) below the truth y and (1 - p) (q - y) above it;
    its expectation is least where the truth lies below q with probability p.

    Args:
        quantiles: normalised, shape [B, Q, K, T, H, W].
    Returns:
        At least float32, shape [K, T].
    """
    quantiles = quantiles.to(torch.promote_types(quantiles.dtype, torch.float32))
    valid, truth = batch.mask.unsqueeze(1), batch.targets.unsqueeze(1)
    difference = torch.where(valid, truth - quantiles, quantiles.new_zeros(()))
    level = quantiles.new_tensor(levels).view(-1, 1, 1, 1, 1)
    losses = level * difference + F.relu(-difference)
    return losses.sum((0, 1, 4, 5)) / len(levels)
