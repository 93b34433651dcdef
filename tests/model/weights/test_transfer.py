"""Weights of one model as the start of another: by name, and every difference is said."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from aqnet import config as configs
from aqnet.batch import Statistics
from aqnet.checkpoint.files import Loaded
from aqnet.config import Config
from aqnet.errors import AqnetError
from aqnet.model.climax import ClimaX
from aqnet.model.weights.transfer import (
    TERMS,
    Report,
    resized_positions,
    starting_statistics,
    take_weights,
)
from tests.model.builders import (
    LEADS,
    STATISTICS,
    TARGETS,
    VARIABLES,
    config_of,
    grid,
    inputs,
    same,
)

MODES = [
    {},
    {"lead_time_mode": "conditioned", "predict": "value", "calendar": "day_and_year"},
    {"attention": "window", "decoder_depth": 0, "calendar": "off"},
]


def changed(config: Config, **data: Any) -> Config:
    tree = configs.to_dict(config)
    tree["data"] |= data
    return configs.from_dict(tree, "test")


def made(config: Config, seed: int) -> ClimaX:
    """A model whose parameters are all random."""
    torch.manual_seed(seed)
    names = config.data.variables
    statistics = Statistics(
        names, (0.0,) * len(names), tuple(10.0 if name in ("u", "v") else 1.0 for name in names)
    )
    model = ClimaX(config, grid(), statistics).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def saved(model: ClimaX, config: Config, **other: Any) -> Loaded:
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = {"config": configs.to_dict(config), "statistics": STATISTICS.to_dict()}
    parts: dict[str, Any] = {"model": weights, "ema": None, "optimizer": {}, "state": state}
    return Loaded(Path("step"), **{**parts, **other})


def transferred(old: Config, new: Config) -> tuple[ClimaX, ClimaX, Report]:
    source, model = made(old, 1), made(new, 2)
    return source, model, take_weights(model, new, saved(source, old))


@pytest.mark.parametrize("settings", MODES)
def test_another_order_of_variables_targets_and_lead_times_is_no_change(settings: dict[str, Any]):
    old = config_of(**settings)
    order = VARIABLES[::-1]
    new = changed(old, variables=order, targets=TARGETS[::-1], lead_times=LEADS[::-1])
    source, model, report = transferred(old, new)
    fields, time, lead_time = inputs()
    before = source(fields, time, lead_time)
    after = model(fields.flip(1), time, lead_time.flip(1))
    assert same(after, before.flip(1, 2))
    assert not report.initialised and not report.dropped
    assert report.taken.keys() == model.state_dict().keys()


def test_new_variables_and_targets_are_initialised_and_listed_dropped_ones_too():
    old = config_of()
    names = [*VARIABLES, "no2", "so2"]
    names.remove("temp")
    new = changed(old, variables=names, targets=["no2", "o3"], lead_times=[12, 36])
    first = made(new, 2).state_dict()
    source, model, report = transferred(old, new)
    for name in ("variable no2", "variable so2", "target no2", "lead time 36"):
        assert report.initialised.pop(name) == "not in the checkpoint"
    for name in ("variable temp", "target pm25", "lead time 24", "lead time 48", "lead time 96"):
        assert report.dropped.pop(name) == "not in the config"
    assert not report.initialised and not report.dropped
    there, here = source.state_dict(), model.state_dict()
    for name in ("o3", "u", "elevation"):
        a, b = there["token_embeds.proj_weights"], here["token_embeds.proj_weights"]
        assert torch.equal(a[VARIABLES.index(name)], b[names.index(name)])
    for at in (names.index("no2"), names.index("so2")):
        assert torch.equal(here["var_embed"][:, at], first["var_embed"][:, at])
    assert here["rho"][0, 1] == there["rho"][0, 1]  # 12 h, o3
    assert torch.equal(here["rho"][1], first["rho"][1])
    # rows of the head: (cell, lead time, target)
    a = there["head.4.weight"].unflatten(0, (4, 4, 2))
    b = here["head.4.weight"].unflatten(0, (4, 2, 2))
    untouched = first["head.4.weight"].unflatten(0, (4, 2, 2))
    assert torch.equal(b[:, 0, 1], a[:, 0, 1])
    assert torch.equal(b[:, 1], untouched[:, 1]) and torch.equal(b[:, :, 0], untouched[:, :, 0])


def test_what_does_not_fit_keeps_its_first_value_with_a_reason():
    old = config_of(depth=4, terrain={"enabled": False})
    new = config_of(depth=3, lead_time_mode="conditioned", predict="value", calendar="off")
    _, _, report = transferred(old, new)
    assert report.dropped["blocks.3.attn.qkv.weight"] == "the model has no such tensor"
    assert report.dropped["calendar_embed.weight"] == "the model has no such tensor"
    assert report.initialised["blocks.0.attn.up"] == "not in the checkpoint"
    assert "transport.embed.weight" in report.initialised and "transport.turn" in report.taken
    assert report.initialised["lead_time_embed.weight"] == "not in the checkpoint"
    assert report.initialised["head.4.weight"] == "model.predict was change"
    assert report.dropped["head.4.weight"] == "model.predict was change"
    assert "blocks.0.attn.qkv.weight" in report.taken and "head.2.weight" in report.taken
    assert any(line.startswith("taken: ") and "blocks (42)" in line for line in report.lines())


def test_a_checkpoint_without_transport_names_its_parameters_as_new():
    old, new = config_of(transport="off"), config_of()
    _, model, report = transferred(old, new)
    parts = [name for name in model.state_dict() if "transport." in name or "travel_" in name]
    assert len(parts) == 5 + 2 * 3
    assert {report.initialised[name] for name in parts} == {"not in the checkpoint"}
    assert not set(report.taken) & set(parts) and "blocks.0.attn.up" in report.taken


def test_terms_of_the_first_forecast_that_the_checkpoint_lacks_start_at_zero_for_what_it_knows():
    new = config_of({"lead_times": [6, *LEADS], "recent_days": [1, 7]})
    first = made(new, 2)
    source, model, report = transferred(config_of({"recent_days": [7]}, transport="off"), new)
    assert torch.equal(model.rho[1:], source.rho) and torch.equal(model.rho[0], first.rho[0])
    assert model.transport.rho is not None and first.transport.rho is not None
    assert (model.transport.rho[1:] == 0).all()
    assert torch.equal(model.transport.rho[0], first.transport.rho[0])
    assert (model.recent_rho[0, 1:] == 0).all()
    assert torch.equal(model.recent_rho[1, 1:], source.recent_rho[0])
    assert torch.equal(model.recent_rho[:, 0], first.recent_rho[:, 0])
    assert report.notes == ["transport.rho starts at 0: the checkpoint forecasts without it"]


@pytest.mark.parametrize(
    ("old", "new", "lost"),
    [
        (config_of(), config_of(transport="off"), "transport.rho"),
        (config_of({"recent_days": [7]}), config_of(), "recent_rho"),
        (config_of({"recent_days": [7]}, transport="off"), config_of(), "recent_rho"),
        (config_of({"recent_days": [1, 7]}), config_of({"recent_days": [1]}), "7 days"),
    ],
)
def test_terms_of_the_first_forecast_are_not_taken_without_those_fitted_with_them(
    old: Config, new: Config, lost: str
):
    first = made(new, 2)
    _, model, report = transferred(old, new)
    assert torch.equal(model.rho, first.rho)
    ours, before = model.state_dict(), first.state_dict()
    assert all(torch.equal(ours[name], before[name]) for name in TERMS if name in ours)
    why = f"was fitted together with {lost}, which the model has not"
    assert report.initialised["rho"] == why and report.dropped["rho"] == why


def test_outputs_of_another_patch_are_not_taken_cell_by_cell():
    old, new = config_of(), config_of(patch=4)
    first = made(new, 2).state_dict()
    _, model, report = transferred(old, new)
    for name in ("head.4.weight", "head.4.bias"):
        assert report.initialised[name] == report.dropped[name] == "model.patch was 2"
        assert torch.equal(model.state_dict()[name], first[name])
    assert "token_embeds.proj_weights" in report.initialised and "head.2.weight" in report.taken
    assert report.initialised["transport.embed.weight"] == "nothing of it has the same name there"


def test_raw_hours_of_aq_net2_become_hundreds_of_hours():
    plain = {"terrain": {"enabled": False}, "predict": "value", "lead_time_mode": "conditioned"}
    plain |= {"tokens": "all", "missing": "fill", "transport": "off"}
    old, new = config_of(compatibility="aq_net2", **plain), config_of(**plain)
    source, model, report = transferred(old, new)
    arguments = inputs()
    assert same(source(*arguments), model(*arguments))
    assert any("lead_time_embed.weight times 100" in note for note in report.notes)


def test_positions_of_another_grid_are_resized_where_the_checkpoint_knows_its_grid():
    config = config_of()
    source, model = made(config, 1), made(config, 2)  # 4 x 6 patches
    turned = grid(12, 8).to_dict()  # 6 x 4 patches: as many, but elsewhere
    report = take_weights(model, config, saved(source, config, grid=turned))
    before = source.state_dict()["pos_embed"]
    expected = resized_positions(before, (6, 4), (4, 6))
    assert same(model.state_dict()["pos_embed"], expected) and not same(expected, before)
    assert "pos_embed resized from 6 x 4 to 4 x 6 patches" in report.notes
    report = take_weights(model, config, saved(source, config, grid=grid().to_dict()))
    assert torch.equal(model.state_dict()["pos_embed"], before) and not report.notes


def test_the_moving_average_is_taken_where_there_is_one():
    config = config_of()
    source, model = made(config, 1), made(config, 2)
    loaded = saved(source, config)
    average = {name: value + 1 for name, value in loaded.model.items()}
    take_weights(model, config, saved(source, config, ema=average))
    assert torch.equal(model.state_dict()["norm.weight"], average["norm.weight"])


@pytest.mark.parametrize("settings", [{"embed_dim": 32}, {"num_heads": 4}])
def test_another_width_or_number_of_heads_is_refused(settings: dict[str, Any]):
    name = next(iter(settings))
    with pytest.raises(AqnetError, match=f"model.{name}"):
        transferred(config_of(), config_of(**settings))


def test_a_run_that_has_begun_may_drop_where_it_began():
    plain = configs.to_dict(config_of())
    begun = copy.deepcopy(plain)
    begun["train"] |= {"init_from": "run", "init_statistics": "data"}
    assert configs.changes_forbidden_on_continuation(begun, plain) == []


def test_statistics_are_those_that_the_config_names():
    config = config_of()
    data = Statistics(("u", "no2"), (5.0, 6.0), (7.0, 8.0))
    loaded = saved(made(config, 1), config)

    def of(choice: str) -> dict[str, Any]:
        tree = configs.to_dict(config)
        tree["train"] |= {"init_from": "run", "init_statistics": choice}
        return starting_statistics(configs.from_dict(tree, "test"), data, loaded).to_dict()

    assert of("data") == data.to_dict()
    assert of("checkpoint")["u"] == {"mean": 0.0, "std": 10.0}
    assert of("checkpoint")["no2"] == {"mean": 6.0, "std": 8.0}  # the checkpoint has none
    loaded.state["statistics"] = {}
    assert of("data") == data.to_dict()
    with pytest.raises(AqnetError, match="init_statistics: data"):
        of("checkpoint")


def test_quantiles_are_taken_by_name_but_never_their_calibration():
    old = config_of(quantiles=[0.1, 0.5, 0.9], transport="off")
    source, model, report = transferred(old, changed(old, targets=TARGETS[::-1]))
    assert "stretch" not in report.taken
    assert report.initialised["stretch"] == "measured anew at the first validation"
    assert not model.stretch.any()
    there, here = (
        each.quantile_head.out.weight.unflatten(0, (-1, len(TARGETS), 3))
        for each in (source, model)
    )
    assert torch.equal(here, there.flip(1))


def test_quantiles_of_other_levels_are_not_taken():
    old = config_of(quantiles=[0.1, 0.5, 0.9])
    new = config_of(quantiles=[0.2, 0.5, 0.8])
    *_, report = transferred(old, new)
    assert "model.quantiles was" in report.initialised["quantile_head.out.weight"]
    assert "quantile_head.hidden.weight" in report.taken
