"""What is not finite, not there or far too large ends in the documented behaviour, on all ranks."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from aqnet import distributed
from aqnet.batch import Batch
from aqnet.config import Config
from aqnet.errors import AqnetError
from aqnet.training.loss import loss_sums
from aqnet.training.optimizer import make_optimizer
from aqnet.training.position import Position, check_learned
from aqnet.training.step import TrainingState, optimizer_step
from tests.conftest import run
from tests.distributed.test_distributed import on_two
from tests.training import toy

SETTINGS = {"effective_batch": 8, "micro_batch": 4}


def state_of(config: Config) -> TrainingState:
    torch.manual_seed(0)
    model = toy.Toy().double()
    parallel = distributed.wrap(model)
    optimizer = make_optimizer(model, config.train)
    return TrainingState(config, model, parallel, optimizer, torch.device("cpu"))


def spoiled(what: str) -> Batch:
    """A batch in which something is not as it should be."""
    batch = toy.batch_of([3, 9])
    fields, targets, mask = (part.clone() for part in (batch.fields, batch.targets, batch.mask))
    if what == "NaN in inputs":  # missing: not a fault
        fields[:, 0] = math.nan
    elif what == "infinity in inputs":
        fields[0, 0, 0, 0] = math.inf
    elif what == "NaN in targets":
        targets[mask] = math.nan
    elif what == "infinity in targets":
        targets[mask] = math.inf
    elif what == "overflow":
        targets[mask] = 1e200
    elif what == "all masked":
        mask[:] = False
    elif what == "one cell":
        at = mask.nonzero()[0].tolist()
        mask[:] = False
        mask[tuple(at)] = True
    return batch._replace(fields=fields, targets=targets, mask=mask)


OUTCOMES = {
    "NaN in inputs": "updated",
    "infinity in inputs": "skipped or finite",
    "NaN in targets": "skipped",
    "infinity in targets": "skipped",
    "overflow": "skipped",
    "all masked": "empty",
    "one cell": "updated",
    "NaN in weights": "skipped",
}


def one_step(what: str) -> None:
    """Rank 1 has the spoiled batch; both do the same with it and keep equal, finite weights."""
    state = state_of(toy.config(**SETTINGS))
    if what == "NaN in weights":
        with torch.no_grad():
            state.model.second.weight[0, 0] = math.nan
    before = [value.detach().clone() for value in state.model.parameters()]
    whole = what in ("all masked", "one cell")
    spoil = distributed.rank() == 1 or whole
    batch = spoiled(what) if spoil else toy.batch_of([3, 9])
    if what == "one cell" and distributed.rank() == 0:
        batch = spoiled("all masked")
    result = optimizer_step(state, iter([batch]), 1, 0, [0.0])
    after = [value.detach() for value in state.model.parameters()]
    expected = OUTCOMES[what]
    assert expected == "skipped or finite" or result.updated == (expected == "updated")
    assert bool(result.cells.any()) == (expected != "empty")
    changed = any(not torch.equal(*pair) for pair in zip(before, after, strict=True))
    if what != "NaN in weights":
        assert changed == result.updated
        assert all(value.isfinite().all() for value in after)
    assert distributed.gather_objects(result.updated) in (None, [result.updated] * 2)


def every_outcome() -> None:
    for what in OUTCOMES:
        one_step(what)


def test_a_spoiled_batch_of_one_rank_does_the_same_on_both():
    on_two(every_outcome)


def test_overflow_in_half_precision_is_not_counted_as_a_loss():
    """A forecast beyond bfloat16's range is infinite, and so is the sum: the step is skipped."""
    batch = toy.batch_of([3])
    forecast = torch.full((1, *toy.SHAPE), 3e38, dtype=torch.bfloat16) * 10
    errors, cells = loss_sums(forecast, batch, toy.config(**SETTINGS))
    assert not errors.sum().isfinite() and int(cells.sum()) > 0


def position(**values: Any) -> Position:
    return Position(**{"global_step": 24, "best_metric": 0.5, "last_metric": 0.6, **values})


@pytest.mark.parametrize(
    "values",
    [
        {"bad_steps": 24},
        {"empty_steps": 24},
        {"bad_steps": 23, "best_metric": None, "last_metric": None},
        {"bad_steps": 0, "best_metric": None, "last_metric": None},
    ],
    ids=str,
)
def test_a_run_that_learned_nothing_is_no_success(values: dict[str, Any]):
    with pytest.raises(AqnetError, match="ended without a usable model"):
        check_learned(toy.config(**SETTINGS), position(**values))


@pytest.mark.parametrize(
    "values",
    [
        {"last_metric": None},
        {"last_metric": 1e6},
        {"last_metric": 1e6, "best_metric": 1e6},
        {"bad_steps": 13},
    ],
    ids=str,
)
def test_a_run_whose_model_is_doubtful_says_so(values: dict[str, Any]):
    assert check_learned(toy.config(**SETTINGS), position(**values)) is not None


@pytest.mark.parametrize("weight", [0.01, 1.0, 100.0])
def test_a_doubtful_loss_is_measured_by_the_weights_it_was_made_with(weight: float):
    weights = dict.fromkeys(("pm25", "so2", "co"), weight)
    config = toy.config(**SETTINGS, target_weights=weights)
    for error, doubtful in ((0.5, False), (9.0, False), (11.0, True)):
        loss = weight * error
        doubt = check_learned(config, position(best_metric=loss, last_metric=loss))
        assert (doubt is not None) == doubtful
        assert doubt is None or doubt.endswith(f"mean about {weight:g}")


@pytest.mark.parametrize("values", [{}, {"empty_steps": 20}, {"bad_steps": 2}], ids=str)
def test_sparse_targets_and_a_few_bad_steps_are_no_doubt(values: dict[str, Any]):
    assert check_learned(toy.config(**SETTINGS), position(**values)) is None


def test_a_rate_far_too_high_ends_with_advice_that_works(tiny: dict[str, Any], tmp_path: Path):
    """No checkpoint is written while steps are skipped; the advice starts from a good one."""
    tree = {**tiny, "run_dir": str(tmp_path / "first")}
    tree["train"] = {**tiny["train"], "max_bad_steps": 3, "checkpoint_every": 1}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    run("train.py", "--config", str(config), "train.max_steps=1")
    for shard in (tmp_path / "first/checkpoints").iterdir():
        assert shard.name in ("step_00000001", "latest", "best")
    high = ["train.learning_rate=1e30", "train.clip_norm=1e30", "train.max_steps=40"]
    refused = run("train.py", "--config", str(config), *high, status=2)
    assert "train.learning_rate" in refused.stderr and "choose another run_dir" in refused.stderr
    broken = run("train.py", "--config", str(config), *high, f"run_dir={tmp_path}/second", status=2)
    assert broken.stderr.count("error: ") == 1 and "train.init_from" in broken.stderr
    assert (tmp_path / "second/status").read_text() == "failed\n"
    for state in (tmp_path / "second/checkpoints").glob("step_*/state.json"):
        assert json.loads(state.read_bytes())["bad_steps_in_a_row"] == 0
    advice = [f"train.init_from={tmp_path}/first", "train.init_statistics=checkpoint"]
    run("train.py", "--config", str(config), *advice, f"run_dir={tmp_path}/third")
    assert (tmp_path / "third/status").read_text() == "finished\n"
