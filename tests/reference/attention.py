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
    bias: Tensor | None = None,
) -> Tensor:
    """q, k, v [B, A, L, d]; z [B, L] km; up, down [A] per km; bias [B, A, L, L]: [B, A, L, d]."""
    length, width = q.shape[-2:]
    score = q @ k.transpose(-1, -2) / width**0.5
    if z is not None and up is not None and down is not None:
        climb = (z[:, :, None] - z[:, None, :]).unsqueeze(1)  # receiver minus sender
        score = score - up[:, None, None] * climb.clamp(min=0)
        score = score - down[:, None, None] * (-climb).clamp(min=0)
    if bias is not None:
        score = score + bias
    if window is not None:
        run = torch.arange(length) // window
        score = score.masked_fill(run[:, None] != run[None, :], -torch.inf)
    return score.softmax(-1) @ v


def departure(displacement: Tensor, hours: list[int], days: Tensor) -> Tensor:
    """Displacement after `days`, a number, of those [..., K, 2] at `hours`, ascending."""
    knots = [0.0, *(hour / 24 for hour in hours)]
    leg = next((n for n, knot in enumerate(knots[1:]) if days <= knot), len(hours) - 1)
    before = displacement[..., leg - 1, :] if leg else torch.zeros_like(displacement[..., 0, :])
    share = (days - knots[leg]) / (knots[leg + 1] - knots[leg])
    return before + share * (displacement[..., leg, :] - before)


def travel_bias(
    position: Tensor, displacement: Tensor, hours: list[int], time: Tensor, width: Tensor
) -> Tensor:
    """Scores [B, A, L, L] along the wind: position [B, L, 2], displacement [B, L, K, 2] in 1,000
    km; time [A] days; width [A] 1,000 km."""
    heads = []
    for days, wide in zip(time, width, strict=True):
        source = position + departure(displacement, hours, days)
        distance = position.unsqueeze(1) - source.unsqueeze(2)
        heads.append(-distance.square().sum(-1) / (2 * wide**2))
    return torch.stack(heads, dim=1)


def dense_self_attention(
    x: Tensor,
    parameters: dict[str, Tensor],
    num_heads: int,
    z: Tensor | None = None,
    window: int | None = None,
    wind: tuple[Tensor, Tensor, list[int]] | None = None,
) -> Tensor:
    """x [B, L, D]; parameters by ClimaX's names, `up`, `down` and `travel_width` before softplus;
    wind: position, displacement and hours of `travel_bias`."""
    batch, length, dim = x.shape
    qkv = x @ parameters["qkv.weight"].T + parameters["qkv.bias"]
    q, k, v = (
        part.reshape(batch, length, num_heads, dim // num_heads).transpose(1, 2)
        for part in qkv.split(dim, dim=-1)
    )
    up = down = None
    if z is not None:
        up, down = (torch.log1p(parameters[name].exp()) for name in ("up", "down"))
    bias = None
    if wind is not None:
        width = torch.log1p(parameters["travel_width"].exp())
        bias = travel_bias(*wind, parameters["travel_time"], width)
    out = dense_attention(q, k, v, z, up, down, window, bias)
    out = out.transpose(1, 2).reshape(batch, length, dim)
    return out @ parameters["proj.weight"].T + parameters["proj.bias"]
