"""Validation during training: the loss, RMSE in physical units, skill against persistence."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from aqnet import distributed
from aqnet.batch import Batch, Forecast, Statistics
from aqnet.config import Config
from aqnet.errors import AqnetError

BATCHES_BETWEEN_LOOKS = 8  # at a request to stop


def validate(
    forecast: Callable[[Batch], Forecast],
    loss_sums: Callable[[Tensor, Batch, Config], tuple[Tensor, Tensor]],
    weights: Tensor,
    loader: DataLoader[Batch],
    statistics: Statistics,
    config: Config,
    stop: Callable[[], bool],
) -> dict[str, float] | None:
    """Score every item once; all ranks call, each with its own batches (`EvaluationSampler`).

    Args:
        forecast: of a batch.
        loss_sums: training's errors and valid cells of a forecast, each of shape [K, T].
        weights: of the loss, shape [K, T].
        stop: whether a stop was asked for; the ranks agree in it.
    Returns:
        `validation/loss`, `validation/rmse/NAME/LEADh` in the target's unit and
        `validation/skill_persistence/NAME/LEADh` (over the pairs that persistence can forecast;
        targets that are no input have none), equal on all ranks, without those of no pair; None
        where stopped.
    Raises:
        AqnetError: no target of the split has a value.
    """
    shape = tuple(weights.shape)
    totals = torch.zeros(5, *shape, dtype=torch.float64)
    channels = [config.input_variables.index(name) for name in _persistent(config)]
    columns = [config.data.targets.index(name) for name in _persistent(config)]
    batches = iter(loader)
    count = distributed.sum_(torch.tensor(len(loader)))
    for number in range(-(-int(count) // distributed.world_size())):
        if number % BATCHES_BETWEEN_LOOKS == 0 and stop():
            return None
        batch = next(batches, None)
        if batch is None:
            continue
        values = forecast(batch).mean.float()
        batch = batch.to(values.device)
        errors, cells = loss_sums(values, batch, config)
        squares = torch.where(batch.mask, values - batch.targets, 0.0).square().sum((0, 3, 4))
        totals[:3] += torch.stack([errors, cells.to(errors), squares]).double().cpu()
        totals[3:, :, columns] += _against_persistence(values, batch, channels, columns)
    distributed.sum_(totals)
    return _scalars(totals, weights.cpu(), statistics, config, columns)


def _persistent(config: Config) -> list[str]:
    return [name for name in config.data.targets if name in config.data.variables]


def _against_persistence(
    values: Tensor, batch: Batch, channels: list[int], columns: list[int]
) -> Tensor:
    """Squared errors of the model and of persistence over the pairs that both forecast [2, K, P]"""
    present = batch.fields[:, channels][:, None]
    truth, valid = batch.targets[:, :, columns], batch.mask[:, :, columns] & present.isfinite()
    both = [
        torch.where(valid, guess - truth, 0.0).square().sum((0, 3, 4))
        for guess in (values[:, :, columns], present)
    ]
    return torch.stack(both).double().cpu()


def _scalars(
    totals: Tensor, weights: Tensor, statistics: Statistics, config: Config, columns: list[int]
) -> dict[str, float]:
    errors, cells, squares, ours, theirs = totals
    if cells.sum() == 0:
        raise AqnetError("data.split.validation: no target has a value; choose other periods")
    scalars = {"validation/loss": float((errors * weights).sum() / cells.sum())}
    _, std = statistics.of(config.data.targets)
    rmse, skill = (squares / cells).sqrt() * std, 1.0 - ours / theirs
    for row, lead in enumerate(config.data.lead_times):
        for column, name in enumerate(config.data.targets):
            if cells[row, column] > 0:
                scalars[f"validation/rmse/{name}/{lead}h"] = float(rmse[row, column])
            if column in columns and theirs[row, column] > 0:
                key = f"validation/skill_persistence/{name}/{lead}h"
                scalars[key] = float(skill[row, column])
    return scalars
