"""The training loop: epochs, optimizer steps, validation, checkpoints, stopping."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from aqnet import distributed
from aqnet.batch import Batch
from aqnet.checkpoint import Checkpoints, Loaded
from aqnet.config import Config, to_yaml
from aqnet.errors import AqnetError
from aqnet.grid import Grid
from aqnet.training.maps import Examples
from aqnet.training.optimizer import MovingAverage, make_optimizer, set_learning_rate
from aqnet.training.progress import Progress, is_finished
from aqnet.training.reporter import Reporter
from aqnet.training.step import Trainee, check_ranks_agree, forward, optimizer_step, warm_up
from aqnet.training.telemetry import Stopwatch, Telemetry

# `validate(stop)`: scalars of the model as it is, "validation/loss" among them; None if stopped
Validate = Callable[[Callable[[], bool]], dict[str, float] | None]


class Directory(Protocol):
    """What the loop uses of `aqnet.run_directory.RunDirectory`."""

    path: Path

    def stop_requested(self) -> bool:
        """Whether this rank was asked to stop."""


class Sampler(Protocol):
    """What the loop uses of `aqnet.data.sampler.TrainSampler`."""

    num_items: int

    def set_position(self, epoch: int, items_consumed: int) -> None:
        """Go on in `epoch` after its first items."""

    def optimizer_steps(self) -> Iterator[tuple[int, int]]:
        """(items of all ranks, micro-batches of this rank) of the steps left in the epoch."""


@dataclass
class Run:
    """Everything one training run consists of; `start` makes it.

    Attributes:
        constants: config, statistics and data checksums, written into every checkpoint.
        grid: the stores', likewise.
        loader: whole micro-batches of this rank from the sampler's position on.
        empty: a batch without a valid cell.
        examples: what maps are drawn of at validations, on rank 0; drawn_at: the last step of it.
        clock: when time was last added to `progress.seconds`.
        after_each_step: the profiler's, if any.
    """

    config: Config
    trainee: Trainee
    average: MovingAverage | None
    progress: Progress
    telemetry: Telemetry
    reporter: Reporter
    sampler: Sampler
    loader: Iterable[Batch]
    empty: Batch
    validate: Validate
    checkpoints: Checkpoints
    directory: Directory
    constants: dict[str, Any]
    grid: Grid
    examples: Examples | None = None
    drawn_at: int = 0
    clock: float = 0.0
    after_each_step: Callable[[], None] = lambda: None


def start(
    config: Config,
    model: nn.Module,
    loaded: Loaded | None,
    device: torch.device,
    item_flops: float,
    **parts: Any,
) -> Run:
    """Put a run together: the model's weights, optimizer and position from `loaded`, if any.

    Args:
        model: on `device`, bare; on rank 0 with its first weights where there is no checkpoint.
        item_flops: of the forward and backward of one item.
        parts: the fields of `Run` that are not made here.
    """
    if loaded is not None:
        model.load_state_dict(loaded.model)
    optimizer = make_optimizer(model, config.train)
    parallel = distributed.wrap(model)  # from here on, all ranks have rank 0's first weights
    average = MovingAverage(model, config.train.ema_decay) if config.train.ema_decay else None
    progress = Progress()
    if loaded is not None:
        progress = Progress.of(loaded.state)
        optimizer.load_state_dict(loaded.optimizer)
        if average is not None and loaded.ema is not None:
            average.load_state_dict(loaded.ema)
    stopwatch = Stopwatch(device)
    trainee = Trainee(config, model, parallel, optimizer, device, stopwatch)
    telemetry = Telemetry(
        config.run_dir, distributed.is_main(), progress.global_step, config.train.max_steps
    )
    reporter = Reporter(config, telemetry, stopwatch, item_flops)
    return Run(config, trainee, average, progress, telemetry, reporter, **parts)


def fit(run: Run) -> str:
    """Train until a limit is reached or a stop is asked for; returns the run's new status.

    `finished` or `interrupted`. The last checkpoint is written when this ends, also by an error.

    Raises:
        AqnetError: too many bad steps in a row, ranks that diverge, a checkpoint that cannot be
            written, or an error of another rank.
    """
    progress = run.progress
    with closing(run.telemetry):
        try:
            run.telemetry.text("config", to_yaml(run.config))
            run.trainee.parallel.train()
            warm_up(run.trainee, run.empty)
            run.checkpoints.reserve(*_tensors(run))
            run.trainee.stopwatch.shares()  # the start is no part of the steps
            run.clock = time.monotonic()
            stopped = _after_step(run, saved=True) if progress.global_step else False
            while not stopped and not is_finished(run.config, progress):
                stopped = _epoch(run)
        finally:
            run.checkpoints.wait()
    return "interrupted" if stopped else "finished"


def _epoch(run: Run) -> bool:
    """Train to the end of the epoch or to a limit; returns whether a stop was asked for."""
    progress, sampler = run.progress, run.sampler
    sampler.set_position(progress.epoch, progress.items_consumed)
    batches = iter(run.loader)
    for items, micro_steps in sampler.optimizer_steps():
        asked = _step(run, batches, items, micro_steps)
        progress.items_consumed += items
        if progress.items_consumed == sampler.num_items:
            progress.epoch, progress.items_consumed = progress.epoch + 1, 0
        if asked:
            _save(run, None)
            return True
        if _after_step(run, saved=False):
            return True
        if is_finished(run.config, progress):
            break
    return False


def _step(run: Run, batches: Iterator[Batch], items: int, micro_steps: int) -> bool:
    """One optimizer step and what it tells; returns whether any rank was asked to stop."""
    config, progress = run.config, run.progress
    distributed.at_step(progress.global_step)
    rate = set_learning_rate(run.trainee.optimizer, progress.global_step, config.train)
    now = time.monotonic()
    # every rank must count the same time, or they would not stop together: rank 0's counts
    spent = now - run.clock if distributed.is_main() else 0.0
    run.clock = now
    flags = [float(run.directory.stop_requested()), spent]
    result = optimizer_step(run.trainee, batches, micro_steps, progress.global_step, flags)
    progress.global_step += 1
    progress.seconds += result.flags[1]
    if result.updated:
        progress.bad_steps_in_a_row = 0
        if run.average is not None:
            with run.trainee.stopwatch.part("optimizer"):
                run.average.update()
    else:
        _count_bad_step(run, result.loss, result.norm, result.times)
    run.reporter.step(progress.global_step, items, result, rate)
    run.after_each_step()
    return bool(result.flags[0])


def _after_step(run: Run, saved: bool) -> bool:
    """Checksum, validation and checkpoint where due; returns whether a stop was asked for.

    Args:
        saved: whether this step's checkpoint stands (a resumed run, which may still owe its
            validation).
    """
    config, progress, step = run.config, run.progress, run.progress.global_step
    if step % config.train.checksum_every == 0:
        check_ranks_agree(run.trainee, step)
    ends = is_finished(config, progress)
    due = step % config.validation.every == 0 or ends
    if due and progress.validated_step != step:
        metric = _validate(run)
        _save(run, metric)
        return metric is None
    if not saved and (step % config.train.checkpoint_every == 0 or ends):
        _save(run, None)
    return False


def _validate(run: Run) -> float | None:
    """The validation loss (of the moving average where there is one); None if asked to stop."""
    progress, model = run.progress, run.trainee.model

    def stop() -> bool:
        return distributed.any_rank(run.directory.stop_requested())

    with run.average.in_place() if run.average is not None else nullcontext():
        model.eval()
        with torch.inference_mode(), run.trainee.stopwatch.part("validation"):
            values = run.validate(stop)
            if values is not None and run.examples is not None:
                _draw_maps(run, run.examples)
        model.train()
    if values is None:
        return None
    metric = values["validation/loss"]
    progress.validated_step = progress.global_step
    best = progress.best_metric
    if math.isfinite(metric) and (best is None or metric < best):
        progress.best_metric, progress.validations_since_best = metric, 0
    else:
        progress.validations_since_best += 1
    run.reporter.validation(progress.global_step, values)
    return metric


def _draw_maps(run: Run, examples: Examples) -> None:
    """Maps of the example items, where training has grown by a quarter since the last ones.

    At every validation of a long run they would fill gigabytes.
    """
    step = run.progress.global_step
    if step >= 1.25 * run.drawn_at or is_finished(run.config, run.progress):
        run.drawn_at = step
        forecast = forward(run.trainee, run.trainee.model, examples.batch)
        run.reporter.maps(step, forecast.mean.float().cpu(), examples)


def _tensors(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a checkpoint holds of the model and of the optimizer, not copied."""
    model = {"model": run.trainee.model.state_dict(), "grid": run.grid.to_dict()}
    if run.average is not None:
        model["ema"] = run.average.state_dict()
    return model, run.trainee.optimizer.state_dict()


def _save(run: Run, metric: float | None) -> None:
    with run.trainee.stopwatch.part("checkpoint"):
        state = {**asdict(run.progress), **run.constants}
        run.telemetry.flush()
        run.checkpoints.save(*_tensors(run), state, metric)


def _count_bad_step(run: Run, loss: float, norm: float, times: list[int]) -> None:
    progress, limit = run.progress, run.config.train.max_bad_steps
    progress.bad_steps += 1
    progress.bad_steps_in_a_row += 1
    everyone = distributed.gather_objects(times)
    if everyone is not None:
        run.reporter.bad_step(progress.global_step, loss, norm, everyone)
    if progress.bad_steps_in_a_row >= limit:
        raise AqnetError(
            f"{limit} optimizer steps in a row had no finite loss and gradient (the last: step "
            f"{progress.global_step}, loss {loss}, gradient norm {norm}); the items' times are in "
            f"{run.directory.path / 'metrics.jsonl'}. Lower train.learning_rate, or look at "
            "those hours with python -m aqnet.data.inspect"
        )
