"""How far a run has come, and whether that is its end."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch

from aqnet.config import Config
from aqnet.errors import AqnetError
from aqnet.training.loss import loss_weights

# a run's learning rate cannot change, and its last checkpoints may have come apart already
AGAIN = (
    "train again in another run_dir with a lower train.learning_rate, from the beginning or, where "
    "this run's best checkpoint is good, from that (train.init_from: this run_dir, "
    "train.init_statistics: checkpoint)"
)


@dataclass
class Position:
    """How far a run has come; its checkpoints carry it.

    Attributes:
        global_step: optimizer steps made, skipped ones included.
        epoch, items_consumed: position in the data.
        best_metric: lowest validation loss so far; last_metric: the last one, None where it was not
            finite; validated_step: where that was.
        validations_since_best: for early stopping.
        bad_steps, bad_steps_in_a_row: steps skipped for what was not finite, ever and lately.
        empty_steps: those without a valid cell, which change nothing.
        seconds: time spent in training, restarts included.
    """

    global_step: int = 0
    epoch: int = 0
    items_consumed: int = 0
    best_metric: float | None = None
    last_metric: float | None = None
    validated_step: int = 0
    validations_since_best: int = 0
    bad_steps: int = 0
    bad_steps_in_a_row: int = 0
    empty_steps: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, state: dict[str, Any]) -> Position:
        """From the state of a checkpoint."""
        known = {"last_metric": state.get("best_metric"), **state}  # older ones lack it
        return cls(**{name: known[name] for name in asdict(cls()) if name in known})


# mean squared error of normalised values; the training mean everywhere has about 1, times the mean
# of the loss's weights
_USELESS = 10.0


def check_learned(config: Config, position: Position) -> str | None:
    """What is doubtful about a run that has reached its end; None where nothing is.

    Raises:
        AqnetError: it learned nothing, or never had a finite validation loss.
    """
    skipped = position.bad_steps + position.empty_steps
    counted = f"{skipped} of {position.global_step} steps were skipped"
    best, last = position.best_metric, position.last_metric
    if skipped == position.global_step or best is None:
        raise AqnetError(
            f"{config.run_dir}: ended without a usable model: {counted}, and the lowest validation "
            f"loss is {best}; {AGAIN}"
        )
    usual = float(loss_weights(config, torch.device("cpu")).mean())
    if last is None or last > max(_USELESS * usual, 2 * best):
        return (
            f"the last validation loss is {last}, the lowest {best:.4g}, where the mean of the "
            f"training data has about {usual:.4g} ({counted}); {AGAIN}"
        )
    if best > _USELESS * usual:
        of_mean = f"that of the training data's mean about {usual:.4g}"
        return f"the lowest validation loss is {best:.4g}, {of_mean}"
    return f"{counted}; {AGAIN}" if 2 * position.bad_steps > position.global_step else None


def time_left(config: Config, now: Position, start: Position, num_items: int) -> str | None:
    """How long until a run reaches its first limit, as h:mm:ss, at the pace since its start.

    Args:
        now: in a step, whose own items and time are not counted yet.
        num_items: of an epoch.
    Returns:
        None in the first step.
    """
    train, steps = config.train, now.global_step - start.global_step - 1
    if steps < 1:
        return None
    pace, ends = (now.seconds - start.seconds) / steps, []
    if train.max_steps is not None:
        ends.append(pace * (train.max_steps - now.global_step))
    if train.max_epochs is not None:
        items = (train.max_epochs - now.epoch) * num_items - now.items_consumed
        ends.append(pace * (items * len(config.data.lead_times) / train.effective_batch - 1))
    if train.max_hours is not None:
        ends.append(3600 * train.max_hours - now.seconds)
    return str(timedelta(seconds=round(max(0.0, min(ends)))))


def is_finished(config: Config, position: Position) -> bool:
    """Whether the run has reached one of its limits."""
    train = config.train
    reached = (
        (train.max_steps, position.global_step),
        (train.max_epochs, position.epoch),
        (train.max_hours, position.seconds / 3600),
        (train.patience, position.validations_since_best),
    )
    return any(limit is not None and value >= limit for limit, value in reached)
