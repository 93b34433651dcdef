"""Quantiles of the error: the head alone, and in the model beside an unchanged mean."""

from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import nn

from aqnet.batch import Forecast
from aqnet.model.climax import ClimaX
from aqnet.model.quantiles import FIRST_STD, TRAINED, QuantileHead, a_few, stretched
from tests.model.builders import grid, inputs, model_of, same

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def tokens() -> torch.Tensor:
    return torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("levels", [LEVELS, (0.1, 0.9), (0.001, 0.0011, 0.5, 0.9999)])
def test_starts_with_the_quantiles_of_a_gaussian_everywhere(levels: tuple[float, ...]):
    values = QuantileHead(16, 3, levels)(tokens())
    assert values.shape == (2, 7, 3, len(levels))
    expected = torch.tensor([FIRST_STD * NormalDist().inv_cdf(level) for level in levels])
    torch.testing.assert_close(values, expected.expand_as(values), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("levels", [LEVELS, (0.1, 0.9), (0.2, 0.4, 0.6, 0.8)])
@pytest.mark.parametrize("autocast", [False, True])
def test_quantiles_increase_whatever_the_weights(levels: tuple[float, ...], autocast: bool):
    torch.manual_seed(1)
    head = QuantileHead(16, 3, levels)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        values = head(3 * tokens())
    assert values.dtype == torch.float32
    assert (values.diff(dim=-1) > 0).all()
    assert values.std() > 1.0


def test_every_parameter_learns():
    head = QuantileHead(16, 3, LEVELS)
    nn.init.normal_(head.out.weight, std=0.1)
    head(tokens()).square().sum().backward()
    assert all((value.grad != 0).any() for value in head.parameters())


def test_stretch_moves_wide_distributions_more_and_keeps_them_increasing():
    narrow = torch.tensor([-1.0, 0.0, 1.0])
    quantiles = torch.stack([narrow, 10 * narrow], -1).view(1, 3, 1, 1, 1, 2)
    stretch = torch.tensor([-0.1, 0.0, 0.2]).view(3, 1, 1)
    moved = stretched(quantiles, stretch).view(3, 2)
    torch.testing.assert_close(moved[:, 0], torch.tensor([-1.2, 0.0, 1.4]))
    torch.testing.assert_close(moved[:, 1], torch.tensor([-12.0, 0.0, 14.0]))
    crossing = stretched(quantiles, torch.tensor([0.0, 0.8, 0.0]).view(3, 1, 1)).view(3, 2)
    torch.testing.assert_close(crossing[:, 0], torch.tensor([-1.0, 1.0, 1.6]))


SMALL = (0.1, 0.5, 0.9)
KINDS: list[dict[str, Any]] = [
    {},
    {"lead_time_mode": "conditioned"},
    {"attention": "window"},
    {"attention": "window", "lead_time_mode": "conditioned", "tokens": "all"},
]


def forecast_of(model: ClimaX, where: tuple[int, int] = (8, 12)) -> Forecast:
    torch.manual_seed(7)  # of dropout, and of the tokens that are trained
    found = model(*inputs(*where))
    assert isinstance(found, Forecast)
    return found


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_mean_and_its_gradients_are_bit_for_bit_those_without_quantiles(
    settings: dict[str, Any], training: bool
):
    plain, ours = (model_of(random=False, quantiles=levels, **settings) for levels in ([], SMALL))
    for name, value in plain.named_parameters():
        assert torch.equal(value, ours.get_parameter(name))
    for model in (plain, ours):
        model.train(training)
    torch.manual_seed(7)
    mean = plain(*inputs())
    found = forecast_of(ours)
    torch.testing.assert_close(found.mean, mean, atol=0, rtol=0, equal_nan=True)
    assert found.quantiles is not None
    mean.nan_to_num().square().sum().backward()
    (found.mean.nan_to_num().square().sum() + found.quantiles.nan_to_num().sum()).backward()
    for name, value in plain.named_parameters():
        gradient = ours.get_parameter(name).grad
        assert gradient is not None and value.grad is not None
        assert torch.equal(gradient, value.grad), name
    assert ours.quantile_head.out.bias.grad.any()


@pytest.mark.parametrize("settings", KINDS)
def test_quantiles_increase_and_are_nan_only_outside_the_tokens(settings: dict[str, Any]):
    model = model_of(quantiles=SMALL, **settings)
    mean, quantiles, cells = forecast_of(model)
    assert quantiles is not None and cells is None
    assert quantiles.shape == (2, 3, 4, 2, 8, 12)
    assert torch.equal(quantiles.isnan(), mean.isnan().unsqueeze(1).expand_as(quantiles))
    assert (quantiles.diff(dim=1).nan_to_num(1.0) > 0).all()
    middle = (quantiles[:, 1] - mean)[~mean.isnan()]
    assert middle.std() > 0.1  # each cell has errors of its own


@pytest.mark.parametrize("settings", KINDS)
def test_quantiles_of_a_few_cells_are_those_of_the_whole(settings: dict[str, Any]):
    model = model_of(quantiles=SMALL, drop_rate=0.0, drop_path=0.0, **settings)
    whole = forecast_of(model).quantiles
    _, few, cells = forecast_of(model.train())
    assert whole is not None and few is not None and cells is not None
    assert 0 < len(cells) <= 8 * 12 / 4
    assert same(whole.flatten(-2)[..., cells], few)
    assert not few.isnan().any()


def test_every_token_is_trained_in_its_turn():
    torch.manual_seed(0)
    seen = torch.cat([a_few(21, torch.device("cpu")) for _ in range(100)])
    assert set(seen.tolist()) == set(range(21))
    assert len(a_few(21, torch.device("cpu"))) == -(-21 // TRAINED)


def test_cells_beyond_a_padded_grid_are_the_nearest_in_it():
    model = model_of(grid(7, 11), quantiles=SMALL).train()
    assert int(model.token_cells.max()) < 7 * 11
    assert not forecast_of(model, (7, 11)).quantiles.isnan().any()
    assert forecast_of(model.eval(), (7, 11)).quantiles.shape[-2:] == (7, 11)


def test_only_forecasts_are_stretched_and_not_what_is_trained():
    model = model_of(quantiles=SMALL, drop_rate=0.0, drop_path=0.0)
    raw, few = forecast_of(model).quantiles, forecast_of(model.train()).quantiles
    model.stretch += torch.tensor([-0.125, 0.0, 0.25])[:, None, None]
    assert same(forecast_of(model).quantiles, few)
    moved = forecast_of(model.eval()).quantiles
    width = raw[:, 2] - raw[:, 0]
    assert same(moved[:, 0], raw[:, 0] - 0.125 * width)
    assert same(moved[:, 2], raw[:, 2] + 0.25 * width)
    assert "stretch" in model.state_dict()


@pytest.mark.parametrize("training", [False, True])
def test_quantiles_compile_in_one_graph(training: bool):
    model = model_of(quantiles=SMALL, depth=1).train(training)
    expected = forecast_of(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.manual_seed(7)
    found = compiled(*inputs())
    assert found.quantiles.shape == expected.quantiles.shape
    if not training:  # compiled dropout draws other numbers
        assert same(found.quantiles, expected.quantiles)


def test_quantiles_keep_their_order_in_bf16():
    model = model_of(quantiles=SMALL).float()
    fields, *rest = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(fields.float(), *rest)
    assert found.quantiles.dtype == torch.float32
    assert (found.quantiles.diff(dim=1).nan_to_num(1.0) > 0).all()
    whole = model(fields.float(), *rest).quantiles
    assert (
        found.quantiles - whole
    ).nan_to_num().abs().max() < 0.05 * whole.nan_to_num().abs().max()
