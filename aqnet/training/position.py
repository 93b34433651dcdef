"""How far a run has come, and whether that is its end."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from aqnet.config import Config


@dataclass
class Position:
    """How far a run has come; its checkpoints carry it.

    Attributes:
        global_step: optimizer steps made, skipped ones included.
        epoch, items_consumed: position in the data.
        best_metric: lowest validation loss so far; validated_step: where it was last validated.
        validations_since_best: for early stopping.
        bad_steps, bad_steps_in_a_row: skipped steps, ever and lately.
        seconds: time spent in training, restarts included.
    """

    global_step: int = 0
    epoch: int = 0
    items_consumed: int = 0
    best_metric: float | None = None
    validated_step: int = 0
    validations_since_best: int = 0
    bad_steps: int = 0
    bad_steps_in_a_row: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, state: dict[str, Any]) -> Position:
        """From the state of a checkpoint."""
        return cls(**{name: state[name] for name in asdict(cls()) if name in state})


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
