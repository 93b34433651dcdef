import copy
import math

import pytest
import torch
from torch import nn

from aqnet.config import Train, load
from aqnet.errors import AqnetError
from aqnet.training.optimizer import (
    MovingAverage,
    make_optimizer,
    parameter_groups,
    schedule,
    set_learning_rate,
)
from tests.model.builders import inputs, model_of


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, 5, 4))
        self.rho = nn.Parameter(torch.randn(2, 3))
        self.up = nn.Parameter(torch.randn(2))
        self.proj_biases = nn.Parameter(torch.randn(3, 4))
        self.table = nn.Embedding(3, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(11)])
        self.norm = nn.LayerNorm((2, 4))
        self.head = nn.Linear(4, 2)


def settings(model: nn.Module, factors: dict[str, float]) -> dict[str, tuple[float, float]]:
    """(weight decay, factor) of each optimised parameter by name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [
        (names[id(parameter)], (group["weight_decay"], group["factor"]))
        for group in parameter_groups(model, 0.01, factors)
        for parameter in group["params"]
    ]
    assert len({name for name, _ in found}) == len(found)
    return dict(found)


def test_only_projections_are_decayed():
    found = settings(Tiny(), {})
    decayed = {name for name, (decay, _) in found.items() if decay > 0}
    assert decayed == {f"blocks.{i}.weight" for i in range(11)} | {"head.weight"}
    assert len(found) == len(list(Tiny().parameters()))


def test_longest_prefix_gives_the_factor_and_matches_whole_names():
    found = settings(Tiny(), {"blocks": 0.1, "blocks.1": 2.0})
    assert found["blocks.1.weight"][1] == 2.0
    assert found["blocks.10.weight"][1] == 0.1
    assert found["head.weight"][1] == 1.0


def test_factor_zero_freezes():
    model = Tiny()
    assert "head.weight" not in settings(model, {"head": 0.0})
    assert not model.head.weight.requires_grad


@pytest.mark.parametrize("factors", [{"bloks": 0.1}, {"head": -1.0}, {"head": math.nan}])
def test_factor_that_cannot_hold_is_refused_by_name(factors: dict[str, float]):
    with pytest.raises(AqnetError, match=next(iter(factors))):
        parameter_groups(Tiny(), 0.01, factors)


def test_freezing_everything_is_refused():
    with pytest.raises(AqnetError, match="every parameter"):
        parameter_groups(nn.Sequential(nn.Linear(2, 2)), 0.01, {"0": 0.0})


@pytest.mark.parametrize("mode", ["joint", "conditioned"])
def test_of_the_real_model_projections_alone_are_decayed(mode: str):
    found = settings(model_of(lead_time_mode=mode), {})
    decayed = {name.rpartition(".")[2] for name, (decay, _) in found.items() if decay > 0}
    assert decayed == {"weight", "proj_weights", "in_proj_weight"}
    assert not any("norm" in name for name, (decay, _) in found.items() if decay > 0)
    free = {name for name, (decay, _) in found.items() if decay == 0}
    assert {"pos_embed", "var_embed", "var_query", "rho", "blocks.0.attn.up"} <= free


def test_the_originals_factors_hold_for_the_real_model():
    factors = load("configs/china_6pollutants.yaml").train.learning_rate_factors
    found = settings(model_of(lead_time_mode="conditioned"), factors)
    assert {factor for name, (_, factor) in found.items() if name.startswith("blocks.")} == {0.1}
    assert {factor for name, (_, factor) in found.items() if name.startswith("head.")} == {0.5}
    assert found["token_embeds.proj_weights"][1] == 2.0
    assert found["pos_embed"][1] == 1.0


def test_a_step_leaves_frozen_parts_of_the_real_model_as_they_are():
    train = Train(max_steps=2, learning_rate=0.1, learning_rate_factors={"blocks": 0.0})
    model = model_of().train()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = make_optimizer(model, train)
    model(*inputs()).nan_to_num().square().sum().backward()
    optimizer.step()
    same = {name for name, value in model.named_parameters() if torch.equal(value, before[name])}
    assert same == {name for name in before if name.startswith("blocks.")}


def test_schedule_values():
    train = Train(warmup_steps=4, max_steps=12)
    assert [schedule(step, train) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert schedule(4, train) == 1.0
    assert schedule(8, train) == pytest.approx(0.5)
    assert schedule(10, train) == pytest.approx(0.5 * (1 + math.cos(0.75 * math.pi)))
    assert schedule(12, train) == schedule(99, train) == pytest.approx(0.0)
    assert schedule(6, Train(warmup_steps=4, max_steps=12, decay_steps=8)) == pytest.approx(0.5)
    assert schedule(0, Train(warmup_steps=0, max_steps=12)) == 1.0


def test_groups_learn_at_their_factor_of_the_scheduled_rate():
    train = Train(
        warmup_steps=4, max_steps=12, learning_rate=0.1, learning_rate_factors={"head": 0.5}
    )
    optimizer = make_optimizer(Tiny(), train)
    assert set_learning_rate(optimizer, 1, train) == pytest.approx(0.05)
    rates = {group["factor"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({1.0: 0.05, 0.5: 0.025})


def test_optimizer_with_its_state_made_at_the_start_steps_like_torchs():
    train = Train(max_steps=12, learning_rate=0.1)
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(model, train)
    twin = copy.deepcopy(model)
    groups = parameter_groups(twin, train.weight_decay, {})
    plain = torch.optim.AdamW(groups, lr=0.1, fused=True)
    for _ in range(3):
        data = torch.randn(5, 3)
        for each, its_optimizer in ((model, optimizer), (twin, plain)):
            its_optimizer.zero_grad()
            each(data).square().sum().backward()
            its_optimizer.step()
    assert torch.equal(model.weight, twin.weight) and torch.equal(model.bias, twin.bias)
    ours, theirs = optimizer.state[model.weight], plain.state[twin.weight]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert all(ours[key].dtype == theirs[key].dtype for key in ours)


def test_moving_average_follows_its_definition_and_gives_the_weights_back():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    average = MovingAverage(model, 0.9)
    expected = model.weight.detach().clone()
    for _ in range(3):
        with torch.no_grad():
            model.weight += torch.randn_like(model.weight)
        average.update()
        expected = 0.9 * expected + 0.1 * model.weight.detach()
    own = model.weight.detach().clone()
    with average.in_place():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, own)

    other = MovingAverage(nn.Linear(3, 2).double(), 0.9)
    other.load_state_dict(average.state_dict())
    assert torch.equal(other.state_dict()["weight"], average.state_dict()["weight"])
