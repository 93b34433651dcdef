"""What a fresh model starts from: damped persistence, here and where the air comes from, and the
level of the last days."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from aqnet import least_squares
from aqnet.data.dataset import ForecastDataset
from aqnet.trajectories import Trajectories, sample

ITEMS = 512  # evenly spread, that the correlations are fitted on
WIND_ITEMS = 24  # and the speed and turn of what moves the air
FEWEST = 1000  # pairs of values, below which they say nothing of it
# a coarse grid of both, then steps around the best
SPEEDS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
TURNS = (-40.0, -20.0, 0.0, 20.0, 40.0)
STEPS = ((0.25, 10.0), (0.125, 5.0))


class FirstForecast(NamedTuple):
    """A forecast of the change: rho (x - c) + there (x where the air comes from - c) + the sum over
    `data.recent_days` of recent (normalised mean of these days less x).

    Attributes:
        rho: float32, shape [K, T]; 0 where nothing is known.
        there: likewise; None without transport.
        recent: likewise, shape [days, K, T]; None without recent days.
        speed, turn: what moves the air is the wind times `speed`, turned counter-clockwise by
            `turn` degrees.
    """

    rho: Tensor
    there: Tensor | None = None
    recent: Tensor | None = None
    speed: float = 1.0
    turn: float = 0.0

    def __str__(self) -> str:
        return (
            f"what moves the air is {self.speed:g} times the wind of the stores, turned "
            f"{self.turn:+g} degrees (counter-clockwise): fitted on training items"
        )


def fit(dataset: ForecastDataset, device: torch.device) -> FirstForecast:
    """The least-squares fit on evenly spread items, over the cells of the domain in which input and
    target are present; where that of the air's departure is missing, the cell's own stands for it,
    as in the forecast. Every target must be an input.

    With `model.transport`, speed and turn are those of smallest squared differences left by the
    regression on both values, as the geometric mean over lead times and targets. (Those that move
    the field itself best would be too slow: a path too short costs less than a wrong one.)
    """
    paths, hours, data = None, dataset.config.wind_hours, dataset.config.data
    channels = dataset.config.recent_channels
    speed, turn = 1.0, 0.0
    if dataset.config.model.transport != "off":
        paths = Trajectories(dataset.grid, data.lead_times).to(device)
        speed, turn = _fit_wind(dataset, paths, device)
    sums = torch.zeros((), dtype=torch.float64)
    for time, fields, now, later, pair in _items(dataset, ITEMS, device):
        recent = [fields[rows].nan_to_num(0.0) for rows in channels]
        terms = [now, *recent]
        if paths is not None:
            u, v = _wind(dataset, time, device)
            points = paths.departures(u, v, hours, speed, turn)
            moved = sample(now[None], points)[0]
            terms.append(moved.where(moved.isfinite(), now))
        sums = sums + _products([*terms, later], pair)
    found, _ = least_squares.solve(sums.numpy())
    here, *others = torch.from_numpy(found).float().unbind(-1)
    there = None if paths is None else others.pop()
    return FirstForecast(here, there, torch.stack(others) if others else None, speed, turn)


def _fit_wind(
    dataset: ForecastDataset, paths: Trajectories, device: torch.device
) -> tuple[float, float]:
    """Speed and turn; 1 and 0 where no air comes from within the domain."""
    candidates = list(itertools.product(SPEEDS, TURNS))
    best = (1.0, 0.0)
    for step in (*STEPS, None):
        left = _left(dataset, paths, candidates, device)
        if bool(left.isnan().all()):
            return 1.0, 0.0
        best = candidates[int(left.argmin())]
        if step is not None:
            around = itertools.product((-1, 0, 1), repeat=2)
            candidates = [(best[0] + a * step[0], best[1] + b * step[1]) for a, b in around]
    return best


def _left(
    dataset: ForecastDataset,
    paths: Trajectories,
    candidates: list[tuple[float, float]],
    device: torch.device,
) -> Tensor:
    """Of each candidate, mean over lead times and targets of the logarithm of what the regression
    leaves; over the cells to which the air comes from cells with a value with any of them."""
    speed, turn = torch.tensor(candidates, device=device).unbind(1)
    sums = torch.zeros((), dtype=torch.float64)
    count = torch.zeros((), dtype=torch.int64)
    for time, _, now, later, pair in _items(dataset, WIND_ITEMS, device):
        wind = _wind(dataset, time, device)
        u, v = (part.expand(len(candidates), -1, -1, -1) for part in wind)
        points = paths.departures(u, v, dataset.config.wind_hours, speed, turn)
        moved = sample(now.expand(len(candidates), -1, -1, -1), points)
        known = pair & moved.isfinite().all(dim=0)
        sums = sums + _products([now, moved, later], known)
        count = count + known.sum(dim=(-2, -1)).cpu()
    left = torch.from_numpy(least_squares.solve(sums.numpy())[1])
    return torch.where(count >= FEWEST, left.log(), torch.nan).flatten(1).nanmean(dim=1)


def _items(
    dataset: ForecastDataset, number: int, device: torch.device
) -> Iterator[tuple[int, Tensor, Tensor, Tensor, Tensor]]:
    """Evenly spread items: the input time, all inputs [V, H, W], its targets [T, H, W] and the
    later ones [K, T, H, W], normalised, and where both are known."""
    data = dataset.config.data
    channels = [data.variables.index(name) for name in data.targets]
    few = dataset.thinned(number)
    for item, time in enumerate(few.times.tolist()):
        batch = few[item].to(device)
        now = batch.fields[channels]
        yield time, batch.fields, now, batch.targets, batch.mask & now.isfinite()


def _wind(dataset: ForecastDataset, time: int, device: torch.device) -> Tensor:
    """Eastward and northward at the hours that the model knows, m/s, [2, 1, N, H, W]."""
    hours = dataset.config.wind_hours
    missing = np.full((2, *dataset.grid.shape), np.nan, np.float32)
    winds = [dataset.reader.wind(time + hour) for hour in hours]
    present = [missing if wind is None else wind for wind in winds]
    return torch.from_numpy(np.stack(present, axis=1))[:, None].to(device)


def _products(fields: Sequence[Tensor], known: Tensor) -> Tensor:
    """Sums over cells of the products of every two of F fields, float64 on the CPU, shape
    [..., K, T, F, F]."""
    parts = [torch.where(known, field, 0.0).double() for field in fields]
    sums = [(a * b).sum(dim=(-2, -1)) for a in parts for b in parts]
    found = torch.stack(torch.broadcast_tensors(*sums), dim=-1)
    return found.unflatten(-1, (len(fields), len(fields))).cpu()
