"""Calibration: what it promises, exactness over ranks, and splits that are too small."""

import dataclasses

import pytest
import torch
from torch import nn

from aqnet.batch import Batch
from aqnet.config import Config
from aqnet.errors import AqnetError
from aqnet.model.quantiles import stretched
from aqnet.training.calibration import Calibration, check_times
from tests.training import toy

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
SHAPE = (2, 3, 8, 10)  # K, T, H, W


def config() -> Config:
    plain = toy.config()
    return dataclasses.replace(plain, model=dataclasses.replace(plain.model, quantiles=LEVELS))


def cells(items: int, seed: int = 0) -> tuple[torch.Tensor, Batch]:
    """Quantiles that are too narrow and too low, by an amount of each cell's own scale, and the
    truth: skewed errors of another scale in each cell, a tenth of them missing."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(items, *SHAPE, generator=generator) * 3 + 0.1
    truth = scale * torch.empty(items, *SHAPE).exponential_(generator=generator)
    mask = torch.rand(truth.shape, generator=generator) < 0.9
    quantiles = torch.stack([scale * (0.2 + 0.7 * level) for level in LEVELS], 1)
    quantiles[~mask.unsqueeze(1).expand_as(quantiles)] = torch.nan
    truth[~mask] = torch.nan
    times = torch.arange(items)
    leads = torch.tensor([12, 24]).expand(items, 2)
    return quantiles, Batch(truth[:, 0], times, leads, truth, mask)


def model() -> nn.Module:
    result = nn.Module()
    result.register_buffer("stretch", torch.full((5, 2, 3), 7.0))
    return result


def measured(items: int) -> torch.Tensor:
    calibrated = model()
    calibration = Calibration(config(), calibrated)
    calibration.add(*cells(items))
    calibration.finish()
    return calibrated.get_buffer("stretch")


def test_stretched_quantiles_hold_what_they_promise():
    quantiles, batch = cells(400)
    moved = stretched(quantiles, measured(400))
    below = (batch.targets.unsqueeze(1) <= moved) & batch.mask.unsqueeze(1)
    share = below.sum((0, 4, 5)) / batch.mask.sum((0, 3, 4))
    expected = torch.tensor(LEVELS)[:, None, None].expand_as(share)
    torch.testing.assert_close(share, expected, atol=2e-3, rtol=0)
    raw = (batch.targets.unsqueeze(1) <= quantiles) & batch.mask.unsqueeze(1)
    assert (raw.sum((0, 4, 5)) / batch.mask.sum((0, 3, 4)) - expected).abs().max() > 0.1


def test_other_data_of_the_same_kind_are_covered_too():
    quantiles, batch = cells(400, seed=1)
    moved = stretched(quantiles, measured(400))
    inside = (batch.targets >= moved[:, 0]) & (batch.targets <= moved[:, -1])
    assert float(inside[batch.mask].double().mean()) == pytest.approx(0.9, abs=0.01)


def test_scores_lie_within_a_thousandth_of_the_sorted_ones():
    quantiles, batch = cells(400)
    width = quantiles[:, -1] - quantiles[:, 0]
    exact = [
        torch.quantile(((batch.targets - guess) / width)[:, 1, 2][batch.mask[:, 1, 2]], level)
        for level, guess in zip(LEVELS, quantiles.unbind(1), strict=True)
    ]
    torch.testing.assert_close(measured(400)[:, 1, 2], torch.stack(exact), atol=1e-3, rtol=1e-3)


def test_counts_of_any_cut_into_batches_and_ranks_add_up_to_the_same():
    quantiles, batch = cells(30)
    whole = Calibration(config(), model())
    whole.add(quantiles, batch)
    parts = [Calibration(config(), model()) for _ in range(2)]
    for number, start in enumerate(range(0, 30, 7)):
        few = slice(start, start + 7)
        parts[number % 2].add(quantiles[few], Batch(*(tensor[few] for tensor in batch)))
    assert torch.equal(whole.counts, parts[0].counts + parts[1].counts)
    assert torch.equal(whole.times, parts[0].times + parts[1].times)
    assert int(whole.counts[0].sum()) == int(batch.mask.sum())


def test_split_too_small_for_a_quantile_is_named():
    quantiles, batch = cells(30)
    mask = batch.mask.clone()
    mask[12:, 1, 2] = False
    calibration = Calibration(config(), model())
    calibration.add(quantiles, batch._replace(mask=mask))
    message = r"data\.split\.validation has 12 input times with a value of co at 24 h, but .* 0\.05"
    with pytest.raises(AqnetError, match=message + " takes 19"):
        calibration.finish()


def test_stretch_is_zero_while_measured_and_comes_back_where_that_is_abandoned():
    stopped = model()
    calibration = Calibration(config(), stopped)
    assert not stopped.get_buffer("stretch").any()
    calibration.abandon()
    assert (stopped.get_buffer("stretch") == 7.0).all()


@pytest.mark.parametrize("level, needed", [(0.05, 19), (0.95, 19), (0.1, 9), (0.9, 9), (0.5, 1)])
def test_a_quantile_needs_an_input_time_beyond_it(level: float, needed: int):
    check_times(needed, (level,))
    with pytest.raises(AqnetError, match=f"takes {needed}"):
        check_times(needed - 1, (level,))
