"""The loop with a toy model in this process: where it ends, what it keeps, what it counts."""

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Sampler

from aqnet import distributed
from aqnet.batch import Batch, Statistics
from aqnet.checkpoint import Checkpoints
from aqnet.config import Config
from aqnet.data.sampler import TrainSampler
from aqnet.errors import AqnetError
from aqnet.training import loop
from aqnet.training.maps import Examples
from aqnet.training.position import Position, time_left
from aqnet.training.reporter import Reporter
from aqnet.training.step import TrainingState, check_ranks_agree
from tests.distributed.test_distributed import on_two
from tests.training import toy

# what state.json must hold of a run
FACTS: dict[str, Any] = {
    "config": {"data": {}, "model": {}},
    "statistics": {},
    "data_checksums": {},
}
ITEMS = 10  # and 4 of them per optimizer step: the third step of an epoch has two


@pytest.fixture(autouse=True)
def _validation_loss_is_the_next_one_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def validate(state: TrainingState, data: Any, *arguments: Any) -> dict[str, float] | None:
        loss = next(data.batches)
        return None if loss is None else {"validation/loss": loss}

    monkeypatch.setattr(loop, "validate", validate)


class Directory:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.stop_at: float = math.inf
        self.looks = 0

    def stop_requested(self) -> bool:
        self.looks += 1
        return self.looks >= self.stop_at


class Loader:
    """Micro-batches of toy items; notes which items were asked for."""

    def __init__(self, sampler: Sampler[list[int]], poison: int | None) -> None:
        self.sampler, self.poison = sampler, poison
        self.seen: list[int] = []

    def __iter__(self) -> Iterator[Batch]:
        for items in self.sampler:
            self.seen += items
            yield toy.batch_of(items, self.poison)


def settings(path: Path, every: int = 1, **train: Any) -> Config:
    usual = {"effective_batch": 8, "micro_batch": 2, "max_steps": 50, "warmup_steps": 1}
    config = toy.config(**{**usual, "log_every": 1, "checkpoint_every": 1, **train})
    validation = dataclasses.replace(config.validation, every=every)
    return dataclasses.replace(config, run_dir=str(path), validation=validation)


def run_of(
    config: Config, losses: list[float | None], poison: int | None = None
) -> loop.TrainingRun:
    """A run, continued where its directory holds a checkpoint; None in `losses` is a stop."""
    torch.manual_seed(0)
    device = torch.device("cpu")
    checkpoints = Checkpoints(Path(config.run_dir) / "checkpoints", config.train.keep_best)
    sampler = TrainSampler(ITEMS, config, 0, 1)
    state = loop.start(config, toy.Toy().double(), checkpoints.load_latest(), device)
    return loop.TrainingRun(
        state,
        loop.TrainingData(sampler, Loader(sampler, poison), toy.batch_of([-1])),
        loop.ValidationData(iter(losses), Statistics((), (), ())),  # type: ignore[arg-type]
        Reporter(state, 1e6, ITEMS),
        checkpoints,
        Directory(Path(config.run_dir)),
        loop.Constants(FACTS, {}),
    )


def seen(run: loop.TrainingRun) -> list[int]:
    assert isinstance(run.data.batches, Loader)
    return run.data.batches.seen


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_run_ends_after_patience_validations_without_a_better_loss(tmp_path: Path):
    config = settings(tmp_path, patience=2)
    losses: list[float | None] = [1.0, 0.9, 0.95, 0.8, 0.85, 0.8, 0.1]
    run = run_of(config, losses)
    assert loop.fit(run) == "finished"
    assert run.state.position.global_step == 6 and run.state.position.best_metric == 0.8
    assert (tmp_path / "checkpoints/best").read_text() == "step_00000004\n"
    assert (tmp_path / "checkpoints/latest").read_text() == "step_00000006\n"
    again = run_of(config, [])
    assert loop.is_finished(config, again.state.position)  # a restart knows it too
    longer = settings(tmp_path, patience=4, max_steps=7)
    assert not loop.is_finished(longer, again.state.position)


def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path: Path):
    run = run_of(settings(tmp_path, max_steps=3), [math.nan, 0.5, math.inf])
    assert loop.fit(run) == "finished"
    assert run.state.position.best_metric == 0.5 and run.state.position.validations_since_best == 1
    assert (tmp_path / "checkpoints/best").read_text() == "step_00000002\n"


def test_epochs_are_whole_and_the_smaller_last_step_counts_its_own_cells(tmp_path: Path):
    run = run_of(settings(tmp_path, max_steps=None, decay_steps=9, max_epochs=2), [1.0] * 6)
    assert loop.fit(run) == "finished"
    position = run.state.position
    assert (position.global_step, position.epoch, position.items_consumed) == (6, 2, 0)
    assert sorted(seen(run)[:ITEMS]) == sorted(seen(run)[ITEMS:]) == list(range(ITEMS))
    assert seen(run)[:ITEMS] != seen(run)[ITEMS:]
    model = toy.Toy().double()
    state = torch.load(tmp_path / "checkpoints/step_00000005/model.pt", weights_only=True)["model"]
    last = toy.batch_of(seen(run)[-2:])
    model.load_state_dict(state)
    difference = model(last.fields, last.time, last.lead_time)[last.mask] - last.targets[last.mask]
    weights = torch.tensor([1.0, 1.0, 3.0])[None, None, :, None, None].expand_as(last.mask)
    expected = (weights[last.mask] * difference.square()).mean().item()
    found = [row["train/loss"] for row in records(tmp_path) if "train/loss" in row][-1]
    assert found == pytest.approx(expected, rel=1e-12)


def test_run_ends_after_its_hours_restarts_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now = 0.0

    def twenty_minutes_later() -> float:
        nonlocal now
        now += 1200
        return now

    monkeypatch.setattr(loop.time, "monotonic", twenty_minutes_later)
    config = settings(tmp_path, every=100, max_steps=None, decay_steps=9, max_hours=1.0)
    first = run_of(config, [0.5])
    assert isinstance(first.directory, Directory)
    first.directory.stop_at = 2
    assert loop.fit(first) == "interrupted" and first.state.position.seconds == 2400
    second = run_of(config, [0.5])
    assert loop.fit(second) == "finished"
    assert second.state.position.global_step == 3 and second.state.position.seconds == 3600
    assert second.state.position.validated_step == 3  # the end is validated though not due


def test_the_time_left_goes_by_the_first_limit_at_the_pace_since_the_start(tmp_path: Path):
    limits = {"max_steps": 200, "max_epochs": 3, "max_hours": 0.5}

    def left(now: Position, **chosen: Any) -> str | None:
        config = settings(tmp_path, **{"max_steps": None, "decay_steps": 9, **chosen})
        return time_left(config, now, Position(global_step=50, seconds=600.0), num_items=100)

    # step 61 of a run continued after 50: the ten before it took 20 s; 4 items a step
    now = Position(global_step=61, epoch=2, items_consumed=36, seconds=620.0)
    assert left(now, max_steps=limits["max_steps"]) == "0:04:38"  # 139 steps of 2 s
    assert left(now, max_epochs=limits["max_epochs"]) == "0:00:30"  # 64 items but for this step's
    assert left(now, max_hours=limits["max_hours"]) == "0:19:40"
    assert left(now, **limits) == "0:00:30"
    assert left(dataclasses.replace(now, global_step=51), **limits) is None  # nothing was timed


def test_stop_during_validation_leaves_it_to_the_continuation(tmp_path: Path):
    config = settings(tmp_path, every=2, max_steps=3)
    stopped = run_of(config, [None])
    assert loop.fit(stopped) == "interrupted" and stopped.state.position.global_step == 2
    state = json.loads((tmp_path / "checkpoints/step_00000002/state.json").read_text())
    assert state["validation_loss"] is None
    continued = run_of(config, [0.4, 0.3])
    assert loop.fit(continued) == "finished"
    assert (tmp_path / "checkpoints/best").read_text() == "step_00000003\n"
    validated = [row["step"] for row in records(tmp_path) if "validation/loss" in row]
    assert validated == [2, 3]


def test_a_bad_item_costs_its_own_step_alone_and_its_time_is_logged(tmp_path: Path):
    run = run_of(settings(tmp_path, max_steps=3), [1.0] * 3, poison=4)
    assert loop.fit(run) == "finished"
    assert run.state.position.bad_steps == 1
    (named,) = [row for row in records(tmp_path) if "skipped_step_times" in row]
    assert "1970-01-01T04" in named["skipped_step_times"]
    losses = {row["step"]: row["train/loss"] for row in records(tmp_path) if "train/loss" in row}
    assert [step for step, loss in losses.items() if loss is None] == [named["step"]]


def test_a_step_without_a_valid_cell_is_no_bad_step(tmp_path: Path):
    """Of sparse targets any number in a row may come."""
    run = run_of(settings(tmp_path, max_steps=3, max_bad_steps=2), [1.0] * 3)
    step = 0

    def empty_from_the_second_step(items: list[int], poison: int | None) -> Batch:
        return batch_of(items if step == 0 else [-1] * len(items), poison)

    def count() -> None:
        nonlocal step
        step += 1

    run.after_each_step, batch_of = count, toy.batch_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "batch_of", empty_from_the_second_step)
        assert loop.fit(run) == "finished"
    position = run.state.position
    assert (position.bad_steps, position.bad_steps_in_a_row, position.empty_steps) == (0, 0, 2)
    assert not [row for row in records(tmp_path) if "skipped_step_times" in row]
    assert (tmp_path / "checkpoints/latest").read_text() == "step_00000003\n"


def test_flops_and_their_share_of_the_peak_follow_from_the_items(tmp_path: Path):
    config = settings(tmp_path, max_steps=2)
    plan = dataclasses.replace(config.plan, peak_tflops=0.5)
    loop.fit(run_of(dataclasses.replace(config, plan=plan), [1.0, 1.0]))
    for row in (row for row in records(tmp_path) if "tflops" in row):
        assert row["tflops"] == pytest.approx(row["items_per_second"] * 1e-6)
        assert row["peak_share"] == pytest.approx(row["tflops"] / 0.5)


def test_too_many_bad_steps_in_a_row_end_the_run(tmp_path: Path):
    config = settings(tmp_path, max_bad_steps=3)
    run = run_of(config, [1.0] * 50)
    with torch.no_grad():
        next(run.state.model.parameters()).fill_(math.inf)
    with pytest.raises(AqnetError, match="3 optimizer steps in a row"):
        loop.fit(run)
    assert run.state.position.global_step == 3


def test_a_run_whose_every_step_was_skipped_is_not_finished(tmp_path: Path):
    run = run_of(settings(tmp_path, max_steps=3, max_bad_steps=10), [1.0] * 3)
    with torch.no_grad():
        next(run.state.model.parameters()).fill_(math.inf)
    with pytest.raises(AqnetError, match="3 of 3 steps were skipped"):
        loop.fit(run)


def test_a_run_that_fails_ends_what_it_writes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The lock on the directory is given back after that, so no other run may write there yet."""
    write = Checkpoints._write

    def slowly(*arguments: Any) -> None:
        time.sleep(0.3)
        write(*arguments)

    monkeypatch.setattr(Checkpoints, "_write", slowly)
    run = run_of(settings(tmp_path, every=100), [])

    def fail_in_second_step() -> None:
        if run.state.position.global_step == 2:
            raise OSError("2013.zarr: gone")

    run.after_each_step = fail_in_second_step
    with pytest.raises(OSError, match="gone"):
        loop.fit(run)
    assert (tmp_path / "checkpoints/latest").read_text() == "step_00000001\n"


@pytest.mark.parametrize("weather", [(), ("so2",)])
def test_maps_of_the_examples_are_drawn_seldom_and_reach_tensorboard(
    tmp_path: Path, weather: tuple[str, ...]
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = settings(tmp_path, max_steps=9)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, weather=weather))
    run = run_of(config, [1.0] * 9)
    numbers = Statistics(("pm25", "so2", "co"), (40.0, 5.0, 300.0), (20.0, 4.0, 100.0))
    units = dict.fromkeys(numbers.names, "ug m-3")
    examples = Examples(toy.batch_of([3, 9]), numbers, units, south_first=False)
    run.validation = dataclasses.replace(run.validation, examples=examples)
    loop.fit(run)
    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    names = board.Tags()["images"]
    hours = ("1970-01-01T03", "1970-01-01T09")
    given = ", given analysed weather to come" if weather else ""
    pollutants = ("pm25", "so2", "co")
    assert set(names) == {f"maps/{name}/{hour}{given}" for name in pollutants for hour in hours}
    assert [image.step for image in board.Images(names[0])] == [1, 2, 3, 4, 5, 7, 9]


def come_apart() -> None:
    torch.manual_seed(0)
    model = toy.Toy()
    device = torch.device("cpu")
    optimizer = torch.optim.SGD(model.parameters())
    state = TrainingState(toy.config(), model, model, optimizer, device)
    check_ranks_agree(state, 4)
    with torch.no_grad():
        if distributed.rank() == 1:
            model.second.weight[0, 0] = torch.nextafter(model.second.weight[0, 0], torch.tensor(9))
    said = r"step 5: the parameters of rank 1 .* first in second\.weight;"
    with pytest.raises(AqnetError, match=said), distributed.explained():
        check_ranks_agree(state, 5)
        distributed.barrier()  # where the other ranks learn of it


def test_ranks_that_come_apart_by_one_bit_are_named_with_the_tensor():
    on_two(come_apart)
