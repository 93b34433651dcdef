"""What attention knows of pairs of tokens: biases that are products of a few numbers of each.

A bias of receiver i and sender j that is a dot product of numbers of i with numbers of j costs
attention nothing but a wider head: they are appended to queries and keys. Here those numbers are
made, of any terms side by side; `biased_attention.py` takes them without knowing the terms.
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
