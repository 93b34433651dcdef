"""Attention against its dense form: global, terrain, windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from aqnet.errors import AqnetError
from aqnet.model.attention import bias
from aqnet.model.attention.attention import Attention
from aqnet.model.attention.bias import Features, Places
from aqnet.model.attention.biased_attention import biased_attention
from tests.reference.attention import dense_attention, dense_self_attention

HOURS = [12, 24, 96]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def operands(
    length: int, dtype: torch.dtype, batch: int = 2, heads: int = 3, width: int = 5
) -> list[Tensor]:
    """q, k, v, z, up, down with ascending elevations of 0 to 5 km."""
    generator = torch.Generator().manual_seed(length)
    normal = torch.randn(3, batch, heads, length, width, generator=generator, dtype=dtype)
    z = (5 * torch.rand(batch, length, generator=generator, dtype=dtype)).sort().values
    costs = 0.1 + torch.rand(2, heads, generator=generator, dtype=dtype)
    return [*normal.unbind(0), z, *costs.unbind(0)]


def terrain_attention(
    q: Tensor, k: Tensor, v: Tensor, z: Tensor, up: Tensor, down: Tensor
) -> Tensor:
    return biased_attention(q, k, v, bias.terrain(z, up, down))


def gradients(attend: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Output and gradients of q, k, v, up, down under a fixed random cotangent."""
    leaves = [t.detach().clone().requires_grad_(at != 3) for at, t in enumerate(tensors)]
    out = attend(*leaves)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, wanted, cotangent)]


def gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def close(found: Tensor, expected: Tensor) -> bool:
    """Within the dtype's tolerance of the largest element."""
    limit = TOLERANCE[found.dtype] * max(1.0, expected.abs().max().item())
    return bool(found.isfinite().all()) and (found - expected).abs().max().item() <= limit


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("length", "width"), [(1, 4), (2, 3), (37, 5), (600, 96)])
def test_terrain_attention_and_its_gradients_are_those_of_the_dense_form(
    length: int, width: int, dtype: torch.dtype
) -> None:
    tensors = operands(length, dtype, width=width)
    found = gradients(terrain_attention, tensors)
    expected = gradients(dense_attention, [tensor.double() for tensor in tensors])
    for one, other in zip(found, expected, strict=True):
        assert close(one, other)


@pytest.mark.parametrize("levels", [1, 3])
def test_ties_in_elevation_cost_nothing_and_make_no_nan(levels: int) -> None:
    tensors = operands(41, torch.float64)
    tensors[3] = (tensors[3] * 100).round().remainder(levels).sort().values
    found = gradients(terrain_attention, tensors)
    for one, other in zip(found, gradients(dense_attention, tensors), strict=True):
        assert close(one, other)
    if levels == 1:
        q, k, v = tensors[:3]
        plain = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        assert close(found[0], plain)


def test_lifting_air_costs_up_and_lowering_it_costs_down() -> None:
    nothing = torch.zeros(1, 1, 2, 1, dtype=torch.float64)
    v = torch.tensor([0.0, 1.0], dtype=torch.float64).view(1, 1, 2, 1)  # 1 comes from the summit
    z = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    up, down = (torch.tensor([cost], dtype=torch.float64) for cost in (3.0, 0.5))
    valley, summit = terrain_attention(nothing, nothing, v, z, up, down).flatten()
    assert torch.isclose(valley, torch.sigmoid(-2 * down).squeeze())
    assert torch.isclose(1 - summit, torch.sigmoid(-2 * up).squeeze())


def test_free_terrain_is_plain_attention() -> None:
    q, k, v, z, up, down = operands(23, torch.float64)
    free = terrain_attention(q, k, v, z, 0 * up, 0 * down)
    assert close(free, torch.nn.functional.scaled_dot_product_attention(q, k, v))


def test_terrain_attention_stays_finite_where_costs_and_scores_are_large() -> None:
    q, k, v, z, up, down = operands(64, torch.float32)
    tensors = [30 * q, k, v, z, 200 * up, 200 * down]
    assert all(tensor.isfinite().all() for tensor in gradients(terrain_attention, tensors))


def largest_allocation(attend: Callable[..., Tensor], tensors: list[Tensor]) -> int:
    """Bytes that one operator allocates, forward and backward, at most."""
    with torch.profiler.profile(profile_memory=True) as profile:
        gradients(attend, tensors)
    return max(event.self_cpu_memory_usage for event in profile.events() or [])


def test_terrain_attention_makes_no_square_tensor() -> None:
    length = 3000  # far beyond the kernel's own blocks
    tensors = operands(length, torch.float32, batch=1, heads=1, width=8)
    assert largest_allocation(dense_attention, tensors) >= 4 * length**2
    assert largest_allocation(terrain_attention, tensors) < 4 * length**2 / 4


def test_another_device_is_refused_by_name() -> None:
    tensors = [tensor.to("meta") for tensor in operands(4, torch.float32)]
    with pytest.raises(AqnetError, match=r"model\.terrain\.enabled.*'meta'"):
        terrain_attention(*tensors)


def far_apart(length: int, width_km: float) -> list[Tensor]:
    """z, position, displacement, up, down, time, width: up to 5 km high and 5,000 km apart."""
    generator = torch.Generator().manual_seed(length)
    z = (5 * torch.rand(1, length, generator=generator)).sort().values
    position = 5 * torch.rand(1, length, 2, generator=generator) - 2.5
    displacement = torch.randn(1, length, len(HOURS), 2, generator=generator)
    costs, time = torch.tensor([[0.5, 2.0], [0.3, 1.5]]), torch.tensor([0.0, 0.8])
    return [z, position, displacement, *costs, time, width_km / 1000 * torch.tensor([1.0, 1.5])]


def both(
    z: Tensor, position: Tensor, displacement: Tensor, up: Tensor, down: Tensor, *wind: Tensor
) -> Features:
    """Terrain and wind."""
    days = torch.tensor(HOURS).to(z) / 24
    paths = bias.travel(position, displacement, days, *wind)
    return bias.joined([bias.terrain(z, up, down), paths])


@pytest.mark.parametrize("width_km", [300, 600])
def test_in_bf16_no_score_is_wrong_by_a_thousandth(width_km: float) -> None:
    numbers, length = far_apart(60, width_km), 60
    receivers, senders, above = both(*numbers)
    exact = both(*(number.double() for number in numbers))
    assert above is not None and exact.above is not None
    for side, expected in ((receivers, exact.receivers), (above, exact.above)):
        # every pair as a sequence of one token: its log-sum-exp is its score
        one = side[0].permute(1, 0, 2).repeat_interleave(length, 0).unsqueeze(2)
        other = senders[0].repeat(length, 1).unsqueeze(1)
        nothing = torch.zeros(*one.shape[:3], 96, dtype=torch.bfloat16)
        _, score = torch.ops.aqnet.biased_attention(nothing, nothing, nothing, one, other, None)
        score = score.view(length, length, -1).permute(2, 0, 1)
        expected = expected @ exact.senders.unsqueeze(1).transpose(2, 3)
        assert expected.abs().max() > 30
        assert score.dtype == torch.float32
        assert (score - expected).abs().max() < 1e-3


@pytest.mark.parametrize("length", [1, 2, 200])
def test_bf16_attention_and_its_gradients_come_near_fp64(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    tensors = list(torch.randn(3, 2, 2, length, 16, generator=generator).bfloat16().unbind(0))

    def attend(q: Tensor, k: Tensor, v: Tensor, *numbers: Tensor) -> Tensor:
        return biased_attention(q, k, v, both(*numbers))

    numbers = far_apart(length, 300)
    precise = [tensor.double() for tensor in tensors + numbers]
    # a forecast of other parameters gives a gradient that does not cancel
    seed = (attend(*precise) - attend(*precise[:6], *(1.5 * part for part in precise[6:]))).detach()
    results = []
    for leaves in (precise, tensors + numbers):
        wanted = [leaf.requires_grad_() for at, leaf in enumerate(leaves) if at not in (3, 4, 5)]
        out = attend(*leaves)
        assert out.dtype == leaves[0].dtype
        results.append([out, *torch.autograd.grad(out, wanted, seed.to(out.dtype))])
    for at, (expected, found) in enumerate(zip(*results, strict=True)):
        # those of costs, times and widths are sums over all pairs, which cancel in part
        limit = 0.01 if at < 4 else 0.05
        assert (found - expected).norm() <= limit * expected.norm() + 1e-6, at


def test_the_operators_keep_torchs_rules_for_custom_operators() -> None:
    q, k, v, z, up, down = (
        tensor.requires_grad_(at != 3) for at, tensor in enumerate(operands(9, torch.float64))
    )
    hills = bias.terrain(z, up, down)
    receivers, senders, above = (part.detach() for part in hills if part is not None)
    receivers.requires_grad_(), above.requires_grad_()
    operator = torch.ops.aqnet.biased_attention.default
    for side in (above, None):
        torch.library.opcheck(operator, (q, k, v, receivers, senders, side))
    low = [tensor.detach().bfloat16() for tensor in (q, k, v)]
    numbers = [part.detach().float() for part in (receivers, senders, above)]
    torch.library.opcheck(operator, (*low, *numbers), test_utils="test_faketensor")


BIASES = ("none", "terrain", "wind", "terrain and wind")


def module(biases: str, dtype: torch.dtype = torch.float64, drop_rate: float = 0.0) -> Attention:
    torch.manual_seed(0)
    hours = HOURS if "wind" in biases else ()
    attention = Attention(12, 3, drop_rate, "terrain" in biases, hours).to(dtype)
    if "terrain" in biases:  # heads that differ
        attention.up.data += torch.tensor([0.0, 1.0, -1.0])
        attention.down.data -= torch.tensor([0.0, 0.5, -2.0])
    if "wind" in biases:
        attention.travel_time.data.copy_(torch.tensor([-0.2, 0.7, 4.5]))
        attention.travel_width.data += torch.tensor([0.0, 0.5, 1.0])
    return attention


def places(batch: int, length: int, dtype: torch.dtype = torch.float64) -> Places:
    """Ascending elevations of up to 4 km on a map of 2,000 km, and paths over it."""
    generator = torch.Generator().manual_seed(length)
    numbers = torch.rand(batch, length, 1 + 2 + 2 * len(HOURS), generator=generator)
    z, position, displacement = numbers.to(dtype).split([1, 2, 2 * len(HOURS)], dim=-1)
    paths = (displacement - 0.5).unflatten(-1, (len(HOURS), 2))
    return Places(4 * z.squeeze(-1).sort().values, 2 * position - 1, paths)


def of(where: Places, rows: slice) -> Places:
    return where.each(lambda field: field[:, rows])


@pytest.mark.parametrize("biases", BIASES)
@pytest.mark.parametrize("window", [None, 1, 6, 8, 24, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_module_and_its_gradients_are_those_of_the_dense_form(
    biases: str, window: int | None, dtype: torch.dtype
) -> None:
    attention = module(biases, dtype)
    x, where = torch.randn(2, 25, 12, dtype=dtype), places(2, 25, dtype)
    parameters = dict(attention.named_parameters())
    copies = {name: p.detach().double().requires_grad_() for name, p in parameters.items()}
    z, position, displacement = where.each(Tensor.double)
    wind = (position, displacement, HOURS) if "wind" in biases else None
    out = attention(x, where, window)
    dense = dense_self_attention(
        x.double(), copies, 3, z if "terrain" in biases else None, window, wind
    )
    assert close(out, dense)
    cotangent = torch.randn_like(out)
    out.backward(cotangent)
    dense.backward(cotangent.double())
    for name, parameter in parameters.items():
        assert close(gradient(parameter), gradient(copies[name])), name


def test_one_place_for_all_samples_is_the_same_as_one_for_each() -> None:
    attention = module("terrain and wind")
    x, where = torch.randn(3, 10, 12, dtype=torch.float64), places(1, 10)
    everyone = where.each(lambda field: field.expand(3, *field.shape[1:]))
    assert torch.equal(attention(x, where), attention(x, everyone))
    assert torch.equal(attention(x, where, 4), attention(x, everyone, 4))


def test_a_head_looks_where_its_air_comes_from() -> None:
    # three tokens in a row 1,000 km apart; a day's air moves one place, four days' four
    position = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]]).double()
    displacement = torch.tensor([-0.5, -1.0, -4.0]).double().view(1, 1, 3, 1)
    displacement = displacement * torch.tensor([1.0, 0.0]).double()
    days, width = torch.tensor(HOURS).double() / 24, torch.full((5,), 0.1).double()
    time = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.75]).double()
    numbers = bias.travel(position, displacement.expand(1, 3, 3, 2), days, time, width)
    scores = numbers.receivers @ numbers.senders.transpose(1, 2)
    # the last token, by head: itself, its neighbour, the first, the air yet to come, between two
    assert scores[0, :4, 2].argmax(dim=-1).tolist() == [2, 1, 0, 2]
    assert torch.isclose(scores[0, 4, 2, 1], scores[0, 4, 2, 2] + (0.75**2 - 0.25**2) / 0.02)
    assert scores[0, 3, 1].argmax() == 2


def test_tokens_of_other_windows_change_nothing() -> None:
    attention = module("terrain and wind")
    x, where = torch.randn(1, 10, 12, dtype=torch.float64), places(1, 10)
    before = attention(x, where, window=4)
    for field in (x, *where):
        assert field is not None
        field[:, :8] = torch.nan
    after = attention(x, where, window=4)
    assert torch.equal(before[:, 8:], after[:, 8:])


def test_parameters_are_climax_ones_and_biases_start_as_documented() -> None:
    plain = {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}
    assert set(Attention(8, 2, 0.0, False).state_dict()) == plain
    attention = Attention(8, 2, 0.0, True)
    assert set(attention.state_dict()) == plain | {"up", "down"}
    for raw in (attention.up, attention.down):
        assert torch.allclose(torch.nn.functional.softplus(raw), torch.full((2,), 0.5))
    attention = Attention(10, 5, 0.0, False, [48, 12])
    assert set(attention.state_dict()) == plain | {"travel_time", "travel_width"}
    assert attention.travel_time.tolist() == [0.0, 0.5, 1.0, 2.0, 0.0]
    assert torch.allclose(torch.nn.functional.softplus(attention.travel_width), torch.tensor(0.6))


def test_a_bias_without_its_places_is_refused() -> None:
    with pytest.raises(ValueError, match="elevation_km"):
        module("terrain")(torch.zeros(1, 4, 12, dtype=torch.float64))
    with pytest.raises(ValueError, match="displacement"):
        module("wind")(torch.zeros(1, 4, 12, dtype=torch.float64), Places(torch.zeros(1, 4)))


@pytest.mark.parametrize("biases", BIASES[1:])
@pytest.mark.parametrize("window", [None, 8])
def test_under_bf16_autocast_a_cpu_runs_biases_in_fp32(
    window: int | None, biases: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = set()

    def seen(q: Tensor, *rest: Any) -> Tensor:
        kinds.add(q.dtype)
        return biased_attention(q, *rest)

    monkeypatch.setattr("aqnet.model.attention.attention.biased_attention", seen)
    attention = module(biases, dtype=torch.float32)
    x, where = torch.randn(2, 20, 12), places(2, 20, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(x, where, window)
    assert out.dtype == torch.bfloat16
    assert (out - attention(x, where, window)).abs().max() < 0.03
    assert kinds == {torch.float32}
    out.float().sum().backward()
    assert all(gradient(p).dtype == torch.float32 for p in attention.parameters())
    assert all(gradient(p).isfinite().all() for p in attention.parameters())


@pytest.mark.parametrize("biases", BIASES)
@pytest.mark.parametrize("autocast", [False, True])
def test_module_compiles_as_one_graph(biases: str, autocast: bool) -> None:
    attention = module(biases, torch.float32)
    x, where = torch.randn(2, 22, 12), places(1, 22, torch.float32)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    results = []
    for run in (attention, compiled):
        attention.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = run(x, where, 8)
        out.float().square().sum().backward()
        results.append([out, *(gradient(p).clone() for p in attention.parameters())])
    for eager, graph in zip(*results, strict=True):
        assert torch.allclose(eager.float(), graph.float(), rtol=2e-2, atol=1e-5 + 5e-2 * autocast)


def test_dropout_acts_in_training_only() -> None:
    attention = module("none", drop_rate=0.5)
    x = torch.randn(1, 6, 12, dtype=torch.float64)
    assert (attention(x) == 0).any()
    assert not (attention.eval()(x) == 0).any()
