"""The pinball loss against a loop, its masks and its minimum."""

import math

import torch

from aqnet.training.loss import pinball_sums
from tests.training.toy import SHAPE, batch_of

LEVELS = (0.1, 0.5, 0.8)


def quantiles(items: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(items, 3, *SHAPE, generator=generator, dtype=torch.float64)


def test_pinball_loss_is_that_of_a_loop_over_valid_cells():
    batch, guess = batch_of([1, 4]), quantiles(2)
    guess[~batch.mask.unsqueeze(1).expand_as(guess)] = math.nan
    expected = torch.zeros(SHAPE[:2], dtype=torch.float64)
    for b, k, t, y, x in batch.mask.nonzero().tolist():
        for row, level in enumerate(LEVELS):
            error = float(batch.targets[b, k, t, y, x] - guess[b, row, k, t, y, x])
            expected[k, t] += (level * error if error > 0 else (level - 1) * error) / 3
    torch.testing.assert_close(pinball_sums(guess, LEVELS, batch), expected)


def test_invalid_cells_reach_no_gradient():
    batch, guess = batch_of([0, 2]), quantiles(2).requires_grad_()
    pinball_sums(guess, LEVELS, batch).sum().backward()
    assert guess.grad is not None
    moved = guess.grad != 0
    assert torch.equal(moved, batch.mask.unsqueeze(1).expand_as(moved))


def test_least_loss_is_at_the_quantiles_of_the_truth():
    batch = batch_of([8, 8])
    truth = torch.randn(batch.targets.shape, generator=torch.Generator().manual_seed(1))
    batch = batch._replace(targets=truth, mask=torch.ones_like(batch.mask))
    places = torch.linspace(-2, 2, 401)
    losses = [
        pinball_sums(place.expand(2, 1, *SHAPE), (level,), batch).sum()
        for level in LEVELS
        for place in places
    ]
    best = places[torch.stack(losses).view(3, -1).argmin(1)]
    expected = torch.quantile(truth.flatten(), torch.tensor(LEVELS))
    torch.testing.assert_close(best, expected, atol=0.02, rtol=0)
