"""Validation during training: the loss, RMSE in physical units, skill against persistence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from aqnet import distributed
from aqnet.batch import Batch, Statistics
from aqnet.config import Config
from aqnet.errors import AqnetError
from aqnet.training.calibration import Calibration
from aqnet.training.loss import loss_sums
from aqnet.training.maps import Examples
from aqnet.training.step import TrainingState, forward

BATCHES_BETWEEN_LOOKS = 8  # at a request to stop


@dataclass(frozen=True)
class ValidationData:
    """What a model in training is scored on.

    Attributes:
        batches: this rank's share (`EvaluationSampler`) of all items.
        examples: what maps are drawn of, on rank 0.
    """

    batches: DataLoader[Batch]
    statistics: Statistics
    examples: Examples | None = None


def validate(
    state: TrainingState, data: ValidationData, stop: Callable[[], bool]
) -> dict[str, float] | None:
    """Scores of the model over every item once; all ranks call. Its quantiles are calibrated anew.

    Args:
        stop: whether a stop was asked for; the ranks agree in it.
    Returns:
        `validation/loss`, `validation/rmse/NAME/LEADh` in the target's unit and
        `validation/skill_persistence/NAME/LEADh` (over the pairs that persistence can forecast;
        targets that are no input have none), equal on all ranks, without those of no pair; None
        where stopped.
    Raises:
        AqnetError: no target of the split has a value, or one too few to calibrate quantiles.
    """
    config, weights = state.config, state.weights
    totals = torch.zeros(5, *weights.shape, dtype=torch.float64)
    channels = [config.input_variables.index(name) for name in _persistent(config)]
    columns = [config.data.targets.index(name) for name in _persistent(config)]
    calibration = Calibration(config, state.model) if config.model.quantiles else None
    batches = iter(data.batches)
    count = distributed.sum_(torch.tensor(len(data.batches)))
    for number in range(-(-int(count) // distributed.world_size())):
        if number % BATCHES_BETWEEN_LOOKS == 0 and stop():
            if calibration is not None:
                calibration.abandon()
            return None
        batch = next(batches, None)
        if batch is None:
            continue
        found = forward(state, state.model, batch)
        values = found.mean.float()
        batch = batch.to(values.device)
        if calibration is not None and found.quantiles is not None:
            calibration.add(found.quantiles, batch)
        errors, cells = loss_sums(values, batch, config)
        squares = torch.where(batch.mask, values - batch.targets, 0.0).square().sum((0, 3, 4))
        was_finite = bool(totals.isfinite().all())
        totals[:3] += torch.stack([errors, cells.to(errors), squares]).double().cpu()
        totals[3:, :, columns] += _against_persistence(values, batch, channels, columns)
        if was_finite and not totals.isfinite().all():
            print(f"warning: {_not_finite(values, batch, config)}", file=sys.stderr, flush=True)
    distributed.sum_(totals)
    if calibration is not None:
        calibration.finish()
    return _scalars(totals, weights.cpu(), data.statistics, config, columns)


def _not_finite(values: Tensor, batch: Batch, config: Config) -> str:
    """What of a batch makes the scores not finite; its first few names of each kind."""
    pairs = [f"{name} {lead}h" for lead in config.data.lead_times for name in config.data.targets]
    missing = batch.fields.isnan().all(-1).all(-1)  # of a whole field; of a part it is no fault
    parts = {
        "forecasts": (pairs, (batch.mask & ~values.isfinite()).any(-1).any(-1)),
        "targets": (pairs, (batch.mask & ~batch.targets.isfinite()).any(-1).any(-1)),
        "inputs": (config.input_variables, missing | batch.fields.isinf().any(-1).any(-1)),
    }
    texts = []
    for kind, (names, bad) in parts.items():
        found = [names[at] for at in bad.any(0).flatten().nonzero().flatten().tolist()]
        texts.append(f"{len(found)} of {len(names)} {kind} ({', '.join(found[:8])})")
    times = ", ".join(f"{np.datetime64(hour, 'h')}" for hour in batch.time.tolist())
    return f"validation is not finite, first at {times}: not finite were {', '.join(texts)}"


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
