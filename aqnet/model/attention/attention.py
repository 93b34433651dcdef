"""Multi-head self-attention: over all tokens or inside windows, with or without biases."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqnet.model.attention import bias
from aqnet.model.attention.bias import Features, Places
from aqnet.model.attention.biased_attention import biased_attention

INITIAL_COST = 0.5  # of lifting and of lowering air, per km
INITIAL_TRAVEL = (0.0, 0.5, 1.0, 2.0)  # days, of the heads in turn
INITIAL_WIDTH = 0.6  # of the surroundings of the air's departure, 1,000 km


class Attention(nn.Module):
    """Self-attention with ClimaX's parameter names.

    `up` and `down` hold the terrain costs per head before softplus, which keeps them positive and,
    unlike a clamp at 0, always has a gradient; so does `travel_width` the width of attention along
    the wind. `travel_time` [days] of a head is free: below 0 it looks downwind.
    """

    days: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        drop_rate: float,
        terrain: bool = False,
        lead_times: Sequence[int] = (),
    ) -> None:
        """With biases by terrain, and along the wind where `lead_times` [h] are given."""
        super().__init__()
        self.num_heads = num_heads
        self.terrain, self.travel = terrain, bool(lead_times)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(drop_rate)
        if terrain:
            self.up, self.down = (_before_softplus(INITIAL_COST, num_heads) for _ in range(2))
        if self.travel:
            starts = [INITIAL_TRAVEL[head % len(INITIAL_TRAVEL)] for head in range(num_heads)]
            self.travel_time = nn.Parameter(torch.tensor(starts))
            self.travel_width = _before_softplus(INITIAL_WIDTH, num_heads)
            days = torch.tensor(sorted(lead_times)) / 24.0
            self.register_buffer("days", days, persistent=False)

    def forward(self, x: Tensor, places: Places | None = None, window: int | None = None) -> Tensor:
        """Mix tokens.

        Args:
            x: tokens in scan order, shape [B, L, D].
            places: of these tokens; what a bias needs must be there, the rest is not looked at.
            window: attention inside runs of this many consecutive tokens; the last run is shorter
                where the window does not divide L. None: attention over all tokens.
        Returns:
            Shape [B, L, D].
        Raises:
            ValueError: attention with a bias, and the places do not have what it needs.
        """
        batch, length, dim = x.shape
        places = self._needed(places or Places())
        if window is None or window >= length:
            return self._mix(x, places)
        # a shorter last window of its own excludes padding exactly: there is none
        whole = length // window * window
        places = places.each(lambda field: field.expand(batch, *field.shape[1:]))
        windows = places.each(lambda field: field[:, :whole].reshape(-1, window, *field.shape[2:]))
        mixed = self._mix(x[:, :whole].reshape(-1, window, dim), windows)
        mixed = mixed.reshape(batch, whole, dim)
        if whole == length:
            return mixed
        last = self._mix(x[:, whole:], places.each(lambda field: field[:, whole:]))
        return torch.cat([mixed, last], dim=1)

    def _needed(self, places: Places) -> Places:
        """Without what no bias of this module needs."""
        elevation_km = places.elevation_km if self.terrain else None
        position, displacement = places[1:] if self.travel else (None, None)
        if self.terrain and elevation_km is None:
            raise ValueError("terrain attention needs elevation_km")
        if self.travel and (position is None or displacement is None):
            raise ValueError("attention along the wind needs position and displacement")
        return Places(elevation_km, position, displacement)

    def _mix(self, x: Tensor, places: Places) -> Tensor:
        """Attention of all tokens of x [N, L, D] to each other."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        features = self._features(places, x)
        if features is not None:
            if x.device.type == "cpu":  # few are faster in bf16
                q, k, v = (part.to(features.senders.dtype) for part in (q, k, v))
            out = biased_attention(q, k, v, features)
        else:
            if x.device.type == "cpu":  # whose kernel takes rows packed by head 6 % faster
                q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
            out = F.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.drop(self.proj(out.transpose(1, 2).flatten(2)))
        return mixed

    def _features(self, places: Places, x: Tensor) -> Features | None:
        """The biases of all terms, in FP32 at least; None where there is no term."""
        if not (self.terrain or self.travel):
            return None
        kind = torch.promote_types(x.dtype, torch.float32)
        terms = []
        with torch.autocast(x.device.type, enabled=False):
            z, position, displacement = places.each(lambda field: field.to(kind))
            if z is not None:
                terms.append(bias.terrain(z, F.softplus(self.up), F.softplus(self.down)))
            if position is not None and displacement is not None:
                days, width = self.days.to(kind), F.softplus(self.travel_width)
                terms.append(bias.travel(position, displacement, days, self.travel_time, width))
            return bias.joined(terms)


def _before_softplus(value: float, num_heads: int) -> nn.Parameter:
    return nn.Parameter(torch.full((num_heads,), math.log(math.expm1(value))))
