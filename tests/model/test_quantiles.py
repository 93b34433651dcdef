"""The head of quantiles alone: increasing, a start, and stretching."""

from statistics import NormalDist

import pytest
import torch
from torch import nn

from aqnet.model.quantiles import FIRST_STD, QuantileHead, stretched

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
