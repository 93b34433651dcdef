"""Moments against numpy in float64, whatever the parts."""

import numpy as np
import pytest

from aqnet.data.moments import merged, moments


@pytest.mark.parametrize("parts", [1, 7, 500])
def test_merged_moments_are_those_of_the_whole(parts: int):
    rng = np.random.default_rng(0)
    values = rng.normal((1e5, 3.0, -2e-3), (10.0, 200.0, 1e-4), (500, 40, 3)).transpose(0, 2, 1)
    values = values.astype(np.float32)
    values[rng.random(values.shape) < 0.3] = np.nan
    values[100:140] = np.nan  # hours without any value
    measured = moments(values)
    assert measured.shape == (500, 3, 3)
    groups = [merged(part) for part in np.array_split(measured, parts)]
    count, mean, squares = merged(np.stack(groups))
    wide = values.astype(np.float64).transpose(1, 0, 2).reshape(3, -1)
    np.testing.assert_array_equal(count, np.isfinite(wide).sum(1))
    np.testing.assert_allclose(mean, np.nanmean(wide, 1), rtol=1e-9)
    np.testing.assert_allclose(np.sqrt(squares / count), np.nanstd(wide, 1), rtol=1e-9)


def test_without_values_all_is_zero():
    np.testing.assert_array_equal(moments(np.full((2, 5), np.nan)), np.zeros((3, 2)))
    np.testing.assert_array_equal(moments(np.zeros((2, 0))), np.zeros((3, 2)))
    assert moments(np.array([[4.0, 4.0, np.nan]])).tolist() == [[2.0], [4.0], [0.0]]
