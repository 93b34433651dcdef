import pytest
import torch
from torch import Tensor, nn

from aqnet.model.tokens.embedding import TokenEmbeds, VariableAggregation, patch_pixels
from tests.reference.embedding import aggregate

DIM, HEADS = 24, 3


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return (found - expected).norm() <= tolerance * max(expected.norm().item(), 1e-30)


def parts(num_variables: int, patch: int, dtype: torch.dtype):
    torch.manual_seed(patch)
    embeds, folded = TokenEmbeds(num_variables, DIM, patch), VariableAggregation(DIM, HEADS)
    for parameter in (*embeds.parameters(), *folded.parameters()):
        # wider ones saturate the softmax, and the plain form in FP32 is then 1e-5 off itself
        nn.init.normal_(parameter, std=0.3)
    embeds, folded = embeds.to(dtype), folded.to(dtype)
    plain = nn.MultiheadAttention(DIM, HEADS, batch_first=True).to(dtype)
    plain.load_state_dict(folded.state_dict())
    var_embed = torch.randn(1, num_variables, DIM, dtype=dtype, requires_grad=True)
    var_query = torch.randn(1, 1, DIM, dtype=dtype, requires_grad=True)
    return embeds, folded, plain, var_embed, var_query


def fields_with_gaps(num_variables: int, patch: int, dtype: torch.dtype) -> Tensor:
    fields = torch.randn(2, num_variables, 3 * patch, 4 * patch, dtype=dtype)
    fields[torch.rand(fields.shape) < 0.2] = torch.nan
    fields[0, 1] = torch.nan
    fields[1, 0, :patch] = torch.nan
    fields[:, :, :patch, :patch] = torch.nan
    return fields


def fold(fields: Tensor, ignore: bool, embeds, folded, var_embed, var_query) -> Tensor:
    pixels = patch_pixels(fields, embeds.proj_weights.shape[-1])
    present = ~pixels.isnan().all(-1) if ignore else None
    return folded(pixels.nan_to_num(0.0), present, embeds.affine(var_embed), var_query)


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
@pytest.mark.parametrize("ignore", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str
)
def test_folded_aggregation_is_multihead_attention_over_tokens(patch, ignore, dtype, tolerance):
    embeds, folded, plain, var_embed, var_query = parts(5, patch, dtype)
    fields = fields_with_gaps(5, patch, dtype)
    found = fold(fields, ignore, embeds, folded, var_embed, var_query)
    weights = (embeds.proj_weights, embeds.proj_biases, var_embed, var_query)
    expected = aggregate(fields, *weights, plain, ignore)
    assert close(found, expected, tolerance)

    cotangent = torch.randn_like(found)
    own = (*weights, folded.in_proj_weight, folded.in_proj_bias, *folded.out_proj.parameters())
    theirs = (*weights, plain.in_proj_weight, plain.in_proj_bias, *plain.out_proj.parameters())
    gradients = torch.autograd.grad((found * cotangent).sum(), own)
    references = torch.autograd.grad((expected * cotangent).sum(), theirs)
    for gradient, reference in zip(gradients, references, strict=True):
        assert close(gradient, reference, tolerance)
    assert gradients[5].chunk(3)[1].abs().max() == 0.0  # the key bias has no effect


def test_patch_without_any_variable_gives_zero_and_finite_gradients():
    embeds, folded, _, var_embed, var_query = parts(3, 2, torch.float32)
    fields = torch.full((1, 3, 4, 4), torch.nan)
    fields[0, :, 2:] = 1.0
    out = fold(fields, True, embeds, folded, var_embed, var_query)
    assert (out[0, :2] == 0).all() and (out[0, 2:] != 0).any()
    out.square().sum().backward()
    for parameter in (*embeds.parameters(), *folded.parameters()):
        assert parameter.grad is not None and parameter.grad.isfinite().all()


def test_missing_variable_is_as_if_it_were_not_there():
    embeds, folded, _, var_embed, var_query = parts(4, 2, torch.float64)
    fields = torch.randn(2, 4, 4, 6, dtype=torch.float64)
    fields[:, 2] = torch.nan
    found = fold(fields, True, embeds, folded, var_embed, var_query)
    rest = [0, 1, 3]
    fewer = TokenEmbeds(3, DIM, 2).double()
    fewer.proj_weights.data = embeds.proj_weights.data[rest]
    fewer.proj_biases.data = embeds.proj_biases.data[rest]
    expected = fold(fields[:, rest], True, fewer, folded, var_embed[:, rest], var_query)
    assert close(found, expected, 1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_any_subset_of_variables_in_any_shape_is_multihead_attention_over_its_tokens(seed):
    torch.manual_seed(seed)
    every, patch, batch, height, width = (
        int(torch.randint(low, high, ())) for low, high in ((2, 9), (1, 5), (1, 4), (1, 4), (1, 6))
    )
    embeds, folded, plain, var_embed, var_query = parts(every, patch, torch.float64)
    chosen = torch.randperm(every)[: int(torch.randint(1, every + 1, ()))].tolist()
    some = TokenEmbeds(len(chosen), DIM, patch).double()
    some.load_state_dict({name: value[chosen] for name, value in embeds.state_dict().items()})
    fields = torch.randn(batch, every, patch * height, patch * width, dtype=torch.float64)
    fields[torch.rand(fields.shape) < 0.3] = torch.nan
    found = fold(fields[:, chosen], True, some, folded, var_embed[:, chosen], var_query)
    weights = (embeds.proj_weights[chosen], embeds.proj_biases[chosen], var_embed[:, chosen])
    expected = aggregate(fields[:, chosen], *weights, var_query, plain, True)
    assert found.shape == (batch, height * width, DIM)
    assert close(found, expected, 1e-10)
