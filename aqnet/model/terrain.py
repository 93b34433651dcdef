"""Attention that charges for lifting and lowering air, without any L x L tensor.

The bias of receiver i and sender j is -up max(0, z_i - z_j) - down max(0, z_j - z_i). Among tokens
sorted by elevation it is, on either side of the diagonal, a product of two numbers per token:
slope (z_j - z_i) with slope = up below and -down above. Those are appended to queries and keys, so
the whole is two causal flash attentions, one over the keys up to the own and one over the keys
beyond it, merged by their log-sum-exps; the backward of each is the flash backward given the merged
output and log-sum-exp, as in ring attention (Liu et al. 2023, arXiv 2310.01889).

The private aten operators of torch are called here and nowhere else.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import (
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from aqnet.errors import AqnetError

_CHUNK = 512  # queries at once in an exported program


def terrain_attention(
    q: Tensor, k: Tensor, v: Tensor, z: Tensor, up: Tensor, down: Tensor
) -> Tensor:
    """Softmax attention with the terrain bias, exact, in linear memory, in FP32 at least.

    Tokens must stand in order of elevation: that of a grid never changes, so the model sorts them
    once. (Unsorted ones would get the wrong bias without an error.)

    Args:
        q, k, v: queries, keys and values, shape [B, A, L, d].
        z: elevation [km], ascending, finite, shape [B, L]; takes no gradient.
        up, down: cost of a kilometre of lifting and lowering per head, shape [A].
    Returns:
        Shape [B, A, L, d], FP64 for FP64 queries and FP32 otherwise.
    Raises:
        AqnetError: the device has no kernel for it.
    """
    if q.device.type not in ("cpu", "cuda"):
        raise AqnetError(
            f"model.terrain.enabled: no kernel for the device '{q.device.type}', expected cpu or "
            "cuda (ROCm included); set it to false"
        )
    # in bf16 the appended elevations would lose up to 5.6 % of the bias
    kind = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        z = z.to(kind)
        z = z - z.mean(dim=1, keepdim=True)  # only differences matter, small numbers round less
        q, k, v, up, down = (tensor.to(kind) for tensor in (q, k, v, up, down))
        if torch.compiler.is_exporting():
            return _in_chunks(q, k, v, z, up, down)
        out, _ = _forward(q, k, v, z, up, down)
    return out


def _in_chunks(q: Tensor, k: Tensor, v: Tensor, z: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The same with the biases written out, _CHUNK queries at once.

    An exported program must run where this file is not, and so cannot call its operators.
    """
    up, down = (slope.view(-1, 1, 1) for slope in (up, down))
    parts = []
    for first in range(0, q.shape[2], _CHUNK):
        here = slice(first, first + _CHUNK)
        climb = (z[:, here].unsqueeze(2) - z.unsqueeze(1)).unsqueeze(1)
        bias = -up * climb.relu() - down * (-climb).relu()
        parts.append(F.scaled_dot_product_attention(q[:, :, here], k, v, attn_mask=bias))
    return torch.cat(parts, dim=2)


@torch.library.custom_op("aqnet::terrain_attention", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, z: Tensor, up: Tensor, down: Tensor
) -> tuple[Tensor, Tensor]:
    """The output, and its log-sum-exp [B, A, L]."""
    scale, width = _scale(q), q.shape[-1]
    keys, values = _keys(k, z), _widen(v)
    out, lse = _flash(_queries(q, z, up), keys, values, scale)
    if q.shape[2] > 1:
        queries = _queries(q, z, -down)
        upper, upper_lse = _flash(*_upper(queries, keys, values), scale)
        # the highest token has nothing above it: weight exp(-inf) = 0
        upper = F.pad(upper.flip(2), (0, 0, 0, 1))
        upper_lse = F.pad(upper_lse.flip(2), (0, 1), value=-math.inf)
        lower_lse, lse = lse, torch.logaddexp(lse, upper_lse)
        out = out * (lower_lse - lse).exp().unsqueeze(-1)
        out += upper * (upper_lse - lse).exp().unsqueeze(-1)
    return out[..., :width].contiguous(), lse.contiguous()


@torch.library.custom_op("aqnet::terrain_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    z: Tensor,
    up: Tensor,
    down: Tensor,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, up and down."""
    scale, width = _scale(q), q.shape[-1]
    keys, values, grad, out = _keys(k, z), _widen(v), _widen(grad), _widen(out)
    dq, dk, dv = _flash_backward(grad, _queries(q, z, up), keys, values, out, lse, scale)
    grad_up = _slope_gradient(dq, z, width, scale)
    grad_down = torch.zeros_like(down)
    if q.shape[2] > 1:
        receivers = [tensor[:, :, :-1].flip(2) for tensor in (grad, out)]
        halves = _upper(_queries(q, z, -down), keys, values)
        more = _flash_backward(receivers[0], *halves, receivers[1], lse[:, :, :-1].flip(2), scale)
        upper_dq, upper_dk, upper_dv = (tensor.flip(2) for tensor in more)
        grad_down = -_slope_gradient(upper_dq, z[:, :-1], width, scale)
        dq[:, :, :-1] += upper_dq
        dk[:, :, 1:] += upper_dk
        dv[:, :, 1:] += upper_dv
    dq, dk, dv = (tensor[..., :width].contiguous() for tensor in (dq, dk, dv))
    return dq, dk, dv, grad_up, grad_down


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, z: Tensor, up: Tensor, down: Tensor) -> Any:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3])


@_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, z: Tensor, up: Tensor, *rest: Tensor) -> Any:
    return *(q.new_empty(q.shape) for _ in range(3)), up.new_empty(up.shape), up.new_empty(up.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    dq, dk, dv, grad_up, grad_down = _backward(grad, *ctx.saved_tensors)
    return dq, dk, dv, None, grad_up, grad_down


_forward.register_autograd(_differentiate, setup_context=_save)


# --- the features appended to queries, keys and values ------------------------------------------

_FEATURES = 2


def _width(width: int) -> int:
    """Features and, for the GPU kernels' aligned loads, zeros up to a multiple of 8."""
    return -(-(width + _FEATURES) // 8) * 8


def _queries(q: Tensor, z: Tensor, slope: Tensor) -> Tensor:
    """q with (-slope z_i, slope) appended, which the kernel scales as it scales q. slope: [A]."""
    slope = (slope / _scale(q)).view(-1, 1)
    features = torch.stack(torch.broadcast_tensors(-slope * z.unsqueeze(1), slope), -1)
    return _widen(torch.cat([q, features], -1), q.shape[-1])


def _keys(k: Tensor, z: Tensor) -> Tensor:
    """k with (1, z_j) appended."""
    features = torch.stack([torch.ones_like(z), z], -1).unsqueeze(1)
    features = features.expand(-1, k.shape[1], -1, -1)
    return _widen(torch.cat([k, features], -1), k.shape[-1])


def _widen(tensor: Tensor, width: int | None = None) -> Tensor:
    """Zeros appended, up to what heads of `width` (the tensor's own) take in the kernel."""
    width = tensor.shape[-1] if width is None else width
    return F.pad(tensor, (0, _width(width) - tensor.shape[-1]))


def _upper(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Highest first, without highest query and lowest key: strictly above is then causal."""
    return queries[:, :, :-1].flip(2), keys[:, :, 1:].flip(2), values[:, :, 1:].flip(2)


def _slope_gradient(dq: Tensor, z: Tensor, width: int, scale: float) -> Tensor:
    """Gradient of `slope` [A] from that of the queries made by `_queries`."""
    return (dq[..., width + 1] - dq[..., width] * z.unsqueeze(1)).sum((0, 2)) / scale


def _scale(q: Tensor) -> float:
    return float(q.shape[-1]) ** -0.5


# --- what torch's FlopCounterMode counts: two causal halves are one whole ------------------------


@register_flop_formula(torch.ops.aqnet.terrain_attention)
def _(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(*(_widened(shape) for shape in (q, k, v)))


@register_flop_formula(torch.ops.aqnet.terrain_attention_backward)
def _(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(*(_widened(shape) for shape in (grad, q, k, v)))


def _widened(shape: Any) -> tuple[int, ...]:
    return (*shape[:-1], _width(shape[-1]))


# --- causal flash attention that returns its log-sum-exp ----------------------------------------


def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, True, scale=scale
        )
        return out, lse
    # of the GPU kernels only the memory-efficient one takes FP32
    out, lse, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, None, True, 0.0, True, scale=scale
    )
    return out, lse[:, :, : q.shape[2]]


def _flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    if q.device.type == "cpu":
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, True, scale=scale
        )
        return dq, dk, dv
    if torch.version.hip is None:  # the CUDA kernel wants rows in multiples of 32, the rest inf
        lse = F.pad(lse, (0, -lse.shape[2] % 32), value=math.inf)
    seed = torch.zeros((), dtype=torch.int64, device=q.device)  # no dropout
    wanted = [True, True, True, False]
    dq, dk, dv, _ = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
        grad, q, k, v, None, out, lse, seed, seed, 0.0, wanted, True, scale=scale
    )
    return dq, dk, dv
