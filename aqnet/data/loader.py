"""Loader processes: micro-batches in the order of a sampler, errors as they were raised."""

from __future__ import annotations

import atexit
import signal
import weakref
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from aqnet.batch import Batch
from aqnet.data.dataset import ForecastDataset
from aqnet.distributed import launch
from aqnet.errors import AqnetError


def collate(items: Sequence[Batch]) -> Batch:
    """Items stacked along a new first axis."""
    return Batch(*(torch.stack(tensors) for tensors in zip(*items, strict=True)))


class _ErrorsAsValues(Dataset[Batch | AqnetError]):
    """A dataset that returns an `AqnetError` in place of the item: had a loader process raised it,
    torch would put the traceback into its message."""

    def __init__(self, dataset: ForecastDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, item: int) -> Batch | AqnetError:
        try:
            return self.dataset[item]
        except AqnetError as error:
            return error


def _collate_unless_error(items: Sequence[Batch | AqnetError]) -> Batch | AqnetError:
    for item in items:
        if isinstance(item, AqnetError):
            return item
    return collate([item for item in items if not isinstance(item, AqnetError)])


class _Loader(DataLoader[Batch]):
    keep_workers = True

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        new_workers = self.num_workers > 0 and self._iterator is None
        batches = super().__iter__()
        if new_workers:
            # multiprocessing would terminate them at exit, which they ignore, and wait for ever
            atexit.register(_end_workers, weakref.ref(self))
        keep = self.keep_workers
        try:
            for batch in batches:
                if isinstance(batch, AqnetError):
                    keep = False
                    raise batch
                yield batch
        finally:
            if not keep:
                _end_workers(weakref.ref(self))


def loader(
    dataset: ForecastDataset,
    batch_sampler: Sampler[list[int]],
    workers: int,
    keep_workers: bool = True,
) -> DataLoader[Batch]:
    """Whole micro-batches, read in `workers` processes (0: in this one), in pinned memory where
    there is a GPU. An `AqnetError` of a loader process is raised here as it was raised there.

    Args:
        keep_workers: whether they wait for the next epoch, or end with each.
    """
    batches = _Loader(
        _ErrorsAsValues(dataset),  # type: ignore[arg-type]
        batch_sampler=batch_sampler,
        num_workers=workers,
        collate_fn=_collate_unless_error,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # iterating draws nothing from torch's default one
        worker_init_fn=_leave_signals_to_parent,
    )
    batches.keep_workers = keep_workers
    return batches


def _end_workers(reference: weakref.ref[_Loader]) -> None:
    loader = reference()
    if loader is not None and loader._iterator is not None:
        loader._iterator._shutdown_workers()  # type: ignore[attr-defined]
        loader._iterator = None


def _leave_signals_to_parent(worker: int) -> None:
    """A stop is for the training process to obey; its workers serve it until then, or it dies."""
    launch.die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
