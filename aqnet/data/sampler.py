"""Who reads which item, from where: training shuffled and restartable, evaluation in time order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import DistributedSampler, Sampler

from aqnet.config import Config, accumulation
from aqnet.errors import AqnetError

EMPTY_ITEM = -1


class TrainSampler(DistributedSampler[list[int]]):
    """Batch sampler: the micro-batches of one rank, from a position in an epoch to its end.

    The epoch is one permutation of all items, cut into global batches of
    `effective_batch / lead times` items; the last may be smaller, and nothing is padded or dropped.
    Every rank gets the same number of micro-batches; an empty share is `[EMPTY_ITEM]`.
    """

    def __init__(self, num_items: int, config: Config, rank: int, world_size: int) -> None:
        """Stand at the start of epoch 0.

        Raises:
            AqnetError: the effective batch cannot be shared among the ranks.
        """
        super().__init__(range(num_items), world_size, rank, seed=config.seed)  # type: ignore[arg-type]
        accumulation(config, world_size)
        self.num_items = num_items
        self.micro_batch = config.train.micro_batch
        self.global_batch = config.train.effective_batch // len(config.data.lead_times)
        self.start = 0

    def set_position(self, epoch: int, items_consumed: int) -> None:
        """Go on in `epoch` after the first `items_consumed` items of its permutation.

        Raises:
            AqnetError: that is not the end of an optimizer step.
        """
        whole = items_consumed % self.global_batch == 0 and 0 <= items_consumed <= self.num_items
        if not whole and items_consumed != self.num_items:
            raise AqnetError(
                f"data position: {items_consumed} of {self.num_items} items consumed is no end of "
                f"an optimizer step of {self.global_batch} items; the data or "
                "train.effective_batch are not those of the checkpoint"
            )
        self.set_epoch(epoch)
        self.start = items_consumed

    def optimizer_steps(self) -> Iterator[tuple[int, int]]:
        """(items of all ranks, micro-batches of each rank) of each optimizer step still to come."""
        per_micro_step = self.num_replicas * self.micro_batch
        for first in range(self.start, self.num_items, self.global_batch):
            items = min(self.global_batch, self.num_items - first)
            yield items, -(-items // per_micro_step)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_items)
        first = self.start
        for items, micro_steps in self.optimizer_steps():
            batch = order[first : first + items]
            for step in range(micro_steps):
                begin = (step * self.num_replicas + self.rank) * self.micro_batch
                yield batch[begin : begin + self.micro_batch].tolist() or [EMPTY_ITEM]
            first += items

    def __len__(self) -> int:
        return sum(micro_steps for _, micro_steps in self.optimizer_steps())


class EvaluationSampler(Sampler[list[int]]):
    """Batch sampler: items in order, cut into batches; batch j goes to rank j mod world_size."""

    def __init__(self, num_items: int, batch: int, rank: int, world_size: int) -> None:
        self.num_items = num_items
        self.batch = batch
        self.starts = range(rank * batch, num_items, world_size * batch)

    def __iter__(self) -> Iterator[list[int]]:
        for start in self.starts:
            yield list(range(start, min(start + self.batch, self.num_items)))

    def __len__(self) -> int:
        return len(self.starts)
