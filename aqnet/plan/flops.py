"""FLOP of the real model, counted on fake tensors: those have shapes, but no values and no memory.

Whatever is added to the model is counted too; an operator of our own says its FLOP where it is
defined (`torch.utils.flop_counter.register_flop_formula`).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from aqnet.batch import Batch, Forecast
from aqnet.config import Config
from aqnet.model.climax import ClimaX
from aqnet.training.loss import all_sums
from aqnet.training.optimizer import make_optimizer


def item_flops(model: ClimaX, config: Config) -> float:
    """FLOP of forward and backward of one item, without what activation checkpointing repeats.

    Args:
        model: as it is at the start of a run, on any device; it is left as it is.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = fake_copy(model).eval()  # in which nothing is checkpointed
        make_optimizer(fake, config.train)  # freezes what is not trained
        batch = random_batch(config, model.grid_shape, config.train.micro_batch)
        with flop_counter() as counter:
            loss(fake, batch, config).backward()
    return counter.get_total_flops() / config.train.micro_batch


def fake_copy(model: ClimaX) -> ClimaX:
    """The model with fake tensors on the CPU for its own; call it in a `FakeTensorMode`."""
    fakes: dict[int, Any] = {id(buffer): _fake(buffer) for buffer in model.buffers()}
    for parameter in model.parameters():
        fakes[id(parameter)] = nn.Parameter(_fake(parameter), parameter.requires_grad)
    fake = copy.deepcopy(model, fakes)
    fake.check_lead_time = lambda lead_time: None  # type: ignore[method-assign]  # it has no values
    return fake


def random_batch(
    config: Config,
    shape: tuple[int, int],
    items: int,
    device: torch.device | str = "cpu",
) -> Batch:
    """A batch without a missing value on a grid of `shape`."""
    leads = torch.tensor(config.data.lead_times, device=device).expand(items, -1)
    pairs = (items, leads.shape[1], len(config.data.targets), *shape)
    return Batch(
        fields=torch.randn(items, len(config.input_variables), *shape, device=device),
        time=torch.zeros(items, dtype=torch.int64, device=device),
        lead_time=leads,
        targets=torch.randn(pairs, device=device),
        mask=torch.ones(pairs, dtype=torch.bool, device=device),
    )


def loss(model: nn.Module, batch: Batch, config: Config) -> Tensor:
    """Sum of a micro-batch's errors, forecast in the run's precision."""
    bf16 = config.train.precision == "bf16"
    with torch.autocast(batch.fields.device.type, torch.bfloat16, enabled=bf16):
        forecast = Forecast.of(model(batch.fields, batch.time, batch.lead_time))
    return all_sums(forecast, batch, config)[::2].sum()


def flop_counter() -> FlopCounterMode:
    """Counts FLOP by operator; knows the CPU's attention too, which torch's own list lacks."""
    aten = torch.ops.aten
    return FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: _attention,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        },
    )


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


def _fake(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)
