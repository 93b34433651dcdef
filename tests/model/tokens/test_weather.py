"""Weather to come among the inputs: who sees it, in training and after."""

from typing import Any

import pytest
import torch
from torch import Tensor

from aqnet.errors import AqnetError
from tests.model.builders import config_of, grid, inputs, model_of, same

WEATHER = {"weather": ["temp", "u", "v"], "weather_hours": [48, 12, 24, 96]}
HOURS = (0, 12, 24, 48, 96)


def with_weather(seed: int = 3) -> tuple[Tensor, ...]:
    """`inputs` and three variables at four later hours, some cells missing."""
    fields, *times = inputs()
    generator = torch.Generator().manual_seed(seed)
    later = 0.5 * torch.randn(2, 12, 8, 12, generator=generator, dtype=torch.float64)
    later[torch.rand(2, 12, 8, 12, generator=generator) < 0.1] = torch.nan
    return torch.cat([fields, later], dim=1), *times


def of_hours(*hours: int) -> list[int]:
    """Channels of weather to come at these hours."""
    return [8 + 3 * WEATHER["weather_hours"].index(hour) + n for hour in hours for n in range(3)]


@pytest.mark.parametrize("attention", ["global", "window"])
def test_a_conditioned_pass_sees_weather_up_to_its_own_lead_time(attention: str):
    model = model_of(more=WEATHER, lead_time_mode="conditioned", attention=attention)
    fields, *times = with_weather()
    other = fields.clone()
    other[:, of_hours(48, 96)] = with_weather(seed=4)[0][:, of_hours(48, 96)]
    before, after = (model(values, *times) for values in (fields, other))
    assert same(before[:, :2], after[:, :2])
    for lead in (2, 3):
        assert not same(before[:, lead], after[:, lead], 1e-3)


def test_a_joint_forecast_sees_all_weather():
    model = model_of(more=WEATHER)
    fields, *times = with_weather()
    other = fields.clone()
    other[:, of_hours(96)] = with_weather(seed=4)[0][:, of_hours(96)]
    assert not same(model(fields, *times)[:, 0], model(other, *times)[:, 0], 1e-3)


@pytest.mark.parametrize("mode", ["joint", "conditioned"])
def test_samples_that_train_without_weather_forecast_as_where_it_is_missing(mode: str):
    model = model_of(more=WEATHER, lead_time_mode=mode, drop_rate=0.0, drop_path=0.0)
    fields, *times = with_weather()
    without = fields.clone()
    without[:, 8:] = torch.nan
    with_it, none = model(fields, *times), model(without, *times)
    assert not same(with_it, none, 1e-3)
    model.train()
    for rate, expected in ((1.0, none), (0.0, with_it)):
        model.weather.dropout = rate
        assert same(model(fields, *times), expected)
    model.weather.dropout = 0.5
    torch.manual_seed(0)
    kept = {tuple(same(model(fields, *times)[i], with_it[i]) for i in (0, 1)) for _ in range(20)}
    assert kept == {(False, False), (False, True), (True, False), (True, True)}
    model.eval()
    assert same(model(fields, *times), with_it)


def test_without_weather_to_come_the_wind_of_the_input_time_is_held():
    plain, informed = model_of(), model_of(more=WEATHER)
    fields, *_ = with_weather()
    fields[:, 8:] = torch.nan
    own = torch.arange(4).expand(2, 4)
    held, several = plain.bring(fields[:, :8], own), informed.bring(fields, own)
    assert held.displacement is not None and several.displacement is not None
    # the same paths, but for the order of long and short steps
    difference = (held.displacement - several.displacement).abs().max()
    assert difference < 0.05 * held.displacement.abs().max()


def test_winds_to_come_bend_the_paths():
    model = model_of(more=WEATHER)
    fields, *_ = with_weather()
    own = torch.arange(4).expand(2, 4)
    before = model.bring(fields, own).displacement
    fields[:, of_hours(48)] *= -1.0
    after = model.bring(fields, own).displacement
    assert before is not None and after is not None
    assert same(before[:, :, :2], after[:, :, :2])  # 12 and 24 h
    assert not same(before[:, :, 2:], after[:, :, 2:], 1e-2)


@pytest.mark.parametrize("mode", ["joint", "conditioned"])
def test_with_weather_to_come_the_whole_compiles(mode: str):
    model = model_of(more=WEATHER, lead_time_mode=mode, depth=1)
    args = with_weather()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert same(compiled(*args), model(*args))


@pytest.mark.slow
def test_what_is_left_out_in_training_compiles_and_differs_from_call_to_call():
    model = model_of(more=WEATHER, drop_rate=0.0, drop_path=0.0, depth=1).train()
    model.weather.dropout = 0.5
    args = with_weather()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    forecasts = [compiled(*args).detach() for _ in range(12)]
    model.weather.dropout = 0.0
    whole = model(*args).detach()
    kept = {tuple(same(each[i], whole[i]) for i in (0, 1)) for each in forecasts}
    assert len(kept) > 1 and all(each.isfinite().any() for each in forecasts)


def test_a_conditioned_pass_needs_the_wind_at_its_own_lead_time():
    data: dict[str, Any] = {"weather": ["u", "v"], "weather_hours": [12, 36, 48, 96]}
    with pytest.raises(AqnetError, match=r"data\.weather_hours: 24 h"):
        config_of(data, lead_time_mode="conditioned")
    assert config_of(data).wind_hours == (0, 12, 36, 48, 96)
    assert config_of(data, lead_time_mode="conditioned", transport="off")
    assert config_of({**data, "weather": ["u"]}, lead_time_mode="conditioned").wind_hours == (0,)
    assert config_of(WEATHER).wind_hours == HOURS


def test_missing_weather_is_finite_everywhere():
    model = model_of(more=WEATHER).train()
    fields, *times = with_weather()
    out = model(torch.full_like(fields, torch.nan), *times)[..., grid().mask]
    assert out.isfinite().all()
