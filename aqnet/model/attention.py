"""Multi-head self-attention: over all tokens or inside windows, with or without terrain."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqnet.model.terrain import terrain_attention

INITIAL_COST = 0.5  # of lifting and of lowering air, per km


class Attention(nn.Module):
    """Self-attention with ClimaX's parameter names.

    `up` and `down` hold the terrain costs per head before softplus, which keeps them positive and,
    unlike a clamp at 0, always has a gradient.
    """

    def __init__(self, dim: int, num_heads: int, drop_rate: float, terrain: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.terrain = terrain
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(drop_rate)
        if terrain:
            raw = math.log(math.expm1(INITIAL_COST))
            self.up = nn.Parameter(torch.full((num_heads,), raw))
            self.down = nn.Parameter(torch.full((num_heads,), raw))

    def forward(
        self, x: Tensor, elevation_km: Tensor | None = None, window: int | None = None
    ) -> Tensor:
        """Mix tokens.

        Args:
            x: tokens in scan order, shape [B, L, D].
            elevation_km: real elevation in the same order [km], shape [L] or [B, L], ascending
                (inside each window, with windows); needed with terrain, not looked at without.
            window: attention inside runs of this many consecutive tokens; the last run is shorter
                where the window does not divide L. None: attention over all tokens.
        Returns:
            Shape [B, L, D].
        Raises:
            ValueError: terrain attention without an elevation.
        """
        batch, length, dim = x.shape
        z = self._elevation(elevation_km, batch, length)
        if window is None or window >= length:
            return self._mix(x, z)
        # a shorter last window of its own excludes padding exactly: there is none
        whole = length // window * window
        windows = None if z is None else z[:, :whole].reshape(-1, window)
        mixed = self._mix(x[:, :whole].reshape(-1, window, dim), windows)
        mixed = mixed.reshape(batch, whole, dim)
        if whole == length:
            return mixed
        last = self._mix(x[:, whole:], None if z is None else z[:, whole:])
        return torch.cat([mixed, last], dim=1)

    def _elevation(self, elevation_km: Tensor | None, batch: int, length: int) -> Tensor | None:
        if not self.terrain:
            return None
        if elevation_km is None:
            raise ValueError("terrain attention needs elevation_km")
        return elevation_km.expand(batch, length)

    def _mix(self, x: Tensor, z: Tensor | None) -> Tensor:
        """Attention of all tokens of x [N, L, D] to each other; z [N, L] in km or None."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if z is not None:
            out = terrain_attention(q, k, v, z, F.softplus(self.up), F.softplus(self.down))
        else:
            if x.device.type == "cpu":  # whose kernel takes rows packed by head 6 % faster
                q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
            out = F.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.drop(self.proj(out.transpose(1, 2).flatten(2)))
        return mixed
