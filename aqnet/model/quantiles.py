"""Quantiles of the forecast's error: the head that gives them, and how they are stretched."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FIRST_STD = 0.5  # of the error before training, in standard deviations of the target
SMALLEST_STEP = 1e-4  # from one quantile to the next, likewise
# a pass trains quantiles on every 8th token: neighbours err alike, and all would take 1.4 times as
# long as the mean alone
TRAINED = 8


class QuantileHead(nn.Module):
    """Increasing quantiles of the error of the mean forecast, for each of a token's outputs.

    The middle quantile is free; the others lie above and below it by sums of positive steps.

    Args:
        dim: width D of the tokens.
        outputs: how many numbers O the head of the mean gives per token.
        levels: Q of them, increasing, between 0 and 1.
    """

    def __init__(self, dim: int, outputs: int, levels: Sequence[float]) -> None:
        super().__init__()
        self.shape, self.middle = (outputs, len(levels)), len(levels) // 2
        self.hidden = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, outputs * len(levels))
        nn.init.trunc_normal_(self.hidden.weight, std=0.02)
        nn.init.zeros_(self.hidden.bias)
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            self.out.bias.copy_(self._first(levels).repeat(outputs))

    def _first(self, levels: Sequence[float]) -> Tensor:
        """What `forward` makes quantiles of a Gaussian of, shape [Q]."""
        start = torch.tensor([FIRST_STD * NormalDist().inv_cdf(level) for level in levels])
        steps = (start.diff() - SMALLEST_STEP).clamp(min=SMALLEST_STEP)
        free = steps.expm1().log()  # inverse of softplus
        at = self.middle
        return torch.cat([free[:at], start[at : at + 1], free[at:]])

    def forward(self, x: Tensor) -> Tensor:
        """Errors at each level of tokens [N, L, D], normalised, at least float32, [N, L, O, Q]."""
        free = self.out(F.gelu(self.hidden(x))).unflatten(-1, self.shape)
        # steps of bfloat16 would be lost in their sums
        free = free.to(torch.promote_types(free.dtype, torch.float32))
        middle = free[..., self.middle]
        steps = (F.softplus(free) + SMALLEST_STEP).unbind(-1)
        below = accumulate(steps[self.middle - 1 :: -1], torch.sub, initial=middle)
        above = accumulate(steps[self.middle + 1 :], torch.add, initial=middle)
        return torch.stack([*list(below)[:0:-1], *above], dim=-1)


def a_few(tokens: int, device: torch.device) -> Tensor:
    """Every TRAINED-th of so many tokens, from a random one on, int64."""
    number = -(-tokens // TRAINED)
    first = torch.randint(TRAINED, (1,), device=device)
    return (torch.arange(number, device=device) * TRAINED + first) % tokens


def stretched(quantiles: Tensor, stretch: Tensor) -> Tensor:
    """Quantiles moved so that each holds what it promises, and still increasing.

    A quantile moves by its `stretch` times the distance from the lowest to the highest, so that
    wide distributions change more than narrow ones. Where two would cross they change places,
    which makes the whole no worse (Chernozhukov et al. 2010, doi 10.3982/ECTA7880).

    Args:
        quantiles: shape [B, Q, K, T, H, W].
        stretch: as `aqnet.training.calibration` measures it, shape [Q, K, T].
    """
    width = quantiles[:, -1:] - quantiles[:, :1]
    moved = quantiles + stretch[..., None, None] * width
    return moved.sort(dim=1).values
