"""What the air carries: the value where the air that arrives in a cell is at the input time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aqnet import least_squares
from aqnet.grid import Grid
from aqnet.trajectories import Trajectories, sample

Values = NDArray[np.float64]
Fields = NDArray[np.float32]
# what moves the air is faster than the stored wind, and turned: where this is looked for
SLOWEST = 0.5  # times the stored wind
SPEEDS = SLOWEST * np.arange(1, 7)
PIECES = 12  # of a path that is drawn
TURNS = np.arange(-40.0, 41.0, 10.0)  # degrees, counter-clockwise


class Observed(NamedTuple):
    """What is known at an input time in physical units, NaN where missing.

    Attributes:
        targets: float32, shape [T, H, W].
        wind: eastward and northward wind in m/s, float32, shape [2, H, W]; None where none is
            stored.
        recent: means of the targets over the last days before, float32, shape [days, T, H, W].
    """

    targets: Fields
    wind: Fields | None
    recent: Fields


Read = Callable[[int], Observed]
Truth = Callable[[int], Fields]  # of an hour, the targets [T, H, W] alone


class Air:
    """Where the air of each cell and lead time is at the input time, its wind being held.

    Attributes:
        speed: factor of the stored wind; turn: degrees counter-clockwise of it, shape [K].
    """

    def __init__(
        self,
        grid: Grid,
        lead_times: Sequence[int],
        speed: NDArray[np.floating],
        turn: NDArray[np.floating],
    ) -> None:
        self.speed, self.turn = speed, turn
        self._grid, self._lead_times = grid, tuple(lead_times)
        self._whole = Trajectories(grid, lead_times)

    def moved(self, values: Fields, wind: Fields) -> Values:
        """Values [T, H, W] of the input time that its wind [2, H, W] in m/s carries to the N cells
        of the domain by each lead time, [K, T, N]; NaN where the air comes from has none."""
        own = range(len(self.speed))
        u, v = (part[None, None].expand(len(own), 1, -1, -1) for part in torch.from_numpy(wind))
        speed, turn = (torch.from_numpy(part).float() for part in (self.speed, self.turn))
        points = self._whole.departures(u, v, speed=speed, turn=turn)
        return _read(values, points[own, own], self._grid.mask)

    def paths(self, wind: Fields, row: int, column: int) -> list[Values]:
        """Where the air that arrives in a cell by each lead time was before: rows and columns from
        the cell back to the place at the input time, a twelfth of the lead time apart [P, 2]."""
        u, v = torch.from_numpy(wind)[:, None, None]
        found = []
        for number, lead in enumerate(self._lead_times):
            hours = np.unique(np.linspace(0, lead, PIECES + 1).round().astype(int))[1:]
            speed, turn = float(self.speed[number]), float(self.turn[number])
            points = Trajectories(self._grid, hours.tolist()).departures(
                u, v, speed=speed, turn=turn
            )[0, :, :, row, column]
            found.append(np.concatenate([[(row, column)], points.double().numpy()]))
        return found


def fit(
    times: NDArray[np.int64],
    read: Read,
    truth: Truth,
    grid: Grid,
    lead_times: Sequence[int],
) -> Air:
    """The air whose values, beside those in the cell itself, say most about the values to come.

    Speed and turn are the pair of SPEEDS and TURNS, per lead time, that leaves the smallest squared
    differences in y = a + b x + c x(moved), as the geometric mean over the targets. (Those of
    smallest difference between y and x(moved) would be too slow: a path too short costs less than
    one in a wrong direction.) Where air comes from outside the domain x stands for x(moved), so
    that all pairs are judged by the same cells.

    Args:
        times: input times, hours since 1970 UTC.
        read: gives what is known at an input time, the wind as well; truth: the targets of an hour.
    """
    # a path at n times the slowest speed is the slowest path to n times the lead time
    multiples = np.arange(1, len(SPEEDS) + 1)[:, None] * np.array(lead_times)
    hours = np.unique(multiples)
    paths = Trajectories(grid, hours.tolist())
    place = np.searchsorted(hours, multiples).flatten()
    mask = grid.mask.numpy()

    def products(time: int) -> Values:
        values, wind, _ = read(time)
        assert wind is not None
        u, v = torch.from_numpy(wind)[:, None, None]
        here = values[:, mask].astype(np.float64)
        later = np.stack([truth(time + lead)[:, mask] for lead in lead_times])
        sums = []
        for turn in TURNS.tolist():
            points = paths.departures(u, v, speed=SLOWEST, turn=turn)[0, place]
            moved = _read(values, points, grid.mask).reshape(*multiples.shape, *here.shape)
            moved = np.where(np.isfinite(moved), moved, here)  # as in the forecast
            sums.append(least_squares.products(np.ones(1), here, moved, later))
        return np.stack(sums)

    _, left = least_squares.solve(least_squares.summed(times, products))  # [turns, speeds, K, T]
    score = np.log(np.maximum(left, np.finfo(float).tiny)).sum(axis=-1)
    best = score.reshape(-1, len(lead_times)).argmin(axis=0)
    turn, speed = np.unravel_index(best, score.shape[:2])
    return Air(grid, lead_times, SPEEDS[speed], TURNS[turn])


def _read(values: Fields, points: Tensor, mask: Tensor) -> Values:
    """The domain's values [T, H, W] at points [P, 2, H, W] of its cells, shape [P, T, N]."""
    inside = torch.from_numpy(values).where(mask, torch.nan)
    found = sample(inside[None], points[None, ..., mask].unsqueeze(3))[0, :, :, 0]
    return found.double().numpy()
