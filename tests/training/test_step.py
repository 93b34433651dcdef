"""One optimizer step: exact for any split into ranks and micro-batches; bad steps are skipped."""

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from aqnet import distributed
from aqnet.batch import Batch
from aqnet.model.attention.bias import Features
from aqnet.model.climax import ClimaX
from aqnet.training.loss import loss_sums, loss_weights, pinball_sums
from aqnet.training.step import TrainingState, optimizer_step, warm_up
from tests.distributed.test_distributed import on_ranks
from tests.model.builders import STATISTICS, config_of, grid, inputs
from tests.training.toy import LEVELS, SHAPE, Toy, ToyOdds, batch_of, config


def gradient(path: Path, micro_batch: int, how: str) -> None:
    """One rank's share of an optimizer step of eight items; rank 0 saves what it changed."""
    device = torch.device("cpu")
    torch.manual_seed(3)
    model = (ToyOdds() if how == "odds" else Toy()).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    settings = config() if how in ("whole", "broken") else config(clip_norm=0.01)
    state = TrainingState(settings, model, distributed.wrap(model), optimizer, device)
    warm_up(state, batch_of([-1]))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    size, rank = distributed.world_size(), distributed.rank()
    steps = -(-8 // (size * micro_batch))
    firsts = [(step * size + rank) * micro_batch for step in range(steps)]
    items = [list(range(first, min(first + micro_batch, 8))) or [-1] for first in firsts]
    batches = [batch_of(part, poison=5 if how == "broken" else None) for part in items]
    result = optimizer_step(state, iter(batches), steps, 0, [1.0, float(rank)])
    after = dict(model.named_parameters())
    change = {name: before[name] - after[name].detach() for name in before}
    if distributed.is_main():
        torch.save({"change": change, "loss": result.loss, "updated": result.updated}, path)
    assert result.flags == [size, size * (size - 1) / 2]


def step_of(path: Path, processes: int, micro_batch: int, how: str = "whole") -> dict[str, Any]:
    on_ranks(processes, gradient, path, micro_batch, how, timeout=120)
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


@pytest.mark.parametrize(("processes", "micro_batch"), [(1, 8), (1, 3), (2, 2)])
def test_quantiles_learn_as_of_one_big_batch_and_leave_the_mean_alone(
    tmp_path: Path, processes: int, micro_batch: int
):
    plain = step_of(tmp_path / "plain", processes, micro_batch, "clipped")
    found = step_of(tmp_path / "odds", processes, micro_batch, "odds")
    for name, change in plain["change"].items():
        assert torch.equal(found["change"][name], change), name
    torch.manual_seed(3)
    model, batch = ToyOdds().double(), batch_of(list(range(8)))
    losses, cells = pinball_sums(model(*batch[:3]), LEVELS, batch)
    ((losses * loss_weights(config(), torch.device("cpu"))).sum() / cells.sum()).backward()
    gradient = [value.grad for value in model.quantile_head.parameters()]
    norm = torch.nn.utils.get_total_norm(gradient)
    assert norm > 0.01
    for name, value in model.quantile_head.named_parameters():
        change = found["change"][f"quantile_head.{name}"]
        torch.testing.assert_close(change, value.grad * 0.01 / norm, atol=1e-7, rtol=1e-4)


def big_batch() -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient of all eight items at once, the loss by a loop over valid cells."""
    torch.manual_seed(3)
    model = Toy().double()
    batch = batch_of(list(range(8)))
    forecast = model(batch.fields, batch.time, batch.lead_time)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for b, k, t, y, x in batch.mask.nonzero().tolist():
        weight = 3.0 if t == 2 else 1.0
        total = total + weight * (forecast[b, k, t, y, x] - batch.targets[b, k, t, y, x]) ** 2
        count += 1
    loss = total / count
    loss.backward()
    return loss.item(), {name: value.grad for name, value in model.named_parameters()}


# with 3 x 2 of 8 items, two processes have nothing left in the second micro-batch
@pytest.mark.parametrize(
    ("processes", "micro_batch"), [(1, 8), (1, 2), (2, 4), (2, 1), (4, 2), (3, 2)]
)
def test_gradient_is_that_of_one_big_batch(tmp_path: Path, processes: int, micro_batch: int):
    loss, gradient = big_batch()
    found = step_of(tmp_path / "step.pt", processes, micro_batch)
    assert found["updated"]
    assert found["loss"] == pytest.approx(loss, rel=1e-12)
    for name, value in gradient.items():
        assert torch.linalg.norm(found["change"][name] - value) < 1e-10 * torch.linalg.norm(value)


def test_clipping_is_by_the_norm_of_the_whole_batch(tmp_path: Path):
    _, gradient = big_batch()
    norm = torch.linalg.norm(torch.cat([value.flatten() for value in gradient.values()]))
    found = step_of(tmp_path / "step.pt", 2, 2, "clipped")
    for name, value in gradient.items():
        torch.testing.assert_close(found["change"][name], 0.01 * value / norm, rtol=1e-4, atol=0)


def test_bad_item_of_one_rank_skips_the_step_on_all(tmp_path: Path):
    found = step_of(tmp_path / "step.pt", 2, 2, "broken")
    assert not found["updated"]
    assert all(not value.any() for value in found["change"].values())


class Steep(torch.autograd.Function):
    """The values as they are; their gradient is not finite."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * torch.inf


class SteepToy(Toy):
    """On rank 1 its loss is finite and its gradient is not."""

    def forward(self, fields: Tensor, time: Tensor, lead_time: Tensor) -> Tensor:
        values = super().forward(fields, time, lead_time)
        return Steep.apply(values) if distributed.rank() == 1 else values


def steep_step() -> None:
    torch.manual_seed(3)
    model = SteepToy().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    parallel = distributed.wrap(model)
    state = TrainingState(config(), model, parallel, optimizer, torch.device("cpu"))
    before = [value.detach().clone() for value in model.parameters()]
    batches = iter([batch_of([distributed.rank()])])
    result = optimizer_step(state, batches, 1, 0, [0.0])
    assert math.isfinite(result.loss) and not math.isfinite(result.norm)
    assert not result.updated
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_skips_the_step_on_all_though_the_loss_is_finite():
    on_ranks(2, steep_step, timeout=120)


def test_invalid_cells_reach_neither_loss_nor_gradient():
    batch = batch_of([2, 3])
    forecast = torch.randn(2, *SHAPE, dtype=torch.float64, requires_grad=True)
    errors, cells = loss_sums(forecast, batch, config())
    errors.sum().backward()
    assert errors.isfinite().all()
    assert int(cells.sum()) == int(batch.mask.sum())
    assert forecast.grad is not None
    assert forecast.grad.isfinite().all()
    assert not forecast.grad[~batch.mask].any()


def test_huber_loss_is_torchs_over_valid_cells():
    settings = config(loss="huber", huber_delta=0.7)
    batch = batch_of([4])
    forecast = torch.randn(1, *SHAPE, dtype=torch.float64)
    errors, _ = loss_sums(forecast, batch, settings)
    valid = batch.mask
    expected = torch.nn.functional.huber_loss(
        forecast[valid], batch.targets[valid], reduction="sum", delta=0.7
    )
    torch.testing.assert_close(errors.sum(), expected)


def test_weights_are_the_products_of_target_and_lead_time():
    weights = loss_weights(config(lead_time_weights={"24": 0.5}), torch.device("cpu"))
    torch.testing.assert_close(weights, torch.tensor([[1.0, 1.0, 3.0], [0.5, 0.5, 1.5]]))


class NoWaiting(TorchFunctionMode):
    """Fails at copies to a device that the host waits for."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if name in ("tensor", "as_tensor", "new_tensor"):
            assert result.device.type == "cpu", "numbers of Python copied to the device"
        if name in ("to", "copy_"):
            source = args[0] if name == "to" else args[1]
            moved = result.device != source.device
            assert not moved or kwargs.get("non_blocking"), "a copy that waits"
        return result


def without_values(q: Tensor, k: Tensor, v: Tensor, bias: Features) -> Tensor:
    """`biased_attention` where it has no kernel."""
    parts = [None if part is None else part.expand(len(q), *part.shape[1:]) for part in bias]
    out: Tensor = torch.ops.aqnet.biased_attention(q, k, v, *parts)[0]
    return out


@pytest.mark.parametrize(
    "settings",
    [{"quantiles": [0.25, 0.75]}, {"lead_time_mode": "conditioned", "attention": "window"}],
)
def test_a_step_of_the_whole_model_waits_for_its_device_once(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    # tensors on this device have no values: to ask for one, or to copy one to the host, fails
    device, waits = torch.device("meta"), []
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr("aqnet.model.attention.attention.biased_attention", without_values)

    def once(numbers: Tensor) -> Tensor:
        waits.append(numbers.device)
        return torch.ones(numbers.shape, dtype=numbers.dtype)

    monkeypatch.setattr("aqnet.training.step.on_host", once)
    settings_of = config_of(**settings)
    model = ClimaX(settings_of, grid(), STATISTICS).to(device)
    before = [value._version for value in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    state = TrainingState(settings_of, model, model, optimizer, device)
    fields, *times = inputs()
    targets = torch.zeros(2, 4, 2, 8, 12)
    batch = Batch(fields.float(), *times, targets, targets == 0)
    with NoWaiting():
        result = optimizer_step(state, iter([batch] * 2), 2, 0, [0.0, 1.0])
    assert waits == [device]
    assert result.updated and len(result.times) == 4
    assert all(value._version > old for value, old in zip(model.parameters(), before, strict=True))
    with pytest.raises(RuntimeError, match="meta"):
        float(torch.zeros((), device=device))
