"""The loss over valid cells, as sums, so that micro-batches and ranks add up exactly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aqnet.batch import Batch, Forecast
from aqnet.config import Config


def all_sums(forecast: Forecast, batch: Batch, config: Config) -> Tensor:
    """What a micro-batch adds to a step: errors of the mean and their cells, pinball losses of the
    quantiles and theirs, float64, shape [4, K, T]."""
    errors, cells = loss_sums(forecast.mean, batch, config)
    losses, theirs = pinball_sums(forecast, config.model.quantiles, batch)
    return torch.stack([part.double() for part in (errors, cells, losses, theirs)])


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


def pinball_sums(
    forecast: Forecast, levels: tuple[float, ...], batch: Batch
) -> tuple[Tensor, Tensor]:
    """Sum of the pinball losses, the mean of them over the levels, and number of valid cells.

    The loss of quantile q of level p is p (y - q) where it lies below the truth y and
    (1 - p) (q - y) above; its mean is least where the truth lies below q with probability p. Only
    the cells that the forecast has quantiles of count.

    Returns:
        Losses, at least float32, and counts, int64, both of shape [K, T]; 0 without quantiles.
    """
    if forecast.quantiles is None:
        shape = batch.mask.shape[1:3]
        return forecast.mean.new_zeros(shape), batch.mask.new_zeros(shape, dtype=torch.int64)
    quantiles = forecast.quantiles.flatten(4)
    quantiles = quantiles.to(torch.promote_types(quantiles.dtype, torch.float32))
    truth, valid = batch.targets.flatten(3), batch.mask.flatten(3)
    if forecast.cells is not None:
        truth, valid = (part.index_select(-1, forecast.cells) for part in (truth, valid))
    difference = torch.where(valid.unsqueeze(1), truth.unsqueeze(1) - quantiles, 0.0)
    # new_tensor(levels) would make the host wait for a GPU
    level = torch.stack([quantiles.new_full((), number) for number in levels]).view(-1, 1, 1, 1)
    losses = level * difference + F.relu(-difference)
    return losses.sum((0, 1, 4)) / len(levels), valid.sum((0, 3))
