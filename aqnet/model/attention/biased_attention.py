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
from aqnet.model.attention.bias import (
    Features,
    number_of_columns,
    receiver_columns,
    receiver_gradient,
    sender_columns,
)

_CHUNK = 512  # queries at once in an exported program


def biased_attention(q: Tensor, k: Tensor, v: Tensor, bias: Features) -> Tensor:
    """Softmax attention with a bias on the scores, exact, in linear memory.

    Args:
        q, k, v: queries, keys and values, bf16, FP32 or FP64, shape [B, A, L, d]. In bf16 scores
            and their bias are summed in FP32.
        bias: of these tokens, in FP32 or FP64.
    Returns:
        Shape and dtype of the queries.
    Raises:
        AqnetError: the device has no kernel for it.
    """
    if q.device.type not in ("cpu", "cuda"):
        raise AqnetError(
            f"model.terrain.enabled and model.transport: no kernel for the device "
            f"'{q.device.type}', expected cpu or cuda (ROCm included); set them to false and off"
        )
    kind = torch.promote_types(q.dtype, torch.float32)
    batch = q.shape[0]
    with torch.autocast(q.device.type, enabled=False):
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
    keys = _keys(k, senders)
    values = _padded(v, keys.shape[-1])
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
    return out[..., :width].to(q.dtype).contiguous(), lse.contiguous()


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
    scale, width, features = _scale(q), q.shape[-1], receivers.shape[-1]
    keys = _keys(k, senders)
    values, grad, out = (_padded(tensor, keys.shape[-1]) for tensor in (v, grad, out))
    causal = above is not None
    dq, dk, dv = _flash_backward(
        grad, _queries(q, receivers), keys, values, out, lse, causal, scale
    )
    d_receivers = (receiver_gradient(dq[..., width:], features) / scale).contiguous()
    d_above = receivers.new_empty(0)
    if above is not None:
        d_above = torch.zeros_like(d_receivers)
        if q.shape[2] > 1:
            halves = _upper(_queries(q, above), keys, values)
            last = [tensor[:, :, :-1].flip(2) for tensor in (grad, out, lse)]
            more = _flash_backward(last[0], *halves, last[1], last[2], causal, scale)
            upper_dq, upper_dk, upper_dv = (tensor.flip(2) for tensor in more)
            d_above[:, :, :-1] = receiver_gradient(upper_dq[..., width:], features) / scale
            dq[:, :, :-1] += upper_dq
            dk[:, :, 1:] += upper_dk
            dv[:, :, 1:] += upper_dv
    dq, dk, dv = (tensor[..., :width].contiguous() for tensor in (dq, dk, dv))
    return dq, dk, dv, d_receivers, d_above


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor | None) -> Any:
    kind = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=kind)


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
    others = [receivers.new_empty(receivers.shape) for _ in range(2)]
    if above is None:
        others[1] = receivers.new_empty(0)
    return *(q.new_empty(q.shape) for _ in range(3)), *others


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # asked for once: checkpointing computes them when it is
    dq, dk, dv, d_receivers, d_above = _backward(grad, *saved)
    return dq, dk, dv, d_receivers, None, None if saved[5] is None else d_above


_forward.register_autograd(_differentiate, setup_context=_save)


# --- the numbers appended to queries, keys and values --------------------------------------------


def _queries(q: Tensor, receivers: Tensor) -> Tensor:
    """With what the kernel does not scale, though it scales all of a query."""
    return _widened(q, receiver_columns(receivers / _scale(q), q.dtype))


def _keys(k: Tensor, senders: Tensor) -> Tensor:
    return _widened(k, sender_columns(senders.unsqueeze(1), k.dtype))


def _widened(tensor: Tensor, columns: Tensor) -> Tensor:
    """Columns appended, and, for the GPU kernels' aligned loads, zeros up to a multiple of 8."""
    wide = torch.cat([tensor, columns.expand(*tensor.shape[:-1], -1)], -1)
    return _padded(wide, _rounded(wide.shape[-1]))


def _padded(tensor: Tensor, width: int) -> Tensor:
    """Zeros appended, up to `width`."""
    return F.pad(tensor, (0, width - tensor.shape[-1]))


def _rounded(width: int) -> int:
    return width + -width % 8


def _upper(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Last first, without last query and first key: what is strictly beyond is then causal."""
    return queries[:, :, :-1].flip(2), keys[:, :, 1:].flip(2), values[:, :, 1:].flip(2)


def _scale(q: Tensor) -> float:
    return float(q.shape[-1]) ** -0.5


# --- what torch's FlopCounterMode counts: two causal halves are one whole ------------------------


@register_flop_formula(torch.ops.aqnet.biased_attention, get_raw=True)
def _(q: Tensor, k: Tensor, v: Tensor, receivers: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(*_shapes(receivers, q, k, v))


@register_flop_formula(torch.ops.aqnet.biased_attention_backward, get_raw=True)
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, receivers: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(*_shapes(receivers, grad, q, k, v))


def _shapes(receivers: Tensor, *tensors: Tensor) -> list[tuple[int, ...]]:
    """What the kernel is given."""
    columns = number_of_columns(receivers.shape[-1], tensors[0].dtype)
    return [(*tensor.shape[:-1], _rounded(tensor.shape[-1] + columns)) for tensor in tensors]


# --- flash attention that returns its log-sum-exp ------------------------------------------------


def _flash(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, scale=scale
        )
        return out, lse
    if q.dtype == torch.bfloat16:
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
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
    seed = torch.zeros((), dtype=torch.int64, device=q.device)  # no dropout
    if q.dtype == torch.bfloat16:
        lengths = (None, None, q.shape[2], q.shape[2])  # the same for all samples
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            grad, q, k, v, out, lse, *lengths, 0.0, causal, seed, seed, scale=scale
        )
        return dq, dk, dv
    if torch.version.hip is None:  # the CUDA kernel wants rows in multiples of 32, the rest inf
        lse = F.pad(lse, (0, -lse.shape[2] % 32), value=math.inf)
    wanted = [True, True, True, False]
    dq, dk, dv, _ = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
        grad, q, k, v, None, out, lse, seed, seed, 0.0, wanted, causal, scale=scale
    )
    return dq, dk, dv
