"""Dense attention: every score, bias and mask written out."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    z: Tensor | None = None,
    up: Tensor | None = None,
    down: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """q, k, v [B, A, L, d]; z [B, L] km; up, down [A] per km. Returns [B, A, L, d]."""
    length, width = q.shape[-2:]
    score = q @ k.transpose(-1, -2) / width**0.5
    if z is not None and up is not None and down is not None:
        climb = (z[:, :, None] - z[:, None, :]).unsqueeze(1)  # receiver minus sender
        score = score - up[:, None, None] * climb.clamp(min=0)
        score = score - down[:, None, None] * (-climb).clamp(min=0)
    if window is not None:
        run = torch.arange(length) // window
        score = score.masked_fill(run[:, None] != run[None, :], -torch.inf)
    return score.softmax(-1) @ v


def dense_self_attention(
    x: Tensor,
    parameters: dict[str, Tensor],
    num_heads: int,
    z: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """x [B, L, D]; parameters by ClimaX's names, `up` and `down` before softplus."""
    batch, length, dim = x.shape
    qkv = x @ parameters["qkv.weight"].T + parameters["qkv.bias"]
    q, k, v = (
        part.reshape(batch, length, num_heads, dim // num_heads).transpose(1, 2)
        for part in qkv.split(dim, dim=-1)
    )
    up = down = None
    if z is not None:
        up, down = (torch.log1p(parameters[name].exp()) for name in ("up", "down"))
    out = dense_attention(q, k, v, z, up, down, window)
    out = out.transpose(1, 2).reshape(batch, length, dim)
    return out @ parameters["proj.weight"].T + parameters["proj.bias"]
