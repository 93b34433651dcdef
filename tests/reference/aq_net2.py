"""AQ_NET2 in its plain form, from its state dict: every token, score and bias written out.

Rows of the grid as stored (the scan off), evaluation mode. `state` has the keys of
AQNET2_CHECKPOINT.md without `model.`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TARGETS = (12, 5, 6, 7, 8, 9)
ELEVATION = 13


def forecast(
    state: dict[str, Tensor], fields: Tensor, hours: Tensor, num_heads: int, patch: int = 2
) -> Tensor:
    """fields [B, 15, H, W] normalised, NaN missing; hours [B] -> [B, 6, H, W] normalised."""
    own = {key.removeprefix("climax."): value for key, value in state.items()}
    elevation = F.avg_pool2d(fields.nan_to_num(0.0)[:, ELEVATION : ELEVATION + 1], patch)
    out = head(own, encode(own, fields, hours, num_heads, patch, elevation.flatten(1)))
    return image(out, fields, patch)[:, list(TARGETS)]


def encode(
    state: dict[str, Tensor],
    fields: Tensor,
    lead: Tensor,
    num_heads: int,
    patch: int,
    elevation: Tensor,
) -> Tensor:
    """ClimaX up to its last norm: [B, V, H, W] and lead [B] -> [B, L, D]; elevation [B, L]."""
    x = fields.nan_to_num(0.0)
    tokens = _embed(state, x, patch) + state["var_embed"].unsqueeze(2)
    out = _aggregate(state, tokens, num_heads) + state["pos_embed"]
    out = out + F.linear(lead.to(x.dtype)[:, None], *_pair(state, "lead_time_embed")).unsqueeze(1)
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    shape = (x.shape[2] // patch, x.shape[3] // patch)
    for number in range(depth):
        out = _block(_under(state, f"blocks.{number}"), out, num_heads, elevation, shape)
    return F.layer_norm(out, out.shape[-1:], *_pair(state, "norm"))


def image(out: Tensor, fields: Tensor, patch: int) -> Tensor:
    """The head's outputs (row, column, channel) per token as fields [B, C, H, W]."""
    height, width = fields.shape[2:]
    cells = out.reshape(len(out), height // patch, width // patch, patch, patch, -1)
    return torch.einsum("nhwpqc->nchpwq", cells).reshape(len(out), -1, height, width)


def _under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = prefix + "."
    return {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}


def _pair(state: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return state[f"{name}.weight"], state[f"{name}.bias"]


def _embed(state: dict[str, Tensor], x: Tensor, patch: int) -> Tensor:
    tokens = []
    for v in range(x.shape[1]):
        if "token_embeds.proj_weights" in state:
            weight, bias = (state[f"token_embeds.proj_{part}"][v] for part in ("weights", "biases"))
        else:
            weight, bias = _pair(state, f"token_embeds.{v}.proj")
        token = F.conv2d(x[:, v : v + 1], weight, bias, stride=patch)
        tokens.append(token.flatten(2).transpose(1, 2))
    return torch.stack(tokens, dim=1)


def _aggregate(state: dict[str, Tensor], tokens: Tensor, num_heads: int) -> Tensor:
    batch, variables, length, dim = tokens.shape
    flat = tokens.transpose(1, 2).reshape(-1, variables, dim)
    attention = torch.nn.MultiheadAttention(dim, num_heads, batch_first=True, dtype=tokens.dtype)
    attention.load_state_dict(_under(state, "var_agg"))
    with torch.no_grad():
        query = state["var_query"].expand(len(flat), 1, dim)
        out, _ = attention(query, flat, flat)
    return out.reshape(batch, length, dim)


def _block(
    state: dict[str, Tensor],
    x: Tensor,
    num_heads: int,
    elevation: Tensor,
    shape: tuple[int, int],
) -> Tensor:
    y = F.layer_norm(x, x.shape[-1:], *_pair(state, "norm1"))
    x = x + _attend(_under(state, "attn"), y, num_heads, elevation, shape)
    y = F.layer_norm(x, x.shape[-1:], *_pair(state, "norm2"))
    first, second = "mlp.fc1", "mlp.fc2"
    if "mlp.0.weight" in state:
        first, second = "mlp.0", "mlp.2" if "mlp.2.weight" in state else "mlp.3"
    y = F.linear(F.gelu(F.linear(y, *_pair(state, first))), *_pair(state, second))
    return x + y


def _attend(
    state: dict[str, Tensor],
    x: Tensor,
    num_heads: int,
    elevation: Tensor,
    shape: tuple[int, int],
) -> Tensor:
    batch, length, dim = x.shape
    qkv = F.linear(x, *_pair(state, "qkv")).reshape(batch, length, 3, num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    score = q @ k.transpose(-2, -1) * (dim // num_heads) ** -0.5
    difference = elevation[:, None, :] - elevation[:, :, None]
    for name, height in (("elevation_alpha", state.get("H_scale")), ("alpha", 1000.0)):
        if name in state:
            uphill = -state[name] * F.relu(difference / height)
            score = score + uphill.clamp(-10.0, 0.0).unsqueeze(1)
    for name in ("rel_pos_bias_2d.bias_table", "rel_pos_bias.bias_table"):
        if name in state:
            score = score + _relative(state[name], shape)
    weight = score.softmax(-1)
    if "elevation_barrier_strength" in state:
        low, high = elevation.min(1, keepdim=True)[0], elevation.max(1, keepdim=True)[0]
        unit = (elevation - low) / (high - low)
        climb = unit[:, None, :] - unit[:, :, None]
        gate = torch.sigmoid(-state["elevation_barrier_strength"] * climb).clamp(1e-6, 1.0)
        weight = weight * gate.unsqueeze(1)
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-8)
    out = (weight @ v).transpose(1, 2).reshape(batch, length, dim)
    return F.linear(out, *_pair(state, "proj"))


def _relative(table: Tensor, shape: tuple[int, int]) -> Tensor:
    """[A, L, L] from T5's buckets of the distances in x and y."""
    y, x = torch.meshgrid(*(torch.arange(n).float() / n for n in shape), indexing="ij")
    place = (torch.stack([x.flatten(), y.flatten()], dim=1) * 128).long()
    bucket = [_bucket(place[:, None, axis] - place[None, :, axis]) for axis in (0, 1)]
    return table[bucket[0] * 32 + bucket[1]].permute(2, 0, 1)


def _bucket(relative: Tensor) -> Tensor:
    n = -relative
    sign = (n < 0).long() * 16
    n = n.abs()
    far = 8 + (torch.log(n.float() / 8) / torch.log(torch.tensor(16.0)) * 8).long()
    return sign + torch.where(n < 8, n, torch.min(far, torch.full_like(far, 15)))


def head(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The decoder, of whichever names."""
    if "head.weight" in state:
        return F.linear(x, *_pair(state, "head"))
    names = ["head.0", "head.2", "head.4"]
    if "head_fc1.weight" in state:
        names = ["head_fc1", "head_fc2", "head_fc3"]
    for name in names[:-1]:
        x = F.gelu(F.linear(x, *_pair(state, name)))
    return F.linear(x, *_pair(state, names[-1]))
