"""The domain: the cells in which forecasts are made and scored, one mask for all stores."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aqnet.config import Config, periods
from aqnet.data.on_grid.model_grid import ModelGrid
from aqnet.data.prepare.origin import made_from, store_path
from aqnet.data.prepare.parallel import ProgressLines, Workers
from aqnet.data.stores import store
from aqnet.errors import AqnetError
from aqnet.files import write_beside

Array = NDArray[Any]


def domain(config: Config, grid: ModelGrid, workers: Workers) -> Array:
    """The domain mask of the model grid, bool, shape [H, W], from `data.mask_file` or the data.

    Raises:
        AqnetError: no cell is in it.
    """
    mask = grid.domain_file()
    if mask is None:
        with (Path(config.data.stores) / ".domain.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one of several at once makes it, the others wait
            mask = _observed(config, grid, workers)
    elif not mask.any():
        raise AqnetError(f"data.mask_file: {config.data.mask_file}: no cell of the grid is inside")
    else:
        _print_overlap(config, grid, mask)
    if not mask.any():
        raise AqnetError(
            f"{config.data.sources[0].path}: no valid cell: the targets "
            f"{', '.join(config.data.targets)} are missing everywhere in the training split"
        )
    return mask


def _print_overlap(config: Config, grid: ModelGrid, mask: Array) -> None:
    """Print how many cells of the mask have data: few, where it is upside down or of another
    projection."""
    began, _ = periods.intervals(config.data.split.train)[0]
    first = int(np.searchsorted(grid.sources.times, began))
    block = grid.read(config.data.targets, slice(first, first + store.HOURS_PER_SHARD))
    observed = np.isfinite(block).any(axis=(0, 1))
    print(
        f"prepare: {(mask & observed).sum() / mask.sum():.0%} of the cells of data.mask_file hold "
        f"a target in the first {len(block)} times, {(observed & ~mask).sum()} cells outside it do",
        flush=True,
    )


def refuse_other_masks(config: Config, years: list[int], mask: Array) -> None:
    """Refuse stores of `years` whose domain is not `mask`.

    Raises:
        AqnetError: names the first of them.
    """
    for year in years:
        path = store_path(config, year)
        if not np.array_equal(store.open_store(path).grid.mask.numpy(), mask):
            raise AqnetError(
                f"{path}: its domain mask differs from that of this config; remove the store or "
                "give another data.stores"
            )


def _observed(config: Config, grid: ModelGrid, workers: Workers) -> Array:
    """Cells with a finite target at some time of the training split."""
    sources, blocks = grid.sources, []
    identity: dict[str, Any] = {"targets": list(config.data.targets)}
    training = config.data.split.train
    for period, hours in zip(training, periods.intervals(training), strict=True):
        first, after = (int(row) for row in np.searchsorted(sources.times, hours))
        blocks += grid.blocks(first, after)
        identity[period] = made_from(config, sources, slice(first, after))
    kept = Path(config.data.stores) / ".domain.npz"
    text = json.dumps(identity, sort_keys=True)
    if kept.exists():
        with np.load(kept) as found:
            if str(found["made_from"]) == text:
                return np.asarray(found["mask"])
    mask = np.zeros(grid.lat.shape, bool)
    progress = ProgressLines("prepare: domain", sum(rows.stop - rows.start for rows in blocks))
    work = [(config.data.targets, rows) for rows in blocks]
    for (_, rows), part in workers.run(_observed_block, work):
        mask |= part
        progress.add(rows.stop - rows.start)
        if mask.all():
            break
    with write_beside(kept) as file:
        np.savez(file, mask=mask, made_from=text)
    return mask


def _observed_block(grid: ModelGrid, block: tuple[tuple[str, ...], slice]) -> Array:
    return np.asarray(np.isfinite(grid.read(*block)).any(axis=(0, 1)))
