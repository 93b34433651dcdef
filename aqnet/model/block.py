"""The pre-norm transformer block, and the blocks in the order of the scan."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aqnet.config import Model
from aqnet.model.attention.attention import Attention
from aqnet.model.attention.bias import Places
from aqnet.model.tokens.wind_scan import WindScan


class DropPath(nn.Module):
    """Leave out a residual branch for whole samples, at `rate`, while training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Shape [B, L, D], unchanged in evaluation."""
        if self.rate == 0.0 or not self.training:
            return x
        kept = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.rate
        return x * kept / (1.0 - self.rate)


class Mlp(nn.Module):
    """Two layers with GELU between."""

    def __init__(self, dim: int, hidden: int, drop_rate: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Shape [B, L, D] to the same."""
        result: Tensor = self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))
        return result


class Block(nn.Module):
    """Pre-norm transformer block, with attention by terrain, along the wind, both or neither."""

    def __init__(
        self, model: Model, drop_path: float, terrain: bool, lead_times: Sequence[int] = ()
    ) -> None:
        super().__init__()
        dim = model.embed_dim
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, model.num_heads, model.drop_rate, terrain, lead_times)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * model.mlp_ratio), model.drop_rate)
        self.window = model.window if model.attention == "window" else None

    def forward(self, x: Tensor, places: Places) -> Tensor:
        """Tokens [B, L, D] and where they are, in the order that windows cut."""
        x = x + self.drop_path(self.attn(self.norm1(x), places, self.window))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Blocks(nn.ModuleList):
    """The blocks in turn, with windows along the scan and across it in turn."""

    def __init__(self, model: Model, blocks: Sequence[nn.Module]) -> None:
        super().__init__(blocks)
        self.in_windows = model.attention == "window"
        self.activation_checkpointing = model.activation_checkpointing

    def forward(self, x: Tensor, places: Places, scan: WindScan, sector: Tensor) -> Tensor:
        """Tokens [N, L, D], in raster order where there are windows; sector [N, R * C]."""
        if not self.in_windows:
            for block in self:
                x = self._run(block, x, places)
            return x
        order, rank = scan.both_ways(sector[:, 0])
        there = [places.each(partial(_gather, index=rows)) for rows in order]
        turn = [rank[0].gather(1, order[1]), rank[1].gather(1, order[0])]
        x = _gather(x, order[0])
        for number, block in enumerate(self):
            here = number % 2
            x = self._run(block, x, there[here])
            last = number + 1 == len(self)
            x = _gather(x, rank[here] if last else turn[here])
        return x

    def _run(self, block: nn.Module, x: Tensor, places: Places) -> Tensor:
        if self.activation_checkpointing and self.training:
            result: Tensor = checkpoint(block, x, places, use_reentrant=False)
            return result
        result = block(x, places)
        return result


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """Tokens [N, L, ...], or one sequence of them for all samples, in the order `index` [N, L]."""
    # whole rows at once: gather would look up every number of a token
    if x.shape[0] < index.shape[0]:
        return x[0].index_select(0, index.flatten()).unflatten(0, index.shape)
    first = torch.arange(x.shape[0], device=x.device).unsqueeze(1) * x.shape[1]
    return x.flatten(0, 1).index_select(0, (index + first).flatten()).unflatten(0, index.shape)


def has_terrain(model: Model, number: int) -> bool:
    """Whether block `number` has terrain attention."""
    blocks = model.terrain.blocks
    return model.terrain.enabled and (blocks is None or number in blocks)


def initialise(module: nn.Module) -> None:
    """ClimaX's start of a linear layer."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts without effect."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
