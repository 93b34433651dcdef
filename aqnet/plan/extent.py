"""Grid, domain and hours of a run's data: from the stores where they exist, assumed where not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import zarr
from torch import Tensor

from aqnet.config import Config, periods
from aqnet.errors import AqnetError, one_line
from aqnet.grid import Grid


@dataclass(frozen=True)
class Extent:
    """What a plan needs to know of the data.

    Attributes:
        grid: shape and mask are the data's, coordinates are invented, because nothing that a plan
            says depends on them.
        hours: of the training split.
        assumptions: where this comes from.
    """

    grid: Grid
    hours: int
    assumptions: tuple[str, ...]


def extent_of(config: Config) -> Extent:
    """Grid, domain and hours of the training split.

    Raises:
        AqnetError: a store cannot be read, or there are none and the config says no grid.
    """
    training = config.data.split.train
    paths = [Path(config.data.stores) / f"{year}.zarr" for year in periods.years(training)]
    missing = [path for path in paths if not path.is_dir()]
    if not missing:
        return _stored(config, paths)
    shape = config.data.shape or config.plan.grid
    if shape is None:
        raise AqnetError(
            f"{missing[0]}: no such store, so the grid is unknown; set plan.grid (such as 128x256) "
            "or prepare the data first"
        )
    share = config.plan.domain_fraction
    hours = sum(end - first for first, end in periods.intervals(training))
    text = (
        f"no stores at {config.data.stores}: a grid of {shape[0]} x {shape[1]} cells, every hour "
        f"of the training periods, and {share:.0%} of the patches in the domain are assumed"
    )
    return Extent(invented_grid(_first_patches(shape, config.model.patch, share)), hours, (text,))


def _stored(config: Config, paths: Sequence[Path]) -> Extent:
    training = periods.intervals(config.data.split.train)
    hours = 0
    for path in paths:
        try:
            group = zarr.open_group(path, mode="r")
            mask, time = (np.asarray(group[name]) for name in ("mask", "time"))
        except (KeyError, ValueError, OSError) as error:
            raise AqnetError(
                f"{path}: not a training store with 'mask' and 'time' ({one_line(error)}); remove "
                "it and prepare it again"
            ) from None
        hours += int(np.any([(time >= first) & (time < end) for first, end in training], 0).sum())
    text = f"grid, domain and hours read from {paths[0]} ..."
    return Extent(invented_grid(torch.from_numpy(mask)), hours, (text,))


def _first_patches(shape: tuple[int, int], patch: int, share: float) -> Tensor:
    """A mask [H, W] of the first `share` of the patches in the order of the rows."""
    height, width = shape
    rows, columns = -(-height // patch), -(-width // patch)
    inside = torch.arange(rows * columns) < round(share * rows * columns)
    whole = inside.view(rows, columns).repeat_interleave(patch, 0).repeat_interleave(patch, 1)
    return whole[:height, :width]


def invented_grid(mask: Tensor) -> Grid:
    """A grid over China with this mask [H, W], its coordinates invented and its elevation 0."""
    height, width = mask.shape
    lat, lon = torch.meshgrid(
        torch.linspace(15, 55, height, dtype=torch.float64),
        torch.linspace(70, 140, width, dtype=torch.float64),
        indexing="ij",
    )
    return Grid(lat, lon, torch.zeros(height, width), mask)
