"""Attention with biases on a GPU, for tests.gpu_check: right, without squares, and how fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from aqnet.model.attention import bias
from aqnet.model.attention.bias import Features
from aqnet.model.attention.biased_attention import biased_attention
from tests.model.attention.test_attention import HOURS, far_apart
from tests.reference.attention import dense_attention, travel_bias

FP32 = 3e-5  # norm-wise distance of FP32 on a GPU from FP64


@dataclass(frozen=True)
class Row:
    """A line of the table: what was checked, what was found, whether that is right."""

    name: str
    found: str
    ok: bool


def kernels(device: torch.device) -> Iterator[Row]:
    """Attention with each kind of bias against the dense form in FP64 on the CPU, and its memory
    without a tensor of tokens by tokens."""
    length = 201 if device.type == "cpu" else 4001
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 1, 2, length, 96, generator=generator)
    for biases in ("terrain", "wind", "terrain and wind"):
        for name, kind in (("FP32", torch.float32), ("bf16", torch.bfloat16)):
            operands = [*tokens.to(kind).unbind(0), *far_apart(length, 600)]
            precise = [operand.double() for operand in operands]
            other = precise[:6] + [1.5 * number for number in precise[6:]]
            with torch.no_grad():  # a gradient that does not cancel
                seed = dense(biases, *precise) - dense(biases, *other)
            expected = derived(partial(dense, biases), precise, seed)
            there = [operand.to(device) for operand in operands]
            start_memory(device)
            found = derived(partial(biased, biases), there, seed.to(device))
            peak = peak_memory(device)
            low = kind == torch.bfloat16
            title = f"attention with {biases}, {name}"
            yield against(title, found[:4], expected[:4], 0.01 if low else FP32)
            # those of costs, times and widths are sums over all pairs, which cancel in part
            limit = 0.05 if low else 1e-3
            yield against(f"{title}, learned numbers", found[4:], expected[4:], limit)
            if device.type == "cuda":
                square = 2 * length**2 * kind.itemsize
                yield Row(f"{title}, memory", f"{peak / 2**20:.0f} MiB", peak < square)


def biased(
    biases: str, q: Tensor, k: Tensor, v: Tensor, *numbers: Tensor, attend: Any = biased_attention
) -> Tensor:
    z, position, displacement, up, down, *wind = numbers
    terms = [bias.terrain(z, up, down)] if "terrain" in biases else []
    if "wind" in biases:
        days = torch.tensor(HOURS).to(z) / 24
        terms.append(bias.travel(position, displacement, days, *wind))
    out: Tensor = attend(q, k, v, bias.joined(terms))
    return out


def dense(biases: str, q: Tensor, k: Tensor, v: Tensor, *numbers: Tensor) -> Tensor:
    z, position, displacement, up, down, *wind = numbers
    hills = (z, up, down) if "terrain" in biases else ()
    paths = travel_bias(position, displacement, HOURS, *wind) if "wind" in biases else None
    return dense_attention(q, k, v, *hills, bias=paths)


def derived(attend: Callable[..., Tensor], operands: list[Tensor], seed: Tensor) -> list[Tensor]:
    """Output, and gradients of all operands that it depends on but places."""
    leaves = [
        value.detach().requires_grad_(at not in (3, 4, 5)) for at, value in enumerate(operands)
    ]
    out = attend(*leaves)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    gradients = torch.autograd.grad(out, wanted, seed.to(out.dtype), allow_unused=True)
    return [out, *(gradient for gradient in gradients if gradient is not None)]


def dense_bias(q: Tensor, k: Tensor, v: Tensor, features: Features) -> Tensor:
    """`biased_attention` with the bias written out."""
    receivers, senders, above = features
    senders = senders.unsqueeze(1).transpose(2, 3)
    scores = receivers @ senders
    if above is not None:
        beyond = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
        scores = torch.where(beyond, above @ senders, scores)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=scores.to(q.dtype))


def flexible(q: Tensor, k: Tensor, v: Tensor, *numbers: Tensor) -> Tensor:
    """Attention with terrain by torch's compiler of kernels."""
    z, _, _, up, down, *_ = numbers

    def score(value: Tensor, _: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        climb = z[0, i] - z[0, j]
        return value - up[head] * climb.clamp(min=0) - down[head] * (-climb).clamp(min=0)

    out: Tensor = torch.compile(flex_attention)(q, k, v, score_mod=score)
    return out


def alternatives(device: torch.device) -> Iterator[Row]:
    """Time of attention with terrain, forward and backward, by kernels to choose from."""
    length = 128 if device.type == "cpu" else 8192
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(4, 1, 8, length, 96, generator=generator).to(device)
    numbers = [number.to(device) for number in far_apart(length, 600)]
    numbers[3:] = [number.repeat(4) for number in numbers[3:]]  # for eight heads
    ways = {
        "aqnet's": partial(biased, "terrain"),
        "dense bias": partial(biased, "terrain", attend=dense_bias),
    }
    if device.type == "cuda":  # which has no backward on a CPU
        ways["flex_attention"] = flexible
    for name, kind in (("FP32", torch.float32), ("bf16", torch.bfloat16)):
        first = None
        for way, attend in ways.items():
            operands = [*tokens[:3].to(kind).unbind(0), *numbers]
            run = partial(derived, attend, operands, tokens[3])
            out = run()[0]
            first = out if first is None else first
            start_memory(device)
            seconds = fastest(run, device)
            far = distance(out, first)
            text = f"{1000 * seconds:.2f} ms, {peak_memory(device) / 2**20:.0f} MiB, {far:.1e} away"
            # a dense bias in bf16 loses what three parts keep
            yield Row(f"{length} tokens with terrain, {name}, {way}", text, far < 0.05)


# --- what all checks use ---


def distance(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return ((found - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def against(name: str, found: list[Tensor], expected: list[Tensor], limit: float) -> Row:
    worst = max(distance(one, other) for one, other in zip(found, expected, strict=True))
    return Row(name, f"distance {worst:.1e}, at most {limit:.0e}", worst <= limit)


def fastest(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of five."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def start_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
