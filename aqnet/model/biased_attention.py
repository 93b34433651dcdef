"""Attention with a bias of receivers and senders, without any L x L tensor.

The bias of receiver i and sender j is a dot product of a few numbers of either (`bias.py`), one for
the senders up to i and another for those beyond it. Appended to queries and keys, that is flash
attention; where the two sides differ, two causal ones, over the keys up to the own and over the
keys beyond it, merged by their log-sum-exps. The backward of each is the flash backward given the
merged output and log-sum-exp, as in ring attention (Liu et al. 2023, arXiv 2310.01889).

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
from aqnet.model.bias import Features

_CHUNK = 512  # queries at once in an exported program


def biased_attention(q: Tensor, k: Tensor, v: Tensor, bias: Features) -> Tensor:
    """Softmax attention with a bias on the scores, exact, in linear memory, in FP32 at least.

    Args:
        q, k, v: queries, keys and values, shape [B, A, L, d].
        bias: of these tokens, in FP32 or FP64.
    Returns:
        Shape [B, A, L, d], FP64 for FP64 queries and FP32 otherwise.
    Raises:
        AqnetError: the device has no kernel for it.
    """
    if q.device.type not in ("cpu", "cuda"):
        raise AqnetError(
            f"model.terrain.enabled and model.transport: no kernel for the device "
            f"'{q.device.type}', expected cpu or cuda (ROCm included); set them to false and off"
        )
    # in bf16 the appended numbers would lose up to 5.6 % of the bias
    kind = torch.promote_types(q.dtype, torch.float32)
    batch = q.shape[0]
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = (tensor.to(kind) for tensor in (q, k, v))
        receivers, senders, above = (
            None if part is None else part.to(kind).expand(batch, *part.shape[1:]) for part in bias
        )
        assert receivers is not None and senders is not None
        if torch.compiler.is_exporting():
            return _in_chunks(q, k, v, receivers, senders, above)
        out, _ = _forward(q, k, v, receivers, senders, above)
    return out


def _in_chunks(
    q: Tensor, k: Tensor, v: Tensor, receivers: Tensor, senders: Tensor, above: Tensor | None
) -> Tensor:
    """The same with the biases written out, _CHUNK queries at once.

    An exported program must run where this file is not, and so cannot call its operators.
    """
    senders, token = senders.unsqueeze(1).transpose(2, 3), torch.arange(q.shape[2])
    parts = []
    for first in range(0, q.shape[2], _CHUNK):
        here = slice(first, first + _CHUNK)
        bias = receivers[:, :, here] @ senders
        if above is not None:
            beyond = token > token[here].unsqueeze(1)
            bias = torch.where(beyond, above[:, :, here] @ senders, bias)
        parts.append(F.scaled_dot_product_attention(q[:, :, here], k, v, attn_mask=bias))
    return torch.cat(parts, dim=2)


@torch.library.custom_op("aqnet::biased_attention", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, receivers: Tensor, senders: Tensor, above: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The output, and its log-sum-exp [B, A, L]."""
    scale, width = _scale(q), q.shape[-1]
    features = receivers.shape[-1]
    keys, values = _widened(k, senders.unsqueeze(1)), _padded(v, width, features)
    causal = above is not None
    out, lse = _flash(_queries(q, receivers), keys, values, causal, scale)
    if above is not None and q.shape[2] > 1:
        beyond = _upper(_queries(q, above), keys, values)
        upper, upper_lse = _flash(*beyond, causal, scale)
        # the last token has nothing beyond it: weight exp(-inf) = 0
        upper = F.pad(upper.flip(2), (0, 0, 0, 1))
        upper_lse = F.pad(upper_lse.flip(2), (0, 1), value=-math.inf)
        lower_lse, lse = lse, torch.logaddexp(lse, upper_lse)
        out = out * (lower_lse - lse).exp().unsqueeze(-1)
        out += upper * (upper_lse - lse).exp().unsqueeze(-1)
    return out[..., :width].contiguous(), lse.contiguous()


@torch.library.custom_op("aqnet::biased_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    receivers: Tensor,
    senders: Tensor,
    above: Tensor | None,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, receivers and above (empty where there is none)."""
    scale, width = _scale(q), q.shape[-1]
    keys = _widened(k, senders.unsqueeze(1))
    number = receivers.shape[-1]
    values, grad, out = (_padded(tensor, width, number) for tensor in (v, grad, out))
    causal = above is not None
    dq, dk, dv = _flash_backward(
        grad, _queries(q, receivers), keys, values, out, lse, causal, scale
    )
    features = slice(width, width + number)
    d_receivers = (dq[..., features] / scale).contiguous()
    d_above = q.new_empty(0)
    if above is not None:
        d_above = torch.zeros_like(d_receivers)
        if q.shape[2] > 1:
            halves = _upper(_queries(q, above), keys, values)
            last = [tensor[:, :, :-1].flip(2) for tensor in (grad, out, lse)]
            more = _flash_backward(last[0], *halves, last[1], last[2], causal, scale)
            upper_dq, upper_dk, upper_dv = (tensor.flip(2) for tensor in more)
            d_above[:, :, :-1] = upper_dq[..., features] / scale
            dq[:, :, :-1] += upper_dq
            dk[:, :, 1:] += upper_dk
            dv[:, :, 1:] += upper_dv
    dq, dk, dv = (tensor[..., :width].contiguous() for tensor in (dq, dk, dv))
    return dq, dk, dv, d_receivers, d_above


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor | None) -> Any:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3])


@_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    receivers: Tensor,
    senders: Tensor,
    above: Tensor | None,
    *rest: Tensor,
) -> Any:
    others = (q.new_empty(receivers.shape), q.new_empty(0 if above is None else receivers.shape))
    return *(q.new_empty(q.shape) for _ in range(3)), *others


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # asked for once: checkpointing computes them when it is
    dq, dk, dv, d_receivers, d_above = _backward(grad, *saved)
    return dq, dk, dv, d_receivers, None, None if saved[5] is None else d_above


_forward.register_autograd(_differentiate, setup_context=_save)


# --- the numbers appended to queries, keys and values --------------------------------------------


def _widened(tensor: Tensor, features: Tensor) -> Tensor:
    """Features appended, and, for the GPU kernels' aligned loads, zeros up to a multiple of 8."""
    features = features.expand(*tensor.shape[:-1], -1)
    return _padded(torch.cat([tensor, features], -1), tensor.shape[-1], features.shape[-1])


def _queries(q: Tensor, receivers: Tensor) -> Tensor:
    """With what the kernel does not scale, though it scales all of a query."""
    return _widened(q, receivers / _scale(q))


def _padded(tensor: Tensor, width: int, features: int) -> Tensor:
    """Zeros appended, up to what heads of `width` with `features` take in the kernel."""
    return F.pad(tensor, (0, _width(width, features) - tensor.shape[-1]))


def _width(width: int, features: int) -> int:
    return width + features + -(width + features) % 8


def _upper(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Last first, without last query and first key: what is strictly beyond is then causal."""
    return queries[:, :, :-1].flip(2), keys[:, :, 1:].flip(2), values[:, :, 1:].flip(2)


def _scale(q: Tensor) -> float:
    return float(q.shape[-1]) ** -0.5


# --- what torch's FlopCounterMode counts: two causal halves are one whole ------------------------


@register_flop_formula(torch.ops.aqnet.biased_attention)
def _(q: Any, k: Any, v: Any, receivers: Any, *_: Any, **__: Any) -> int:
    width = _width(q[-1], receivers[-1])
    return sdpa_flop_count(*((*shape[:-1], width) for shape in (q, k, v)))


@register_flop_formula(torch.ops.aqnet.biased_attention_backward)
def _(grad: Any, q: Any, k: Any, v: Any, receivers: Any, *_: Any, **__: Any) -> int:
    width = _width(q[-1], receivers[-1])
    return sdpa_backward_flop_count(*((*shape[:-1], width) for shape in (grad, q, k, v)))


# --- flash attention that returns its log-sum-exp ------------------------------------------------


def _flash(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, scale=scale
        )
        return out, lse
    # of the GPU kernels only the memory-efficient one takes FP32
    out, lse, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, None, True, 0.0, causal, scale=scale
    )
    return out, lse[:, :, : q.shape[2]]


def _flash_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if q.device.type == "cpu":
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, causal, scale=scale
        )
        return dq, dk, dv
    if torch.version.hip is None:  # the CUDA kernel wants rows in multiples of 32, the rest inf
        lse = F.pad(lse, (0, -lse.shape[2] % 32), value=math.inf)
    seed = torch.zeros((), dtype=torch.int64, device=q.device)  # no dropout
    wanted = [True, True, True, False]
    dq, dk, dv, _ = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
        grad, q, k, v, None, out, lse, seed, seed, 0.0, wanted, causal, scale=scale
    )
    return dq, dk, dv
