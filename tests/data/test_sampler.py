import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aqnet.config import Config
from aqnet.data.sampler import EMPTY_ITEM, EvaluationSampler, TrainSampler
from aqnet.errors import AqnetError
from tests.data.worlds import config

ITEMS = 101  # 8 global batches of 12 and one of 5


@pytest.fixture
def settings() -> Config:
    return config(Path("nowhere"))  # 12 items a step, 2 a micro-batch


def run(settings: Config, world: int, epoch: int, start: int, steps: int | None) -> list[set[int]]:
    """The items of each optimizer step, all ranks together."""
    samplers = [TrainSampler(ITEMS, settings, rank, world) for rank in range(world)]
    for sampler in samplers:
        sampler.set_position(epoch, start)
    streams = [iter(sampler) for sampler in samplers]
    result = []
    for items, micro_steps in itertools.islice(samplers[0].optimizer_steps(), steps):
        shares = [share for s in streams for share in itertools.islice(s, micro_steps)]
        seen = [item for share in shares for item in share if item != -1]
        assert len(shares) == micro_steps * world
        assert len(seen) == len(set(seen)) == items
        result.append(set(seen))
    if steps is None:
        assert all(next(stream, None) is None for stream in streams)
    return result


def test_every_optimizer_step_has_the_same_items_on_any_number_of_ranks(settings: Config):
    alone = run(settings, 1, 0, 0, None)
    assert [len(step) for step in alone] == [12] * 8 + [5]
    for world in (2, 3, 6):
        assert run(settings, world, 0, 0, None) == alone


def test_resumed_epoch_sees_each_item_once_on_other_world_sizes(settings: Config):
    seen = run(settings, 2, 3, 0, 3) + run(settings, 1, 3, 36, 2) + run(settings, 3, 3, 60, None)
    assert sum(len(step) for step in seen) == ITEMS
    assert set().union(*seen) == set(range(ITEMS))
    assert seen == run(settings, 1, 3, 0, None)


def test_items_of_a_micro_step_follow_the_ranks(settings: Config):
    first, second = (list(TrainSampler(ITEMS, settings, rank, 2)) for rank in range(2))
    order = [item for step in zip(first, second, strict=True) for share in step for item in share]
    alone = [item for share in TrainSampler(ITEMS, settings, 0, 1) for item in share]
    assert [item for item in order if item != -1] == alone


def test_ranks_without_a_share_get_the_empty_item(settings: Config):
    last = [list(TrainSampler(ITEMS, settings, rank, 6))[-1] for rank in range(6)]
    assert [len(share) for share in last] == [2, 2, 1, 1, 1, 1]
    assert last[3:] == [[-1]] * 3
    assert all(len(TrainSampler(ITEMS, settings, rank, 6)) == 9 for rank in range(6))


def test_length_counts_the_micro_batches_left(settings: Config):
    sampler = TrainSampler(ITEMS, settings, 1, 2)
    for consumed in (0, 24, 96, 101):
        sampler.set_position(0, consumed)
        assert len(sampler) == len(list(sampler))
    assert len(sampler) == 0


def test_epochs_and_seeds_have_their_own_order(settings: Config):
    sampler = TrainSampler(ITEMS, settings, 0, 1)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_position(epoch, 0)
        orders.append(list(sampler))
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]
    other = TrainSampler(ITEMS, config(Path("nowhere")), 0, 1)
    other.seed = 1
    assert list(other) not in orders


def test_impossible_positions_and_batches_are_refused(settings: Config):
    sampler = TrainSampler(ITEMS, settings, 0, 1)
    for consumed in (5, -12, 108):
        with pytest.raises(AqnetError, match="data position"):
            sampler.set_position(0, consumed)
    with pytest.raises(AqnetError, match="effective_batch"):
        TrainSampler(ITEMS, settings, 0, 5)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_evaluation_batches_are_the_same_on_any_number_of_ranks(world: int):
    shards = [list(EvaluationSampler(22, 4, rank, world)) for rank in range(world)]
    batches = [batch for row in itertools.zip_longest(*shards) for batch in row if batch]
    assert batches == [list(range(start, min(start + 4, 22))) for start in range(0, 22, 4)]
    assert [len(EvaluationSampler(22, 4, rank, world)) for rank in range(world)] == [
        len(shard) for shard in shards
    ]


@pytest.mark.parametrize("seed", range(25))
def test_epochs_of_any_size_resumed_on_any_worlds_see_each_item_once(settings: Config, seed: int):
    rng = np.random.default_rng(seed)
    num_items, micro, accumulation = (int(rng.integers(1, high)) for high in (300, 5, 4))
    worlds = [1, 2, 3, 4, 6, 12]
    batch = micro * accumulation * 12  # which every one of these can share
    train = replace(settings.train, micro_batch=micro, effective_batch=2 * batch)  # 2 lead times
    other = replace(settings, train=train, seed=seed)
    seen: list[int] = []
    while len(seen) < num_items:
        world = int(rng.choice(worlds))
        samplers = [TrainSampler(num_items, other, rank, world) for rank in range(world)]
        for sampler in samplers:
            sampler.set_position(3, len(seen))
        assert len({len(sampler) for sampler in samplers}) == 1
        streams = [iter(sampler) for sampler in samplers]
        for items, micro_steps in itertools.islice(
            samplers[0].optimizer_steps(), int(rng.integers(1, 4))
        ):
            shares = [next(stream) for _ in range(micro_steps) for stream in streams]
            assert max(len(share) for share in shares) <= micro
            step = [item for share in shares for item in share if item != EMPTY_ITEM]
            assert len(step) == items == min(batch, num_items - len(seen))
            seen += step
    assert sorted(seen) == list(range(num_items))
    alone = TrainSampler(num_items, other, 0, 1)
    alone.set_position(3, 0)
    assert seen == [item for share in alone for item in share if item != EMPTY_ITEM]


@pytest.mark.parametrize("seed", range(25))
def test_evaluation_covers_each_item_once_on_worlds_of_any_size(seed: int):
    rng = np.random.default_rng(seed)
    num_items, batch, world = (int(rng.integers(1, high)) for high in (300, 20, 40))
    shards = [list(EvaluationSampler(num_items, batch, rank, world)) for rank in range(world)]
    for rank, shard in enumerate(shards):
        assert len(shard) == len(EvaluationSampler(num_items, batch, rank, world))
        for at, items in enumerate(shard):
            assert items[0] == (at * world + rank) * batch
            assert items == list(range(items[0], min(items[0] + batch, num_items)))
    assert sorted(item for shard in shards for items in shard for item in items) == list(
        range(num_items)
    )
