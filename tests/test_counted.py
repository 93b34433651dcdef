"""Quantiles from counts."""

import numpy as np
import pytest
import torch

from aqnet.counted import Bins

BINS = Bins(400, fine=10.0, reach=7.0)


@pytest.mark.parametrize("scale", [0.01, 1.0, 20.0])
def test_quantiles_are_those_of_the_values(scale: float):
    values = scale * torch.randn(100_000, generator=torch.Generator().manual_seed(0)).double()
    counts = np.bincount(BINS.of(values).numpy(), minlength=400)
    for level in (0.05, 0.3, 0.5, 0.95):
        exact = float(torch.quantile(values, level))
        assert BINS.quantile(counts, level) == pytest.approx(exact, abs=2e-3, rel=2e-2)


def test_each_row_of_counts_has_its_own_quantile():
    values = torch.linspace(-1, 1, 20_001).double()
    rows = [np.bincount(BINS.of(shift + values).numpy(), minlength=400) for shift in (0.0, 2.0)]
    found = BINS.quantile(np.array(rows), 0.25)
    np.testing.assert_allclose(found, [-0.5, 1.5], atol=0.03)


def test_values_beyond_the_reach_are_counted_at_the_ends():
    far = torch.tensor([-1e9, -1.0, 1e9], dtype=torch.float64)
    assert BINS.of(far).tolist()[::2] == [0, 399]
