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
from torch import Tensor, nn

from aqnet import distributed
from aqnet.batch import Batch
from aqnet.config import Config
from aqnet.counted import Bins
from aqnet.errors import AqnetError

SCORE_BINS = Bins(5000, fine=16.0, reach=12.5)  # 0.0003 wide at 0, half a per cent far away


class Calibration:
    """Measures a model's `stretch` anew, from counts that add up to the same for any number of
    processes. While it does, `stretch` is 0, so that the model gives its raw quantiles.

    Attributes:
        counts: of scores, int64, shape [Q, K, T, bins]; times: input times with a valid cell,
            [K, T].
    """

    def __init__(self, config: Config, model: nn.Module) -> None:
        self.config, self.levels = config, config.model.quantiles
        self._stretch = model.get_buffer("stretch")
        self._before = self._stretch.clone()
        self._stretch.zero_()
        device = self._stretch.device
        shape = len(config.data.lead_times), len(config.data.targets)
        size = len(self.levels), *shape, SCORE_BINS.number
        self.counts = torch.zeros(size, dtype=torch.int64, device=device)
        self.times = torch.zeros(shape, dtype=torch.int64, device=device)

    def add(self, quantiles: Tensor, batch: Batch) -> None:
        """Count the valid cells of a batch, given its raw quantiles [B, Q, K, T, H, W]."""
        self.times += batch.mask.any((3, 4)).sum(0)
        _, lead, target, _, _ = batch.mask.nonzero(as_tuple=True)
        group = lead * len(self.config.data.targets) + target
        found = quantiles.movedim(1, 0)[:, batch.mask].double()  # [Q, cells]
        width = found[-1] - found[0]
        bins = SCORE_BINS.of((batch.targets[batch.mask] - found) / width)
        for counts, row in zip(self.counts, group * SCORE_BINS.number + bins, strict=True):
            counts += torch.bincount(row, minlength=counts.numel()).view_as(counts)

    def abandon(self) -> None:
        """Leave the model as it was."""
        self._stretch.copy_(self._before)

    def finish(self) -> None:
        """Give the model what `aqnet.model.quantiles.stretched` is to move its quantiles by,
        [Q, K, T]; all ranks call.

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
        pairs = zip(counts, levels, strict=True)
        found = [SCORE_BINS.quantile(part, level) for part, level in pairs]
        self._stretch.copy_(torch.from_numpy(np.stack(found)))


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
