"""Squared errors of every cell: the skill they give, in any order."""

import numpy as np

from aqnet.evaluation.cell_errors import CellErrors


def test_skill_of_each_cell_is_that_of_the_counted_pairs_in_any_order():
    generator = np.random.default_rng(0)
    truth = generator.normal(0, 9, (50, 2, 3, 4))
    forecasts = truth + generator.normal(
        0, [[[[[1.0]]]], [[[[2.0]]]], [[[[3.0]]]]], (3, *truth.shape)
    )
    valid = generator.random(truth.shape) < 0.8
    valid[..., 3] = False
    truth[~valid] = np.nan
    best = np.array([[1, 2, 1], [2, 1, 1]])
    found = []
    for order in (range(50), reversed(range(50))):
        errors = CellErrors(3, 2, np.array([2.0, 3.0, 0.0]), 4)
        for item in order:
            for number in range(3):
                errors.count(number, forecasts[number, item], truth[item], valid[item])
        found.append(errors.skill(best))
    assert found[0].shape == (2, 3, 4) and np.array_equal(*found, equal_nan=True)
    squares = np.where(valid, np.square(forecasts - truth), 0.0).sum(1)
    theirs = np.take_along_axis(squares, best[None, ..., None], axis=0)[0]
    expected = 1.0 - squares[0, ..., :3] / theirs[..., :3]
    np.testing.assert_allclose(found[0][..., :3], expected, atol=1e-4)
    assert np.isnan(found[0][..., 3]).all(), "no pair"
