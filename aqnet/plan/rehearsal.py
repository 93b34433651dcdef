"""A training step tried before there is a run: on fake tensors, or timed on this machine."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from aqnet.batch import Statistics
from aqnet.checkpoint.files import tensor_bytes
from aqnet.config import Config
from aqnet.distributed import launch
from aqnet.grid import Grid
from aqnet.model.climax import ClimaX
from aqnet.plan.extent import invented_grid
from aqnet.plan.flops import fake_copy, flop_counter, item_flops, loss, random_batch
from aqnet.training.optimizer import make_optimizer

_STEPS = 3  # that are timed, after one that is not


@dataclass(frozen=True)
class Rehearsal:
    """What a process holds, computes and moves.

    Attributes:
        parameters: their number; tokens: of one sequence.
        item_flops: of the forward and backward of an item, without what checkpointing repeats.
        flops: of those of a micro-batch, with it, as "matrix products", "attention" (torch's) and
            "own operators" (of aqnet.model).
        moved: bytes that all other operations of a micro-batch read and write.
        memory: bytes by kind at the moment when the device's tensors take most.
        batch_bytes: of a micro-batch; checkpoint_bytes: of a checkpoint.
    """

    parameters: int
    tokens: int
    item_flops: float
    flops: dict[str, int]
    moved: int
    memory: dict[str, int]
    batch_bytes: int
    checkpoint_bytes: int


def rehearse(config: Config, grid: Grid, gradients_stay: bool) -> Rehearsal:
    """A forward, backward and AdamW step and a validation batch on fake tensors, in seconds.

    Args:
        gradients_stay: whether gradients are there before the forward: those of the micro-batch
            before, or the buckets of DistributedDataParallel.
    Raises:
        AqnetError: config and grid do not fit together.
    """
    real = make_model(config, grid)
    counter, traffic = flop_counter(), _Traffic()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = fake_copy(real).train()
        optimizer = make_optimizer(model, config.train)
        if gradients_stay:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        batch = random_batch(config, grid.shape, config.train.micro_batch)
        with _tracker(model, optimizer, batch) as training, counter, traffic:
            loss(model, batch, config).backward()
            optimizer.step()
        if not gradients_stay:
            optimizer.zero_grad()
        items = config.validation.micro_batch or config.train.micro_batch
        more = random_batch(config, grid.shape, items)
        with _tracker(model.eval(), optimizer, more) as validation, torch.no_grad():
            loss(model, more, config)
        weights = tensor_bytes(model.state_dict())
        stored = weights + tensor_bytes((optimizer.state_dict(), grid.to_dict()))
    memory = max(_peak(training), _peak(validation), key=lambda kinds: sum(kinds.values()))
    if config.train.ema_decay is not None:
        memory["moving average"] = weights
        stored += weights
    return Rehearsal(
        parameters=sum(parameter.numel() for parameter in real.parameters()),
        tokens=len(real.tokens),
        item_flops=item_flops(real, config),
        flops=_by_kind(counter),
        moved=traffic.bytes,
        memory=memory,
        batch_bytes=tensor_bytes(batch),
        checkpoint_bytes=stored,
    )


def timed(config: Config, grid: Grid) -> tuple[float, float]:
    """Seconds of the real model's forward and backward of a micro-batch, and of its update.

    The median of a few on this machine, with random values.
    """
    device = launch.device_of(0)
    model = make_model(config, grid).to(device).train()
    optimizer = make_optimizer(model, config.train)
    batch = random_batch(config, grid.shape, config.train.micro_batch, device)
    seconds: list[tuple[float, float]] = []
    for _ in range(1 + _STEPS):
        start = _now(device)
        loss(model, batch, config).backward()
        middle = _now(device)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append((middle - start, _now(device) - middle))
    compute, update = zip(*seconds[1:], strict=True)
    return statistics.median(compute), statistics.median(update)


def base_of_a_process(config: Config) -> float:
    """Bytes that a process of a run needs beside its tensors: libraries, code, threads.

    They are the peak of this process after steps of a model that is like `config`'s, but as small
    as can be.
    """
    importlib.import_module("torch.utils.tensorboard")  # as a run does
    model = replace(config.model, embed_dim=4 * config.model.num_heads, depth=1, regions=None)
    side = 4 * model.patch
    everywhere = torch.ones(side, side, dtype=torch.bool)
    timed(replace(config, model=model), invented_grid(everywhere))
    return float(launch.peak_bytes())


def make_model(config: Config, grid: Grid) -> ClimaX:
    """The model that `train.py` would make, with invented statistics.

    Raises:
        AqnetError: config and grid do not fit together.
    """
    names = tuple(dict.fromkeys((*config.data.variables, *config.data.targets)))
    return ClimaX(config, grid, Statistics(names, (0.0,) * len(names), (1.0,) * len(names)))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _tracker(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Iterable[Tensor]
) -> MemTracker:
    tracker = MemTracker()
    tracker.track_external(model, optimizer, *batch)
    return tracker


class _Traffic(TorchDispatchMode):
    """Counts the bytes that operations without FLOP of their own read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._counted = flop_counter().flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket not in self._counted:
            read, written = _tensors([args, kwargs]), _tensors(out)
            known = {tensor.untyped_storage()._cdata for tensor in read}
            is_view = all(tensor.untyped_storage()._cdata in known for tensor in written)
            if func._schema.is_mutable or not is_view:
                self.bytes += sum(tensor.nbytes for tensor in (*read, *written))
        return out


def _by_kind(counter: FlopCounterMode) -> dict[str, int]:
    kinds = {"matrix products": 0, "attention": 0, "own operators": 0}
    for operator, flops in counter.get_flop_counts()["Global"].items():
        name = str(operator)
        attention = "attention" if "attention" in name else "matrix products"
        kinds["own operators" if name.startswith("aqnet.") else attention] += flops
    return kinds


_NAMES = {  # of MemTracker's kinds; what a step makes and drops again are "activations"
    "Parameter": "parameters",
    "Buffer": "parameters",
    "Gradient": "gradients",
    "Optstate": "optimizer",
    "Other": "batch",
}


def _peak(tracker: MemTracker) -> dict[str, int]:
    """Bytes by kind at the moment when most were held."""
    (snapshot,) = tracker.get_tracker_snapshot("peak").values()
    memory = dict.fromkeys((*_NAMES.values(), "activations"), 0)
    for kind, size in snapshot.items():
        if kind != "Total":
            memory[_NAMES.get(str(getattr(kind, "value", kind)), "activations")] += size
    return memory


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
