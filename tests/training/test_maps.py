"""Maps for TensorBoard: what stands where, and in which colour."""

import numpy as np
import pytest

from aqnet.training.maps import mosaic

GREY, WHITE = (128, 128, 128), (255, 255, 255)
PALE, RED, BLUE = (247, 247, 247), (178, 24, 43), (33, 102, 172)


def picture(forecast: np.ndarray, truth: np.ndarray, south_first: bool = False) -> np.ndarray:
    return mosaic(forecast.astype(np.float32), truth.astype(np.float32), south_first)


def test_forecast_truth_and_difference_stand_side_by_side_and_lead_times_below():
    truth = np.stack([np.linspace(0, 1, 96 * 10).reshape(96, 10)] * 2)
    forecast = truth.copy()
    forecast[0] += 100  # far too high
    forecast[1] -= 100
    drawn = picture(forecast, truth)
    assert drawn.shape == (2 * 96 + 2, 3 * 10 + 2 * 2, 3) and drawn.dtype == np.uint8
    assert (drawn[96:98] == WHITE).all() and (drawn[:, 10:12] == WHITE).all()
    assert (drawn[:96, :10] == (253, 231, 37)).all() and (drawn[98:, :10] == (68, 1, 84)).all()
    assert (drawn[:96, 12:22] == drawn[98:, 12:22]).all()
    assert (drawn[:96, 24:] == RED).all() and (drawn[98:, 24:] == BLUE).all()


def test_a_perfect_forecast_has_pale_differences_and_missing_cells_are_grey():
    truth = np.arange(4.0 * 5).reshape(1, 4, 5)
    truth[0, 1, 1] = np.nan
    drawn = picture(np.nan_to_num(truth), truth)
    assert drawn.shape == (96, 3 * 5 * 24 + 4, 3)  # enlarged 24 times
    difference = drawn[:, -5 * 24 :][::24, ::24]
    assert (difference[0] == PALE).all() and (difference[1, 1] == GREY).all()
    assert (drawn[24:48, 5 * 24 + 2 + 24 : 5 * 24 + 2 + 48] == GREY).all()
    assert not (drawn[:, : 5 * 24] == GREY).all(axis=-1).any()


@pytest.mark.parametrize("south_first", [False, True])
def test_north_is_above(south_first: bool):
    south = np.zeros((1, 4, 4))
    south[0, 0] = 1.0  # high values in the south where the first row is the southernmost
    drawn = picture(south, south, south_first)
    top, bottom = drawn[0, 0].tolist(), drawn[-1, 0].tolist()
    assert (bottom if south_first else top) == [253, 231, 37]
    assert top != bottom


def test_nothing_known_is_all_grey():
    nothing = np.full((1, 3, 3), np.nan)
    drawn = picture(nothing, nothing)
    assert {tuple(pixel) for pixel in drawn.reshape(-1, 3)} == {GREY, WHITE}
