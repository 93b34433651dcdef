"""A checkpoint is refused, by name, where data, config or weights are not its own."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from aqnet import config as configs
from aqnet.batch import Batch
from aqnet.checkpoint.files import Loaded
from aqnet.errors import AqnetError
from aqnet.evaluation import checkpoint_forecast
from tests.evaluation.test_scorer import CONFIG, FIRST, GRID, MASK, SHAPE


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
    checkpoint_forecast.check_grid(loaded({}), GRID, "stores")
    shifted = type(GRID)(GRID.lat, GRID.lon + 0.5, None, GRID.mask)
    with pytest.raises(AqnetError, match=r"grid with lon \[100.0, 103.0\].*\[100.5, 103.5\]"):
        checkpoint_forecast.check_grid(loaded({}), shifted, "stores")


@pytest.mark.parametrize("name", ["mask", "elevation"])
def test_same_corners_with_another_mask_or_elevation_are_refused(name: str):
    grid = replace(GRID, elevation=torch.zeros(GRID.shape))
    before = replace(loaded({}), grid=grid.to_dict())
    checkpoint_forecast.check_grid(before, grid, "stores")
    other = {"mask": GRID.mask.flip(0), "elevation": torch.full(GRID.shape, 5.0)}[name]
    with pytest.raises(AqnetError, match=f"same corners with another {name} than"):
        checkpoint_forecast.check_grid(before, replace(grid, **{name: other}), "stores")


@pytest.mark.parametrize("override", ["data.targets=[pm25]", "data.lead_times=[12]"])
def test_other_targets_or_lead_times_are_refused(override: str):
    with pytest.raises(AqnetError, match=override.partition("=")[0]):
        checkpoint_forecast.config_of(loaded({}), None, [override])


def test_another_model_section_is_refused_and_another_place_is_not():
    with pytest.raises(AqnetError, match="another `model` section"):
        checkpoint_forecast.config_of(loaded({}), None, ["model.depth=2"])
    assert (
        checkpoint_forecast.config_of(loaded({}), None, ["data.stores=/other"]).data.stores
        == "/other"
    )


def batch(fields: torch.Tensor) -> Batch:
    time = torch.tensor([FIRST, FIRST + 6])
    return Batch(fields, time, *(torch.zeros(1) for _ in range(3)))


def test_weights_of_the_moving_average_are_used_and_other_shapes_refused():
    fields, place = torch.ones(2, 1, *SHAPE), (CONFIG, GRID, torch.device("cpu"))
    model, ema = {"weight": torch.full((3,), 2.0)}, {"weight": torch.full((3,), 5.0)}
    forecast = checkpoint_forecast.forecaster(Scaled(), loaded(model, ema), *place)
    assert torch.equal(forecast(batch(fields)).mean, fields * 15)
    with pytest.raises(AqnetError, match=r"weight is \(4,\).*\(3,\)"):
        checkpoint_forecast.forecaster(Scaled(), loaded({"weight": torch.ones(4)}), *place)


def test_forecast_that_is_no_number_in_the_domain_is_refused_and_not_left_out():
    place = CONFIG, GRID, torch.device("cpu")
    forecast = checkpoint_forecast.forecaster(Scaled(), loaded({"weight": torch.ones(3)}), *place)
    fields = torch.ones(2, 1, *SHAPE)
    fields[..., ~MASK] = torch.nan
    assert torch.equal(forecast(batch(fields)).mean.isfinite(), fields.isfinite())
    fields[1, 0, 1, 2] = torch.inf
    with pytest.raises(AqnetError, match="forecast from 2018-02-27T06 is no number"):
        forecast(batch(fields))


def test_config_of_another_version_opens_and_what_it_holds_is_named(
    capsys: pytest.CaptureFixture[str],
):
    old = loaded({})
    tree = old.state["config"]
    tree["train"] |= {"gone": 1, "loss": "mae", "learning_rate": -1.0}
    tree["model"]["magic"] = True
    config = checkpoint_forecast.config_of(old, None, ["data.stores=/other"])
    assert config.data.stores == "/other" and config.model == CONFIG.model
    assert config.train.loss == "mse" and config.train.learning_rate == -1.0
    lines = capsys.readouterr().out.splitlines()
    for line, words in zip(
        lines,
        [
            "model.magic is no key of this version; it is left out",
            "train.loss is 'mae'; expected mse or huber (did you mean mse?); it is left out",
            "train.gone is no key of this version; it is left out",
            "train.learning_rate must be positive, found -1.0; it is kept",
        ],
        strict=True,
    ):
        assert "step_00000001 (state.json): " + words in line
    with pytest.raises(AqnetError, match=r"unknown key 'train\.gone'"):
        checkpoint_forecast.config_of(old, None, ["train.gone=2"])
    with pytest.raises(AqnetError, match=r"train\.max_steps must be positive"):
        checkpoint_forecast.config_of(old, None, ["train.max_steps=-2"])


def test_model_that_this_version_cannot_read_is_refused():
    old = loaded({})
    old.state["config"]["model"]["scan"] = "spiral"
    with pytest.raises(AqnetError, match=r"state\.json\): model\.scan is 'spiral'"):
        checkpoint_forecast.config_of(old, None, [])
