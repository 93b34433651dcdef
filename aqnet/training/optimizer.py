"""Parameter groups, the learning-rate schedule and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from aqnet.config import Train
from aqnet.errors import AqnetError

# by a parameter's own name: correlations, terrain strengths and learned tables are no projections
_NEVER_DECAYED = (
    "bias",
    "proj_biases",
    "bias_table",
    "rho",
    "recent_rho",
    "up",
    "down",
    "var_query",
)


def parameter_groups(
    model: nn.Module, weight_decay: float, factors: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Groups for AdamW, in a fixed order, each with its `factor` of the learning rate.

    Biases, norms, embedding tables (`*_embed`, nn.Embedding), rho and the terrain strengths `up`
    and `down` have no weight decay. The longest of `factors` (prefixes of parameter names, at
    whole names) that fits a parameter holds. A factor of 0 freezes: call this before DDP wraps.

    Raises:
        AqnetError: a factor is negative or fits no parameter, or every parameter is frozen.
    """
    _check_factors(model, factors)
    tables = (nn.Embedding, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    undecayed = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, tables)
        for parameter in module.parameters(recurse=False)
    }
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        factor = _factor(name, factors)
        if factor == 0:
            parameter.requires_grad_(False)
        if not parameter.requires_grad:
            continue
        own = name.rpartition(".")[2]
        free = own in _NEVER_DECAYED or own.endswith("_embed") or parameter.ndim < 2
        decay = 0.0 if free or id(parameter) in undecayed else weight_decay
        groups.setdefault((decay, factor), []).append(parameter)
    if not groups:
        raise AqnetError("train.learning_rate_factors freezes every parameter; leave one above 0")
    return [
        {"params": parameters, "weight_decay": decay, "factor": factor}
        for (decay, factor), parameters in groups.items()
    ]


def make_optimizer(model: nn.Module, train: Train) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, fused (on a CPU as well: 3 to 7 times faster).

    Its state is there from the start, not from the first step: what does not fit fails at once.
    """
    groups = parameter_groups(model, train.weight_decay, train.learning_rate_factors)
    optimizer = torch.optim.AdamW(groups, lr=train.learning_rate, fused=True)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimizer


def schedule(step: int, train: Train) -> float:
    """Share of the learning rate at optimizer step `step` (the first is 0), from 0 to 1.

    Linear over `warmup_steps` (the first step has 1/warmup_steps), then a half cosine that
    reaches 0 at `decay_steps` (else `max_steps`) and stays there.
    """
    if step < train.warmup_steps:
        return (step + 1) / train.warmup_steps
    end = train.decay_steps if train.decay_steps is not None else train.max_steps
    if end is None:
        raise AqnetError("train.decay_steps is needed where train.max_steps is not given")
    progress = (step - train.warmup_steps) / max(1, end - train.warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, train: Train) -> float:
    """Give every group its rate for `step`; returns that of a group of factor 1."""
    rate = train.learning_rate * schedule(step, train)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    return rate


class MovingAverage:
    """Exponential moving average of a model's parameters (all ranks hold the same)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._model = model
        self._average = {name: value.detach().clone() for name, value in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Call after each optimizer step: average = decay * average + (1 - decay) * weights."""
        for name, value in self._model.named_parameters():
            self._average[name].lerp_(value, 1.0 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The model's state with the averages in place of the parameters (not copied)."""
        return {**self._model.state_dict(), **self._average}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        for name, value in self._average.items():
            value.copy_(state[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the averages as parameters; afterwards its own, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self._model.named_parameters():
            kept = value.detach().clone()
            value.copy_(self._average[name])
            self._average[name].copy_(kept)


def _fits(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _factor(name: str, factors: Mapping[str, float]) -> float:
    fitting = [prefix for prefix in factors if _fits(name, prefix)]
    return factors[max(fitting, key=len)] if fitting else 1.0


def _check_factors(model: nn.Module, factors: Mapping[str, float]) -> None:
    names = [name for name, _ in model.named_parameters()]
    for prefix, factor in factors.items():
        if not any(_fits(name, prefix) for name in names):
            tops = ", ".join(sorted({name.partition(".")[0] for name in names}))
            raise AqnetError(
                f"train.learning_rate_factors.{prefix} fits no parameter; the model has: {tops}"
            )
        if not (factor >= 0 and math.isfinite(factor)):
            raise AqnetError(
                f"train.learning_rate_factors.{prefix} is {factor}; expected 0 (freeze) or more"
            )
