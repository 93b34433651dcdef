"""How far quantiles must move to hold what they promise, measured on the validation split.

Conformalised quantile regression (Romano et al. 2019, arXiv 1905.03222), with one score for each
quantile: by how many widths of its cell's distribution the truth lies above it. The score that a
share p of the cells stays below is what the quantile of level p has to move by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aqnet import distributed
from aqnet.batch import Batch
from aqnet.config import Config
from aqnet.errors import AqnetError

# scores are counted in bins that are equal in asinh(FINE * score): 0.0003 wide at a score of 0,
# 0.5 % of it far away; the outermost are open
BINS, FINE, REACH = 5000, 16.0, 12.5


class Calibration:
    """Counts of scores, which add up to the same for any number of processes.

    Attributes:
        counts: int64, shape [Q, K, T, BINS]; times: input times with a valid cell, [K, T].
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.levels = config, config.model.quantiles
        shape = len(config.data.lead_times), len(config.data.targets)
        self.counts = torch.zeros(len(self.levels), *shape, BINS, dtype=torch.int64, device=device)
        self.times = torch.zeros(shape, dtype=torch.int64, device=device)

    def add(self, quantiles: Tensor, batch: Batch) -> None:
        """Count the valid cells of a batch, given its raw quantiles [B, Q, K, T, H, W]."""
        self.times += batch.mask.any((3, 4)).sum(0)
        _, lead, target, _, _ = batch.mask.nonzero(as_tuple=True)
        group = lead * len(self.config.data.targets) + target
        found = quantiles.movedim(1, 0)[:, batch.mask].double()  # [Q, cells]
        width = found[-1] - found[0]
        places = torch.asinh(FINE * (batch.targets[batch.mask] - found) / width)
        bins = ((places / REACH + 1.0) * (BINS / 2)).long().clamp(0, BINS - 1)
        for counts, row in zip(self.counts, bins, strict=True):
            counts += torch.bincount(group * BINS + row, minlength=counts.numel()).view_as(counts)

    def stretch(self) -> Tensor:
        """What `aqnet.model.quantiles.stretched` moves quantiles by, float32, shape [Q, K, T].

        All ranks call, once.

        Raises:
            AqnetError: a target has too few input times at a lead time.
        """
        distributed.sum_(self.counts)
        distributed.sum_(self.times)
        data, levels = self.config.data, self.levels
        for (row, column), times in np.ndenumerate(self.times.cpu().numpy()):
            what = f"a value of {data.targets[column]} at {data.lead_times[row]} h"
            check_times(int(times), levels, what)
        counts = self.counts.cpu().numpy()
        found = [_at_share(part, level) for part, level in zip(counts, levels, strict=True)]
        return torch.from_numpy(np.stack(found)).float()


def check_times(found: int, levels: Sequence[float], what: str = "a sample") -> None:
    """Refuse to calibrate on fewer input times than a quantile needs to have one beyond it.

    Cells of one time share its weather, so that times are counted and not cells.

    Raises:
        AqnetError: names the quantile and how many times it needs.
    """
    for level in levels:
        needed = math.ceil(round(1.0 / min(level, 1.0 - level), 6)) - 1
        if found < needed:
            raise AqnetError(
                f"data.split.validation has {found} input times with {what}, but to calibrate the "
                f"quantile {level:g} takes {needed}; validate on longer periods, raise "
                "validation.max_items, or take quantiles nearer to 0.5"
            )


def _at_share(counts: NDArray[np.int64], share: float) -> NDArray[np.float64]:
    """The score that a share of the counted [K, T, BINS] lies below, shape [K, T]."""
    ends = np.sinh((np.arange(BINS + 1) / (BINS / 2) - 1.0) * REACH) / FINE
    below = counts.cumsum(-1)
    wanted = share * below[..., -1:]
    at = (below < wanted).sum(-1, keepdims=True)
    inside = np.take_along_axis(counts, at, -1)
    part = (wanted - (np.take_along_axis(below, at, -1) - inside)) / inside
    scores: NDArray[np.float64] = ends[at] + part * (ends[at + 1] - ends[at])
    return scores[..., 0]
