"""The pinball loss against a loop, its masks and its minimum."""

import math

import pytest
import torch

from aqnet.batch import Batch, Forecast
from aqnet.training.loss import pinball_sums
from tests.training.toy import SHAPE, batch_of

LEVELS = (0.1, 0.5, 0.8)
FEW = torch.tensor([3, 7, 8, 19])  # of the 20 cells


def quantiles(items: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(items, 3, *SHAPE, generator=generator, dtype=torch.float64)


def forecast(values: torch.Tensor, cells: torch.Tensor | None) -> Forecast:
    if cells is not None:
        values = values.flatten(-2)[..., cells]
    return Forecast(torch.zeros(()), values, cells)


@pytest.mark.parametrize("cells", [None, FEW])
def test_pinball_loss_is_that_of_a_loop_over_valid_cells(cells: torch.Tensor | None):
    batch, guess = batch_of([1, 4]), quantiles(2)
    guess[~batch.mask.unsqueeze(1).expand_as(guess)] = math.nan
    expected = torch.zeros(2, *SHAPE[:2], dtype=torch.float64)
    for b, k, t, y, x in batch.mask.nonzero().tolist():
        if cells is not None and SHAPE[-1] * y + x not in cells:
            continue
        expected[1, k, t] += 1
        for row, level in enumerate(LEVELS):
            error = float(batch.targets[b, k, t, y, x] - guess[b, row, k, t, y, x])
            expected[0, k, t] += (level * error if error > 0 else (level - 1) * error) / 3
    losses, counts = pinball_sums(forecast(guess, cells), LEVELS, batch)
    torch.testing.assert_close(losses, expected[0])
    assert torch.equal(counts, expected[1].long())


def test_without_quantiles_there_is_no_loss():
    batch = batch_of([1, 4])
    losses, counts = pinball_sums(Forecast(batch.targets), (), batch)
    assert losses.shape == counts.shape == SHAPE[:2]
    assert not losses.any() and not counts.any()


def test_invalid_cells_reach_no_gradient():
    batch, guess = batch_of([0, 2]), quantiles(2).requires_grad_()
    pinball_sums(forecast(guess, None), LEVELS, batch)[0].sum().backward()
    assert guess.grad is not None
    moved = guess.grad != 0
    assert torch.equal(moved, batch.mask.unsqueeze(1).expand_as(moved))


def test_least_loss_is_at_the_quantiles_of_the_truth():
    truth = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(truth.shape, dtype=torch.bool)
    batch = Batch(truth, torch.zeros(2), torch.zeros(2, 2), truth, mask)
    places = torch.linspace(-2, 2, 401)

    def loss(place: torch.Tensor, level: float) -> torch.Tensor:
        return pinball_sums(Forecast(truth, place.expand(2, 1, *SHAPE)), (level,), batch)[0].sum()

    best = [
        places[torch.stack([loss(place, level) for place in places]).argmin()] for level in LEVELS
    ]
    expected = torch.quantile(truth.flatten(), torch.tensor(LEVELS))
    torch.testing.assert_close(torch.stack(best), expected, atol=0.02, rtol=0)
