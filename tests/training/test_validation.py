"""Validation against a plain loop over items, targets and cells."""

import math

import pytest
import torch
from torch import nn

from aqnet.batch import Batch
from aqnet.errors import AqnetError
from aqnet.training.step import TrainingState
from aqnet.training.validation import ValidationData, validate
from tests.evaluation.test_scorer import CONFIG, LEADS, MASK, SHAPE, STATISTICS, TARGETS

STD = (30.0, 10.0)
WEIGHTS = torch.tensor([[1.0, 2.0], [0.5, 1.5]])


def batch(seed: int, items: int) -> Batch:
    torch.manual_seed(seed)
    fields, targets = torch.randn(items, 3, *SHAPE), torch.randn(items, 2, 2, *SHAPE)
    fields[0, 0, 0, 0] = targets[0, 0, 0, 1, 2] = torch.nan
    targets[:, 1, 1] = torch.nan  # NO2 at 24 h is never there
    mask = targets.isfinite() & MASK
    return Batch(fields, torch.arange(items), torch.tensor([LEADS] * items), targets, mask)


def forecast(batch: Batch) -> torch.Tensor:
    return batch.targets.nan_to_num() * 0.5 + 0.1


BATCHES = [batch(0, 3), batch(1, 2)]


class Model(nn.Module):
    """Gives the forecast above of the batch with as many items."""

    def forward(self, fields: torch.Tensor, time: torch.Tensor, lead: torch.Tensor) -> torch.Tensor:
        (batch,) = [part for part in BATCHES if len(part.time) == len(fields)]
        return forecast(batch)


def validated(batches: list[Batch], stop: bool = False) -> dict[str, float] | None:
    model = Model()
    state = TrainingState(CONFIG, model, model, None, torch.device("cpu"))  # type: ignore[arg-type]
    state.weights = WEIGHTS
    data = ValidationData(batches, STATISTICS)  # type: ignore[arg-type]
    return validate(state, data, lambda: stop)


def test_scalars_agree_with_a_loop_over_cells():
    found = validated(BATCHES)
    assert found is not None
    loss, cells = 0.0, 0
    for row, lead in enumerate(LEADS):
        for column, name in enumerate(TARGETS):
            squares, count, ours, theirs = 0.0, 0, 0.0, 0.0
            for part in BATCHES:
                values = forecast(part)
                for at in torch.nonzero(part.mask[:, row, column]).tolist():
                    item, y, x = at
                    truth = float(part.targets[item, row, column, y, x])
                    error = (float(values[item, row, column, y, x]) - truth) ** 2
                    squares, count = squares + error, count + 1
                    present = float(part.fields[item, column, y, x])
                    if math.isfinite(present):
                        ours, theirs = ours + error, theirs + (present - truth) ** 2
            loss, cells = loss + float(WEIGHTS[row, column]) * squares, cells + count
            key = f"{name}/{lead}h"
            if count == 0:
                assert f"validation/rmse/{key}" not in found
                assert f"validation/skill_persistence/{key}" not in found
                continue
            rmse = math.sqrt(squares / count) * STD[column]
            assert found[f"validation/rmse/{key}"] == pytest.approx(rmse, rel=1e-5)
            skill = 1 - ours / theirs
            assert found[f"validation/skill_persistence/{key}"] == pytest.approx(skill, rel=1e-4)
    assert found["validation/loss"] == pytest.approx(loss / cells, rel=1e-5)


def test_a_stop_abandons_it_and_nothing_to_validate_is_refused():
    assert validated(BATCHES, stop=True) is None
    empty = BATCHES[0]._replace(mask=torch.zeros_like(BATCHES[0].mask))
    with pytest.raises(AqnetError, match="no target has a value"):
        validated([empty])


def test_a_validation_that_is_not_finite_names_what_was_not(capsys: pytest.CaptureFixture[str]):
    fields, targets = BATCHES[1].fields.clone(), BATCHES[1].targets.clone()
    fields[0, 2, 0, 0] = math.inf
    targets[1, 1, 0] = math.nan
    found = validated([BATCHES[0], BATCHES[1]._replace(fields=fields, targets=targets)])
    assert found is not None and math.isnan(found["validation/loss"])
    assert capsys.readouterr().err.splitlines() == [
        "warning: validation is not finite, first at 1970-01-01T00, 1970-01-01T01: not finite were "
        f"0 of 4 forecasts (), 1 of 4 targets ({TARGETS[0]} {LEADS[1]}h), "
        f"1 of 3 inputs ({CONFIG.input_variables[2]})"
    ]
