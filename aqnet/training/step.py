"""One optimizer step: micro-batches, one exchange of gradients, clipping, bad steps."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from aqnet import distributed
from aqnet.batch import Batch, Forecast
from aqnet.config import Config
from aqnet.errors import AqnetError
from aqnet.training.loss import all_sums, loss_weights
from aqnet.training.optimizer import MovingAverage
from aqnet.training.position import Position
from aqnet.training.telemetry import Stopwatch


@dataclass
class TrainingState:
    """A model in training and all that changes with it.

    Attributes:
        model: the bare module; parallel: the same, wrapped for several processes.
        average: moving average of the weights, where the run keeps one.
        weights: of the loss, shape [K, T]; groups: the parameters that learn, the quantile head's
            apart from those of the mean forecast.
    """

    config: Config
    model: nn.Module
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    average: MovingAverage | None = None
    position: Position = field(default_factory=Position)

    def __post_init__(self) -> None:
        self.stopwatch = Stopwatch(self.device)
        self.weights = loss_weights(self.config, self.device)
        # clipped apart, or a steep pinball loss would slow the mean forecast down
        self.groups: tuple[list[nn.Parameter], list[nn.Parameter]] = [], []
        for name, value in self.model.named_parameters():
            if value.requires_grad:
                self.groups[name.startswith("quantile_head.")].append(value)


class StepResult(NamedTuple):
    """What all ranks know of a step.

    Attributes:
        errors, cells: sums over all ranks and micro-batches, float64, shape [K, T].
        loss: weighted loss of the step; NaN without a valid cell; pinball: that of the quantiles,
            NaN without any.
        norm: gradient norm before clipping.
        flags: sums over the ranks of what `optimizer_step` was given.
        updated: whether the weights were changed; false after a bad step or without a valid cell.
        times: input times of this rank's items, hours since 1970 UTC, -1 for empty ones.
    """

    errors: Tensor
    cells: Tensor
    loss: float
    pinball: float
    norm: float
    flags: list[float]
    updated: bool
    times: list[int]


def seed_micro_batch(seed: int, step: int, micro_step: int) -> None:
    """Make this rank's random numbers of a micro-batch a function of step and rank."""
    where = np.random.SeedSequence((seed, step, micro_step, distributed.rank()))
    number = int(where.generate_state(1, np.uint64)[0])
    # torch.manual_seed walks through every backend there might be, which takes 0.4 ms
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(number)


def forward(state: TrainingState, model: nn.Module, batch: Batch) -> Forecast:
    """Forecast of a batch in the run's precision."""
    batch = batch.to(state.device)
    enabled = state.config.train.precision == "bf16"
    with torch.autocast(state.device.type, torch.bfloat16, enabled=enabled):
        return Forecast.of(model(batch.fields, batch.time, batch.lead_time))


def optimizer_step(
    state: TrainingState, batches: Iterator[Batch], micro_steps: int, step: int, flags: list[float]
) -> StepResult:
    """Accumulate `micro_steps` micro-batches, exchange, clip and update, or skip a bad step.

    The gradient is that of one big batch: sum of errors over all ranks and micro-batches, divided
    by the number of all valid cells. A non-finite loss or gradient norm on any rank skips the
    update on all of them. The learning rate is set already.
    """
    watch = state.stopwatch
    sums, times = _accumulate(state, batches, micro_steps, step)
    with watch.part("communication"):
        told = torch.tensor(flags, dtype=torch.float64, pin_memory=state.device.type == "cuda")
        told = told.to(state.device, non_blocking=True)
        shared = distributed.sum_(torch.cat([told, sums.flatten()]))
    sums = shared[len(flags) :].view_as(sums)
    counts = sums[1::2].sum((1, 2))
    losses = (sums[::2] * state.weights).sum((1, 2)) / counts
    with watch.part("optimizer"):
        norm = _scale_and_clip(state, counts.clamp(min=1.0))
    with watch.part("backward"):  # on a GPU, the one place where its work is waited for
        numbers = on_host(torch.cat([losses, norm.double(), shared]))
    watch.move(distributed.exchange_seconds(state.parallel), "backward", "communication")
    loss, pinball, norm_found, *found = numbers[: 3 + len(flags)].tolist()
    errors, cells = numbers[3 + len(flags) :].view_as(sums)[:2]
    with watch.part("optimizer"):
        updated = bool(np.isfinite(loss) and np.isfinite(norm_found))
        if updated:
            state.optimizer.step()
        state.optimizer.zero_grad()
    return StepResult(errors, cells, loss, pinball, norm_found, found, updated, times)


def on_host(numbers: Tensor) -> Tensor:
    """A copy for the host, which waits until the device has them: once in an optimizer step."""
    return numbers.cpu()


def warm_up(state: TrainingState, empty: Batch) -> None:
    """A forward and backward without an effect, so that every counted step is like every other.

    DDP rebuilds its buckets after its first backward, which changes the order of summation: a
    resumed run would differ from an uninterrupted one in its first step.
    """
    empty = empty.to(state.device)
    forecast = forward(state, state.parallel, empty)
    sums = all_sums(forecast, empty, state.config)
    with distributed.collective():
        sums[::2].sum().backward()
    state.optimizer.zero_grad()


def _accumulate(
    state: TrainingState, batches: Iterator[Batch], micro_steps: int, step: int
) -> tuple[Tensor, list[int]]:
    """Gradients of the sum of errors, and `all_sums` with the items' times."""
    watch = state.stopwatch
    totals = torch.zeros(4, *state.weights.shape, dtype=torch.float64, device=state.device)
    times: list[int] = []
    for micro_step in range(micro_steps):
        with watch.part("data"):
            batch = next(batches)
            times += torch.where(batch.mask.any((1, 2, 3, 4)), batch.time, -1).tolist()
            batch = batch.to(state.device)
        last = micro_step == micro_steps - 1
        with contextlib.nullcontext() if last else distributed.no_sync(state.parallel):
            with watch.part("forward"):
                seed_micro_batch(state.config.seed, step, micro_step)
                forecast = forward(state, state.parallel, batch)
                sums = all_sums(forecast, batch, state.config)
            exchange = distributed.collective() if last else contextlib.nullcontext()
            with watch.part("backward"), exchange:
                (sums[::2] * state.weights).sum().backward()
                totals += sums.detach()
    return totals, times


def _scale_and_clip(state: TrainingState, cells: Tensor) -> Tensor:
    """Divide the gradients of each group by its `cells` of all ranks, and clip them to `clip_norm`.

    Gradients are equal on all ranks here, so a norm is the global one.

    Returns:
        The norm of the first group before; NaN where that of any is not finite; shape [1].
    """
    norms = []
    for group, count in zip(state.groups, cells, strict=True):
        present = [value for value in group if value.grad is not None]
        if not present:
            continue
        gradients = [value.grad for value in present if value.grad is not None]
        torch._foreach_mul_(gradients, (distributed.world_size() / count).to(gradients[0].dtype))
        norms.append(torch.nn.utils.get_total_norm(gradients))
        torch.nn.utils.clip_grads_with_norm_(present, state.config.train.clip_norm, norms[-1])
    whole = torch.stack(norms)
    return torch.where(whole.isfinite().all(), whole[:1], torch.nan)


def check_ranks_agree(state: TrainingState, step: int) -> None:
    """Compare a checksum of every parameter's bits over the ranks; all of them must call.

    Raises:
        AqnetError: the ranks have come apart; those unlike most and the first tensor are named.
            Rank 0 raises; the others learn of it at their next collective.
    """
    names = [name for name, _ in state.model.named_parameters()]
    bits = [value.detach().contiguous().view(torch.int32) for value in state.model.parameters()]
    sums = torch.stack([value.sum() for value in bits])
    everyone = distributed.gather_objects(sums.tolist())
    if everyone is None:
        return
    for name, row in zip(names, zip(*everyone, strict=True), strict=True):
        (usual, _), *others = Counter(row).most_common()
        if others:
            apart = [str(rank) for rank, value in enumerate(row) if value != usual]
            raise AqnetError(
                f"step {step}: the parameters of rank {', '.join(apart[:8])} are not those of the "
                f"other ranks ({len(apart)} of {len(row)} differ), first in {name}; continue from "
                "a checkpoint, and suspect the hardware or the network of those ranks"
            )
