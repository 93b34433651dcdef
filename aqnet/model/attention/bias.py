"""What attention knows of pairs of tokens: biases that are products of a few numbers of each.

A bias of receiver i and sender j that is a dot product of numbers of i with numbers of j costs
attention nothing but a wider head: they are appended to queries and keys. Here those numbers are
made, of any terms side by side, and for bf16 cut into parts that it holds exactly;
`biased_attention.py` takes them without knowing the terms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Places(NamedTuple):
    """Where tokens are, in their order; N = 1 where it is the same for all samples.

    Attributes:
        elevation_km: ascending (inside each window, with windows), shape [N, L].
        position: on the ground [1,000 km], shape [N, L, 2].
        displacement: position of the air at the input time less that of the token it reaches
            after each lead time, ascending, [1,000 km], shape [N, L, K, 2].
    """

    elevation_km: Tensor | None = None
    position: Tensor | None = None
    displacement: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Places:
        """With every field that there is changed."""
        return Places(*(None if field is None else change(field) for field in self))


class Features(NamedTuple):
    """A bias as dot products: receivers[i] . senders[j] for j <= i, above[i] . senders[j] beyond.

    Attributes:
        receivers: shape [N, A, L, F], N = 1 where it is the same for all samples.
        senders: the same for all heads, without gradient, shape [N, L, F].
        above: as receivers; None: the same on both sides.
    """

    receivers: Tensor
    senders: Tensor
    above: Tensor | None = None


def terrain(z: Tensor, up: Tensor, down: Tensor) -> Features:
    """-up max(0, z_i - z_j) - down max(0, z_j - z_i) of tokens in ascending order of z.

    On either side of the diagonal that is slope (z_j - z_i), with slope up below and -down above.

    Args:
        z: elevation [km], shape [N, L].
        up, down: cost of a kilometre of lifting and of lowering air, shape [A].
    """
    z = z - z.mean(dim=1, keepdim=True)  # only differences matter, and small numbers round less
    sides = []
    for slope in (up, -down):
        numbers = torch.broadcast_tensors(-slope.view(-1, 1) * z.unsqueeze(1), slope.view(-1, 1))
        sides.append(torch.stack(numbers, dim=-1))
    return Features(sides[0], torch.stack([torch.ones_like(z), z], dim=-1), sides[1])


def travel(
    position: Tensor, displacement: Tensor, days: Tensor, time: Tensor, width: Tensor
) -> Features:
    """-|p_j - d_i|^2 / (2 width^2) but for a term of i alone, which no softmax sees.

    d_i is where the air is that reaches token i after a head's own travel time.

    Args:
        position, displacement: as in `Places`.
        days: the lead times of the displacements, ascending, shape [K].
        time: travel time of each head [days], shape [A]. Between the lead times, and 0, d_i is on
            the straight line, beyond them on its continuation.
        width: of each head [1,000 km], shape [A].
    """
    # only differences matter, small numbers round less
    position = position - position.mean(dim=1, keepdim=True)
    square = position.square().sum(dim=-1, keepdim=True)
    square = square - square.mean(dim=1, keepdim=True)
    departure = torch.einsum("ak,nlkc->nalc", path_weights(time, days), displacement)
    departure = departure + position.unsqueeze(1)
    sharpness = width.pow(-2).view(-1, 1, 1)
    numbers = [departure * sharpness, (-0.5 * sharpness).expand_as(departure[..., :1])]
    return Features(torch.cat(numbers, dim=-1), torch.cat([position, square], dim=-1))


def path_weights(time: Tensor, days: Tensor) -> Tensor:
    """What the displacements at `days` [K] weigh in that at each `time` [A]; shape [A, K]."""
    number = torch.arange(len(days), device=days.device)
    leg = (time.unsqueeze(1) > days[:-1]).sum(dim=1, keepdim=True)  # ends at days[leg]
    ends, starts = number == leg, number == leg - 1
    before = F.pad(days[:-1], (1, 0))  # the first leg begins at 0, without displacement
    share = (time.unsqueeze(1) - before) / (days - before)
    share = torch.where(ends, share, 0.0).sum(dim=1, keepdim=True)
    return torch.where(ends, share, torch.where(starts, 1.0 - share, 0.0))


def joined(terms: list[Features]) -> Features:
    """The sum of biases, as one."""
    if len(terms) == 1:
        return terms[0]
    samples = max(term.receivers.shape[0] for term in terms)

    def side_by_side(parts: list[Tensor]) -> Tensor:
        return torch.cat([part.expand(samples, *part.shape[1:]) for part in parts], dim=-1)

    above = None
    if any(term.above is not None for term in terms):
        above = side_by_side(
            [term.receivers if term.above is None else term.above for term in terms]
        )
    receivers = side_by_side([term.receivers for term in terms])
    return Features(receivers, side_by_side([term.senders for term in terms]), above)


# --- columns that a kernel's numbers hold: of queries and of keys, whose products add up ---------


def receiver_columns(numbers: Tensor, kind: torch.dtype) -> Tensor:
    """Numbers [..., F] of receivers for a product in `kind` with `sender_columns`, [..., C].

    C = F in FP32 and FP64. A bf16 number holds 8 bits: with it alone scores along the wind are
    wrong by 0.7 where a head looks 300 km around places 5,000 km apart, with a second part of each
    number by 0.0013 (by 0.005 for 150 km), with a third, which makes 24 bits, by 0.00003 as in
    FP32. Their products are 6 F columns, 30 for terrain and wind: heads of 96 then fit the 128 that
    flash kernels round them up to, as with two parts.
    """
    parts = _parts(numbers, kind)
    return torch.cat([parts[first] for first, _ in _products(len(parts))], dim=-1)


def sender_columns(numbers: Tensor, kind: torch.dtype) -> Tensor:
    """The same of senders."""
    parts = _parts(numbers, kind)
    return torch.cat([parts[second] for _, second in _products(len(parts))], dim=-1)


def receiver_gradient(columns: Tensor, features: int) -> Tensor:
    """The gradient of receivers' numbers [..., F] from that of the columns, at least FP32."""
    parts = _number_of_parts(columns.dtype)
    columns = columns[..., : parts * features].to(torch.promote_types(columns.dtype, torch.float32))
    # the first part stands beside each part of the senders', which add up to their numbers
    return columns.unflatten(-1, (parts, features)).sum(dim=-2) if parts > 1 else columns


def number_of_columns(features: int, kind: torch.dtype) -> int:
    """How many columns F features take."""
    return features * len(_products(_number_of_parts(kind)))


def _number_of_parts(kind: torch.dtype) -> int:
    return 3 if kind == torch.bfloat16 else 1


def _products(parts: int) -> list[tuple[int, int]]:
    """Pairs of parts whose product is not below what is dropped; those of the first part first."""
    return [(first, second) for first in range(parts) for second in range(parts - first)]


def _parts(numbers: Tensor, kind: torch.dtype) -> list[Tensor]:
    """Numbers of `kind` that add up to `numbers`, the largest first."""
    parts = []
    for _ in range(_number_of_parts(kind)):
        parts.append(numbers.to(kind))
        numbers = numbers - parts[-1]
    return parts
