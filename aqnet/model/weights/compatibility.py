"""Block 0 of the AQ_NET2 variants: attention whose biases have no fast form, in query chunks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aqnet.config import Model
from aqnet.model.attention.attention import Attention
from aqnet.model.attention.bias import Places
from aqnet.model.block import Block

# queries whose scores exist at once: 67 MB with 8 heads and 8,192 tokens
CHUNK = 256
# the constants of that code: metres, smallest gate, guard of the renormalisation, buckets a side,
# and the length of a grid side in bucket units
HEIGHT = 1000.0
SMALLEST_GATE = 1e-6
GUARD = 1e-8
BUCKETS = 32
DISTANCE = 128


def has_biased_block(model: Model) -> bool:
    """Whether block 0 is one of AQ_NET2's elevation-aware ones."""
    return model.compatibility not in ("none", "aq_net2")


def bias_block(block: nn.Module, model: Model, patch_shape: tuple[int, int]) -> None:
    """Give `block` the attention that `model.compatibility` names."""
    assert isinstance(block, Block)
    block.attn = BiasedAttention(model, patch_shape)


class BiasedAttention(Attention):
    """Self-attention over all tokens of the grid, with what `model.compatibility` adds.

    `aq_net2_barrier`: weights times sigmoid(-barrier_strength (z_j - z_i)), renormalised, z being
    the patch elevations scaled to 0 .. 1 per sample. `aq_net2_uphill`: -alpha max(0, z_j - z_i)
    / 1000, at least -10, on the scores. `aq_net2_relative`: that and a table of biases by bucketed
    distance in columns and rows (T5's buckets), `bias_table` [1024, A].
    """

    columns: Tensor
    rows: Tensor

    def __init__(self, model: Model, patch_shape: tuple[int, int]) -> None:
        super().__init__(model.embed_dim, model.num_heads, model.drop_rate)
        self.barrier = model.compatibility == "aq_net2_barrier"
        self.relative = model.compatibility == "aq_net2_relative"
        if self.barrier:
            self.barrier_strength = nn.Parameter(torch.tensor(3.0))
        else:
            self.alpha = nn.Parameter(torch.tensor(1.0))
        if self.relative:
            self.bias_table = nn.Parameter(torch.zeros(BUCKETS**2, model.num_heads))
            self.patch_shape = patch_shape
            for name, size in zip(("rows", "columns"), patch_shape, strict=True):
                self.register_buffer(name, distance_buckets(size), persistent=False)

    def forward(self, x: Tensor, places: Places | None = None, window: int | None = None) -> Tensor:
        """Mix tokens.

        Args:
            x: tokens in raster order, shape [B, L, D].
            places: in place of the elevation in km its patch means as the model's input has them,
                normalised, and 0 where missing, shape [B, L]; needed. (Over 1000, `aq_net2_uphill`
                makes next to nothing of it: so it was.)
            window: None.
        Returns:
            Shape [B, L, D].
        """
        assert places is not None and places.elevation_km is not None and window is None
        elevation = places.elevation_km
        z = _unit_range(elevation) if self.barrier else elevation
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = torch.cat([self._run(q, k, v, z, n) for n in range(0, x.shape[1], CHUNK)], dim=2)
        mixed: Tensor = self.drop(self.proj(out.transpose(1, 2).flatten(2)))
        return mixed

    def _run(self, q: Tensor, k: Tensor, v: Tensor, z: Tensor, first: int) -> Tensor:
        if not torch.is_grad_enabled():
            return self._chunk(q, k, v, z, first)
        # recomputed for the gradient: kept, the chunks' scores would add up to L x L
        once: Tensor = checkpoint(
            self._chunk, q, k, v, z, first, use_reentrant=False, preserve_rng_state=False
        )
        return once

    def _chunk(self, q: Tensor, k: Tensor, v: Tensor, z: Tensor, first: int) -> Tensor:
        """Attention of CHUNK queries from `first` to all keys, [B, A, CHUNK, D / A]."""
        here = slice(first, first + CHUNK)
        score = q[:, :, here] @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        climb = (z.unsqueeze(1) - z[:, here].unsqueeze(2)).unsqueeze(1)
        if self.barrier:
            gate = torch.sigmoid(-self.barrier_strength * climb).clamp(min=SMALLEST_GATE)
            weight = score.softmax(dim=-1) * gate
            return weight / (weight.sum(dim=-1, keepdim=True) + GUARD) @ v
        if self.relative:
            score = score + self._distance_bias(first)
        uphill = -self.alpha * (climb / HEIGHT).relu()
        return (score + uphill.clamp(-10.0, 0.0)).softmax(dim=-1) @ v

    def _distance_bias(self, first: int) -> Tensor:
        """[A, CHUNK, L]."""
        height, width = self.patch_shape
        token = torch.arange(height * width, device=self.rows.device)
        query = token[first : first + CHUNK].unsqueeze(1)
        bucket = self.columns[query % width, token % width] * BUCKETS
        bucket = bucket + self.rows[query // width, token // width]
        return self.bias_table[bucket].permute(2, 0, 1)


def distance_buckets(size: int) -> Tensor:
    """Bucket of (position of the query, position of the key) on a side of `size`, [size, size].

    T5's (Raffel et al. 2020, arXiv 1910.10683): half of the buckets for each sign, of these half
    exact and half logarithmic, after scaling the side to DISTANCE units.
    """
    half, exact = BUCKETS // 2, BUCKETS // 4
    place = (torch.arange(size, dtype=torch.float32) / size * DISTANCE).long()
    ahead = place.unsqueeze(0) - place.unsqueeze(1)
    distance = ahead.abs()
    growth = torch.log(distance.clamp(min=1).float() / exact)
    far = exact + (growth / torch.log(torch.tensor(DISTANCE / exact)) * (half - exact)).long()
    within = torch.where(distance < exact, distance, far.clamp(max=half - 1))
    return within + (ahead < 0).long() * half


def _unit_range(elevation: Tensor) -> Tensor:
    low, high = elevation.amin(dim=1, keepdim=True), elevation.amax(dim=1, keepdim=True)
    extent = high - low
    return (elevation - low) / torch.where(extent > 1e-6, extent, 1.0)
