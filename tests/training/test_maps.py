"""Maps for TensorBoard: what stands where, in which colour, and what is written."""

import numpy as np
import pytest
from PIL import ImageDraw

from aqnet.training.maps import AMOUNT, BELOW, DIFFERENCE, GAP, LEFT, MISSING, SIDE, TOP, mosaic

STEP = SIDE + GAP  # from a panel to the next, of the square grids here
NOTHING = np.full((8, 8), np.nan)
LOW, HIGH, NEGATIVE, EQUAL, POSITIVE = AMOUNT[0], AMOUNT[-1], *DIFFERENCE[::5]


def panel(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    top, left = TOP + row * STEP, LEFT + column * STEP
    return picture[top : top + SIDE, left : left + SIDE]


def test_input_forecast_truth_and_difference_stand_side_by_side_and_lead_times_below():
    truth = np.stack([np.linspace(0, 1, 64).reshape(8, 8), np.linspace(0, 3, 64).reshape(8, 8)])
    forecast = truth + np.array([100.0, -100.0])[:, None, None]
    drawn = mosaic(NOTHING, forecast, truth, (12, 24), "ug m-3", False)
    assert drawn.shape == (TOP + 2 * STEP + BELOW, LEFT + 3 * STEP, 3)  # no input is known
    present = np.full((8, 8), -9.0)
    drawn = mosaic(present, forecast, truth, (12, 24), "ug m-3", False)
    assert drawn.shape == (TOP + 3 * STEP + BELOW, LEFT + 3 * STEP, 3) and drawn.dtype == np.uint8
    assert (panel(drawn, 0, 0) == LOW).all()
    assert (panel(drawn, 0, 1) == 255).all() and (panel(drawn, 0, 2) == 255).all()
    assert (panel(drawn, 1, 0) == HIGH).all() and (panel(drawn, 2, 0) == LOW).all()
    assert (panel(drawn, 1, 2) == POSITIVE).all() and (panel(drawn, 2, 2) == NEGATIVE).all()


def test_lead_times_share_one_scale():
    truth = np.stack([np.linspace(0, 10, 64).reshape(8, 8), np.linspace(0, 10, 64).reshape(8, 8)])
    truth[1] = truth[1] / 10 + 4.5  # the same pattern, a tenth of the spread
    drawn = mosaic(NOTHING, truth, truth, (12, 24), "ug m-3", False)
    wide, narrow = (np.unique(panel(drawn, row, 1).reshape(-1, 3), axis=0) for row in (0, 1))
    assert np.ptp(narrow, axis=0).sum() < 0.3 * np.ptp(wide, axis=0).sum()


def test_a_perfect_forecast_has_pale_differences_and_missing_cells_are_grey():
    truth = np.arange(64.0).reshape(1, 8, 8)
    truth[0, 1, 1] = np.nan
    drawn = mosaic(NOTHING, np.nan_to_num(truth), truth, (12,), "ug m-3", False)
    cells = panel(drawn, 0, 2)[6::12, 6::12]
    assert (cells[1, 1] == MISSING).all() and (cells[0] == EQUAL).all()
    assert (panel(drawn, 0, 1)[6::12, 6::12][1, 1] == MISSING).all()


@pytest.mark.parametrize("south_first", [False, True])
def test_north_is_above(south_first: bool):
    south = np.zeros((1, 8, 8))
    south[0, 0] = 1.0  # high values in the south where the first row is the southernmost
    drawn = panel(mosaic(NOTHING, south, south, (12,), "K", south_first), 0, 0)
    top, bottom = tuple(drawn[0, 0].tolist()), tuple(drawn[-1, 0].tolist())
    assert (bottom if south_first else top) == HIGH
    assert top != bottom


def test_without_any_truth_there_is_the_forecast_alone():
    drawn = mosaic(NOTHING, np.zeros((1, 8, 8)), NOTHING[None], (12,), "K", False)
    assert (panel(drawn, 0, 0) == LOW).all()
    assert (panel(drawn, 0, 1) == 255).all() and (panel(drawn, 0, 2) == 255).all()


def test_unit_lead_times_and_scale_are_written(monkeypatch: pytest.MonkeyPatch):
    texts = []
    write = ImageDraw.ImageDraw.text

    def noted(self: ImageDraw.ImageDraw, at: tuple[int, int], text: str, **look: str) -> None:
        texts.append(text)
        write(self, at, text, **look)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    truth = np.zeros((2, 8, 8))
    truth[:, 4:] = 50.0
    mosaic(truth[0], truth, truth, (12, 96), "ug m-3", False)
    assert {"input", "+12 h", "+96 h", "forecast", "truth", "forecast - truth"} <= set(texts)
    assert "0 to 50 ug m-3" in texts and "-25 to 25 ug m-3" in texts
