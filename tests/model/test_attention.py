"""Attention against its dense form: global, terrain, windows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from aqnet.errors import AqnetError
from aqnet.model.attention import Attention
from aqnet.model.terrain import terrain_attention
from tests.reference.attention import dense_attention, dense_self_attention

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


def test_the_operators_keep_torchs_rules_for_custom_operators() -> None:
    tensors = operands(9, torch.float64)
    leaves = [tensor.requires_grad_(at != 3) for at, tensor in enumerate(tensors)]
    torch.library.opcheck(torch.ops.aqnet.terrain_attention.default, tuple(leaves))


def module(terrain: bool, dtype: torch.dtype = torch.float64, drop_rate: float = 0.0) -> Attention:
    torch.manual_seed(0)
    attention = Attention(12, 3, drop_rate, terrain).to(dtype)
    if terrain:  # heads that differ
        attention.up.data += torch.tensor([0.0, 1.0, -1.0])
        attention.down.data -= torch.tensor([0.0, 0.5, -2.0])
    return attention


@pytest.mark.parametrize("terrain", [False, True])
@pytest.mark.parametrize("window", [None, 1, 6, 8, 24, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_module_and_its_gradients_are_those_of_the_dense_form(
    terrain: bool, window: int | None, dtype: torch.dtype
) -> None:
    attention = module(terrain, dtype)
    x = torch.randn(2, 25, 12, dtype=dtype)
    z = (4 * torch.rand(2, 25, dtype=dtype)).sort().values
    parameters = dict(attention.named_parameters())
    copies = {name: p.detach().double().requires_grad_() for name, p in parameters.items()}
    out = attention(x, z if terrain else None, window)
    dense = dense_self_attention(x.double(), copies, 3, z.double() if terrain else None, window)
    assert close(out, dense)
    cotangent = torch.randn_like(out)
    out.backward(cotangent)
    dense.backward(cotangent.double())
    for name, parameter in parameters.items():
        assert close(gradient(parameter), gradient(copies[name])), name


def test_one_elevation_for_all_samples_is_the_same_as_one_for_each() -> None:
    attention = module(terrain=True)
    x, z = torch.randn(3, 10, 12, dtype=torch.float64), torch.arange(10) / 3
    assert torch.equal(attention(x, z), attention(x, z.repeat(3, 1)))


def test_tokens_of_other_windows_change_nothing() -> None:
    attention = module(terrain=True)
    x, z = torch.randn(1, 10, 12, dtype=torch.float64), torch.arange(10) / 3
    before = attention(x, z, window=4)
    x[:, :8], z[:8] = torch.nan, torch.nan
    after = attention(x, z, window=4)
    assert torch.equal(before[:, 8:], after[:, 8:])


def test_parameters_are_climax_ones_and_terrain_starts_at_half_per_km() -> None:
    plain = {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}
    assert set(Attention(8, 2, 0.0, False).state_dict()) == plain
    attention = Attention(8, 2, 0.0, True)
    assert set(attention.state_dict()) == plain | {"up", "down"}
    for raw in (attention.up, attention.down):
        assert torch.allclose(torch.nn.functional.softplus(raw), torch.full((2,), 0.5))


def test_terrain_without_elevation_is_refused() -> None:
    with pytest.raises(ValueError, match="elevation_km"):
        module(terrain=True)(torch.zeros(1, 4, 12, dtype=torch.float64))


@pytest.mark.parametrize("window", [None, 8])
def test_under_bf16_autocast_terrain_runs_in_fp32(window: int | None) -> None:
    attention = module(terrain=True, dtype=torch.float32)
    x, z = torch.randn(2, 20, 12), (5 * torch.rand(2, 20)).sort().values
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(x, z, window)
        q, k, v = (tensor.bfloat16() for tensor in operands(20, torch.float32)[:3])
        _, _, _, height, up, down = operands(20, torch.float32)
        low = terrain_attention(q, k, v, height, up, down)
    assert out.dtype == torch.bfloat16
    assert (out - attention(x, z, window)).abs().max() < 0.03
    assert close(low, dense_attention(q.float(), k.float(), v.float(), height, up, down))
    out.float().sum().backward()
    assert all(gradient(p).dtype == torch.float32 for p in attention.parameters())
    assert all(gradient(p).isfinite().all() for p in attention.parameters())


@pytest.mark.parametrize("terrain", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_module_compiles_as_one_graph(terrain: bool, autocast: bool) -> None:
    attention = module(terrain, torch.float32)
    x, z = torch.randn(2, 22, 12), torch.rand(22).sort().values
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    results = []
    for run in (attention, compiled):
        attention.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = run(x, z, 8)
        out.float().square().sum().backward()
        results.append([out, *(gradient(p).clone() for p in attention.parameters())])
    for eager, graph in zip(*results, strict=True):
        assert torch.allclose(eager.float(), graph.float(), rtol=2e-2, atol=1e-5 + 5e-2 * autocast)


def test_dropout_acts_in_training_only() -> None:
    attention = module(terrain=False, drop_rate=0.5)
    x = torch.randn(1, 6, 12, dtype=torch.float64)
    assert (attention(x) == 0).any()
    assert not (attention.eval()(x) == 0).any()
