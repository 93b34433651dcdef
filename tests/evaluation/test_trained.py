"""A checkpoint is refused, by name, where data, config or weights are not its own."""

from pathlib import Path

import pytest
import torch
from torch import nn

from aqnet import config as configs
from aqnet.batch import Batch
from aqnet.checkpoint_files import Loaded
from aqnet.errors import AqnetError
from aqnet.evaluation import trained
from tests.evaluation.test_scorer import CONFIG, GRID


def loaded(model: dict[str, torch.Tensor], ema: dict[str, torch.Tensor] | None = None) -> Loaded:
    state = {"config": configs.to_dict(CONFIG), "grid": GRID.summary()}
    return Loaded(Path("step_00000001"), model, ema, {}, state)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, fields: torch.Tensor, time: torch.Tensor, lead: torch.Tensor) -> torch.Tensor:
        return fields * self.weight.sum()


def test_grid_of_the_same_shape_elsewhere_is_refused():
    trained.check_grid(loaded({}), GRID, "stores")
    shifted = type(GRID)(GRID.lat, GRID.lon + 0.5, None, GRID.mask)
    with pytest.raises(AqnetError, match=r"grid with lon \[100.0, 103.0\].*\[100.5, 103.5\]"):
        trained.check_grid(loaded({}), shifted, "stores")


@pytest.mark.parametrize("override", ["data.targets=[pm25]", "data.lead_times=[12]"])
def test_other_targets_or_lead_times_are_refused(override: str):
    with pytest.raises(AqnetError, match=override.partition("=")[0]):
        trained.config_of(loaded({}), None, [override])


def test_another_model_section_is_refused_and_another_place_is_not():
    with pytest.raises(AqnetError, match="another `model` section"):
        trained.config_of(loaded({}), None, ["model.depth=2"])
    assert trained.config_of(loaded({}), None, ["data.stores=/other"]).data.stores == "/other"


def test_weights_of_the_moving_average_are_used_and_other_shapes_refused():
    fields = torch.ones(1, 2)
    batch = Batch(fields, *(torch.zeros(1) for _ in range(4)))
    model, ema = {"weight": torch.full((3,), 2.0)}, {"weight": torch.full((3,), 5.0)}
    cpu = torch.device("cpu")
    forecast = trained.forecaster(Scaled(), loaded(model, ema), CONFIG, cpu)
    assert torch.equal(forecast(batch), fields * 15)
    with pytest.raises(AqnetError, match=r"weight is \(4,\).*\(3,\)"):
        trained.forecaster(Scaled(), loaded({"weight": torch.ones(4)}), CONFIG, cpu)
