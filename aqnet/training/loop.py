"""The training loop: epochs, optimizer steps, validation, checkpoints, stopping."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from aqnet import distributed
from aqnet.batch import Batch
from aqnet.checkpoint import Checkpoints, Loaded
from aqnet.config import Config, to_yaml
from aqnet.errors import AqnetError
from aqnet.run_directory import RunDirectory
from aqnet.training.optimizer import MovingAverage, make_optimizer, set_learning_rate
from aqnet.training.position import AGAIN, Position, check_learned, is_finished
from aqnet.training.reporter import Reporter
from aqnet.training.step import (
    TrainingState,
    check_ranks_agree,
    forward,
    optimizer_step,
    warm_up,
)
from aqnet.training.validation import ValidationData, validate


class Sampler(Protocol):
    """What the loop uses of `aqnet.data.sampler.TrainSampler`."""

    num_items: int

    def set_position(self, epoch: int, items_consumed: int) -> None:
        """Go on in `epoch` after its first items."""

    def optimizer_steps(self) -> Iterator[tuple[int, int]]:
        """(items of all ranks, micro-batches of this rank) of the steps left in the epoch."""


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from.

    Attributes:
        batches: whole micro-batches of this rank from the sampler's position on.
        empty: a batch without a valid cell.
    """

    sampler: Sampler
    batches: Iterable[Batch]
    empty: Batch


@dataclass(frozen=True)
class Constants:
    """What every checkpoint of a run holds unchanged.

    Attributes:
        words: config, statistics, data checksums and such, for state.json.
        tensors: by kind and name (grid, static fields), for model.pt.
    """

    words: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


@dataclass
class TrainingRun:
    """Everything one training run consists of.

    Attributes:
        drawn_at: the last step at which maps were drawn.
        clock: when time was last added to `state.position.seconds`.
        after_each_step: the profiler's, if any.
    """

    state: TrainingState
    data: TrainingData
    validation: ValidationData
    reporter: Reporter
    checkpoints: Checkpoints
    directory: RunDirectory
    constants: Constants
    drawn_at: int = 0
    clock: float = 0.0
    after_each_step: Callable[[], None] = lambda: None


def start(
    config: Config, model: nn.Module, loaded: Loaded | None, device: torch.device
) -> TrainingState:
    """The model with its optimizer, as `loaded` left them or at the beginning.

    Args:
        model: on `device`, bare; on rank 0 with its first weights where there is no checkpoint.
    """
    if loaded is not None:
        model.load_state_dict(loaded.model)
    optimizer = make_optimizer(model, config.train)
    parallel = distributed.wrap(model)  # from here on, all ranks have rank 0's first weights
    average = MovingAverage(model, config.train.ema_decay) if config.train.ema_decay else None
    if loaded is None:
        return TrainingState(config, model, parallel, optimizer, device, average)
    optimizer.load_state_dict(loaded.optimizer)
    if average is not None and loaded.ema is not None:
        average.load_state_dict(loaded.ema)
    position = Position.of(loaded.state)
    return TrainingState(config, model, parallel, optimizer, device, average, position)


def fit(run: TrainingRun) -> str:
    """Train until a limit is reached or a stop is asked for; returns the run's new status.

    `finished` or `interrupted`. The last checkpoint is written when this ends, also by an error.

    Raises:
        AqnetError: too many bad steps in a row, ranks that diverge, a checkpoint that cannot be
            written, a model that is unusable at the end, or an error of another rank.
    """
    state = run.state
    with closing(run.reporter.telemetry):
        try:
            run.reporter.telemetry.text("config", to_yaml(state.config))
            state.parallel.train()
            warm_up(state, run.data.empty)
            run.checkpoints.reserve(*_tensors(run))
            state.stopwatch.shares()  # the start is no part of the steps
            run.clock = time.monotonic()
            stopped = _after_step(run, saved=True) if state.position.global_step else False
            while not stopped and not is_finished(state.config, state.position):
                stopped = _epoch(run)
        finally:
            run.checkpoints.wait()
    if stopped:
        return "interrupted"
    say_doubts(state.config, state.position)
    return "finished"


def say_doubts(config: Config, position: Position) -> None:
    """Warn of a run that has reached its end with a doubtful model.

    Raises:
        AqnetError: the model is unusable.
    """
    doubt = check_learned(config, position)
    if doubt is not None:
        distributed.say(f"warning: {doubt}")


def _epoch(run: TrainingRun) -> bool:
    """Train to the end of the epoch or to a limit; returns whether a stop was asked for."""
    position, sampler = run.state.position, run.data.sampler
    sampler.set_position(position.epoch, position.items_consumed)
    batches = iter(run.data.batches)
    for items, micro_steps in sampler.optimizer_steps():
        stop_asked = _step(run, batches, items, micro_steps)
        position.items_consumed += items
        if position.items_consumed == sampler.num_items:
            position.epoch, position.items_consumed = position.epoch + 1, 0
        if stop_asked:
            _save(run, None)
            return True
        if _after_step(run, saved=False):
            return True
        if is_finished(run.state.config, position):
            break
    return False


def _step(run: TrainingRun, batches: Iterator[Batch], items: int, micro_steps: int) -> bool:
    """One optimizer step and its report; returns whether any rank was asked to stop."""
    state, position = run.state, run.state.position
    distributed.at_step(position.global_step)
    rate = set_learning_rate(state.optimizer, position.global_step, state.config.train)
    now = time.monotonic()
    # every rank must count the same time, or they would not stop together: rank 0's counts
    spent = now - run.clock if distributed.is_main() else 0.0
    run.clock = now
    flags = [float(run.directory.stop_requested()), spent]
    result = optimizer_step(state, batches, micro_steps, position.global_step, flags)
    position.global_step += 1
    position.seconds += result.flags[1]
    if result.updated:
        position.bad_steps_in_a_row = 0
        if state.average is not None:
            with state.stopwatch.part("optimizer"):
                state.average.update()
    elif result.cells.any():
        _count_bad_step(run, result.loss, result.norm, result.times)
    else:  # sparse targets: nothing to learn from, and nothing wrong
        position.empty_steps += 1
    run.reporter.step(position.global_step, items, result, rate)
    run.after_each_step()
    return bool(result.flags[0])


def _after_step(run: TrainingRun, saved: bool) -> bool:
    """Checksum, validation and checkpoint where due; returns whether a stop was asked for.

    Args:
        saved: whether this step has a checkpoint already (a resumed run's, which may still owe its
            validation).
    """
    config, position = run.state.config, run.state.position
    step = position.global_step
    if step % config.train.checksum_every == 0:
        check_ranks_agree(run.state, step)
    ends = is_finished(config, position)
    due = step % config.validation.every == 0 or ends
    if due and position.validated_step != step:
        metric = _validate(run)
        _save(run, metric)
        return metric is None
    if not saved and (step % config.train.checkpoint_every == 0 or ends):
        _save(run, None)
    return False


def _validate(run: TrainingRun) -> float | None:
    """The validation loss (of the moving average where there is one); None if asked to stop."""
    state, position = run.state, run.state.position

    def stop() -> bool:
        return distributed.any_rank(run.directory.stop_requested())

    with state.average.in_place() if state.average is not None else nullcontext():
        state.model.eval()
        with torch.inference_mode(), state.stopwatch.part("validation"):
            values = validate(state, run.validation, stop)
            if values is not None:
                _draw_maps(run)
        state.model.train()
    if values is None:
        return None
    metric = values["validation/loss"]
    position.validated_step = position.global_step
    position.last_metric = metric if math.isfinite(metric) else None
    best = position.best_metric
    if math.isfinite(metric) and (best is None or metric < best):
        position.best_metric, position.validations_since_best = metric, 0
    else:
        position.validations_since_best += 1
    run.reporter.validation(position.global_step, values)
    return metric


def _draw_maps(run: TrainingRun) -> None:
    """Maps of the example items, where training has grown by a quarter since the last ones.

    At every validation of a long run they would fill gigabytes.
    """
    state, examples = run.state, run.validation.examples
    step = state.position.global_step
    if examples is None:
        return
    if step >= 1.25 * run.drawn_at or is_finished(state.config, state.position):
        run.drawn_at = step
        forecast = forward(state, state.model, examples.batch)
        run.reporter.maps(step, forecast.mean.float().cpu(), examples)


def _tensors(run: TrainingRun) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a checkpoint holds of the model and of the optimizer, not copied."""
    state = run.state
    model = {"model": state.model.state_dict(), **run.constants.tensors}
    if state.average is not None:
        model["ema"] = state.average.state_dict()
    return model, state.optimizer.state_dict()


def _save(run: TrainingRun, metric: float | None) -> None:
    position = run.state.position
    if position.bad_steps_in_a_row and not is_finished(run.state.config, position):
        return  # the weights may have come apart: the checkpoints before are what one goes back to
    with run.state.stopwatch.part("checkpoint"):
        words = {**asdict(position), **run.constants.words}
        run.reporter.telemetry.flush()
        run.checkpoints.save(*_tensors(run), words, metric)


def _count_bad_step(run: TrainingRun, loss: float, norm: float, times: list[int]) -> None:
    position, limit = run.state.position, run.state.config.train.max_bad_steps
    position.bad_steps += 1
    position.bad_steps_in_a_row += 1
    everyone = distributed.gather_objects(times)
    if everyone is not None:
        run.reporter.bad_step(position.global_step, loss, norm, everyone)
    if position.bad_steps_in_a_row >= limit:
        raise AqnetError(
            f"{limit} optimizer steps in a row had no finite loss and gradient (the last: step "
            f"{position.global_step}, loss {loss}, gradient norm {norm}); the items' times are in "
            f"{run.directory.path / 'metrics.jsonl'}. Where python -m aqnet.data.inspect finds "
            f"nothing wrong with those hours, {AGAIN}"
        )
