"""What a fresh model starts from, against loops over cells and against air that moves as known."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from aqnet import config as configs
from aqnet.batch import Batch
from aqnet.data import first_forecast
from aqnet.data.dataset import ForecastDataset
from aqnet.grid import Grid
from aqnet.trajectories import Trajectories, sample
from tests.data.test_dataset import STATISTICS, normalised
from tests.data.worlds import config, grid, samples, write_both

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stores = tmp_path_factory.mktemp("stores")
    write_both(stores)
    return stores


def test_rho_without_transport_equals_a_loop_over_cells(folder: Path):
    train = samples(config(folder), "train", STATISTICS)
    first = first_forecast.fit(train, CPU)
    assert first.there is None and (first.speed, first.turn) == (1.0, 0.0)
    for k, lead in enumerate((3, 24)):
        for t, name in enumerate(("o3", "pm25")):
            top = bottom = 0.0
            for time in train.times.tolist():
                now, later = normalised(name, time), normalised(name, time + lead)
                for y, x in zip(*np.nonzero(grid().mask.numpy()), strict=True):
                    if np.isfinite(now[y, x]) and np.isfinite(later[y, x]):
                        top += now[y, x] * later[y, x]
                        bottom += now[y, x] ** 2
            assert first.rho[k, t].item() == pytest.approx(top / bottom, rel=1e-5, abs=1e-6)


def test_means_of_the_last_days_are_further_terms(folder: Path):
    settings = config(folder, recent_days=[1, 2])
    train = samples(settings, "train", STATISTICS)
    first = first_forecast.fit(train, CPU)
    channels = [settings.input_variables.index(name) for name in ("o3", "o3@mean1d", "o3@mean2d")]
    sums = np.zeros((3, 3)), np.zeros(3)
    for item in range(len(train)):
        batch = train[item]
        known = (batch.mask[1, 0] & batch.fields[channels[0]].isfinite()).numpy()
        terms = batch.fields[channels].nan_to_num(0.0).double().numpy()[:, known]
        sums[0][:] += terms @ terms.T
        sums[1][:] += terms @ batch.targets[1, 0].double().numpy()[known]
    expected = np.linalg.solve(*sums)
    assert first.recent is not None and first.there is None
    found = [first.rho[1, 0].item(), *first.recent[:, 1, 0].tolist()]
    assert found == pytest.approx(expected.tolist(), rel=1e-3)
    assert min(np.abs(expected)) > 1e-3


def test_rho_is_zero_where_there_is_no_pair(folder: Path):
    split = {"train": [2015], "validation": ["2016-01-02"], "test": ["2016-01-03/2016-12-31"]}
    settings = config(folder, lead_times=[3, 24 * 100], split=split)  # the record ends before
    test = samples(settings, "test", STATISTICS)
    rho = first_forecast.fit(test, CPU).rho
    assert rho[1].tolist() == [0.0, 0.0]
    assert (rho[0] != 0).all()


class MovingAir:
    """A dataset of random fields of which a known wind brings half, and a third stays."""

    def __init__(self, speed: float, turn: float, mask: NDArray[np.bool_] | None = None) -> None:
        height, width = 24, 36
        lat = torch.linspace(20, 50, height, dtype=torch.float64)[:, None].expand(height, width)
        lon = torch.linspace(80, 125, width, dtype=torch.float64).expand(height, width)
        inside = torch.ones(height, width, dtype=torch.bool) if mask is None else mask
        self.grid = Grid(lat, lon, None, torch.as_tensor(inside))
        tree = configs.to_dict(config(Path("nowhere"), lead_times=[6, 12]))
        tree["data"]["variables"] += ["u", "v"]
        tree["model"] |= {"transport": "wind", "terrain": {"enabled": False}}
        self.config = configs.from_dict(tree, "test")
        self.times = np.arange(8)
        self.reader = SimpleNamespace(wind=self.wind)
        self.speed, self.turn = speed, turn

    def thinned(self, _: int) -> "MovingAir":
        return self

    def wind(self, time: int) -> NDArray[np.float32]:
        phase = torch.deg2rad(6 * self.grid.lat + 40 * time), torch.deg2rad(5 * self.grid.lon)
        u, v = 10 * torch.sin(phase[0]) + 3, 8 * torch.cos(phase[1] + time)
        return torch.stack([u, v]).float().numpy()

    def __getitem__(self, item: int) -> Batch:
        generator = torch.Generator().manual_seed(item)
        noise = torch.randn(1, 7, *self.grid.shape, generator=generator)
        fields = 3 * torch.nn.functional.avg_pool2d(noise, 5, 1, 2)[0]
        fields[:, ~self.grid.mask] = torch.nan
        now = fields[[4, 0]]  # o3, pm25
        u, v = torch.from_numpy(self.wind(item))[:, None, None]
        paths = Trajectories(self.grid, [6, 12])
        moved = sample(now[None], paths.departures(u, v, speed=self.speed, turn=self.turn))[0]
        targets = 0.3 * now + 0.5 * moved
        leads = torch.tensor([6, 12])
        return Batch(fields, torch.tensor(item), leads, targets, targets.isfinite())


def fitted(air: Any) -> first_forecast.FirstForecast:
    return first_forecast.fit(cast(ForecastDataset, air), CPU)


@pytest.mark.parametrize(("speed", "turn"), [(1.5, -20.0), (0.75, 15.0), (1.0, 0.0)])
def test_speed_and_turn_of_what_moves_the_air_are_found(speed: float, turn: float):
    first = fitted(MovingAir(speed, turn))
    assert (first.speed, first.turn) == (speed, turn)
    assert first.there is not None
    assert torch.allclose(first.rho, torch.tensor(0.3), atol=1e-3)
    assert torch.allclose(first.there, torch.tensor(0.5), atol=1e-3)
    assert f"{speed:g} times" in str(first) and f"{turn:+g} degrees" in str(first)


def test_the_cells_own_value_stands_for_a_missing_one_of_the_departure():
    mask = np.zeros((24, 36), np.bool_)
    mask[6:18, 8:28] = True
    air = MovingAir(1.0, 0.0, mask)
    first = fitted(air)
    sums = np.zeros((2, 2)), np.zeros(2)
    paths = Trajectories(air.grid, [6, 12])
    for item in range(8):
        batch = air[item]
        u, v = torch.from_numpy(air.wind(item))[:, None, None]
        moved = sample(
            batch.fields[None, [4]], paths.departures(u, v, speed=first.speed, turn=first.turn)
        )[0, 1, 0]
        moved = moved.where(moved.isfinite(), batch.fields[4])
        known = batch.mask[1, 0]
        terms = torch.stack([batch.fields[4][known], moved[known]]).double().numpy()
        sums[0][:] += terms @ terms.T
        sums[1][:] += terms @ batch.targets[1, 0][known].double().numpy()
    expected = np.linalg.solve(*sums)
    assert first.there is not None
    found = [first.rho[1, 0].item(), first.there[1, 0].item()]
    assert found == pytest.approx(expected.tolist(), rel=1e-4)


def test_where_no_air_comes_from_within_the_domain_the_wind_is_taken_as_it_is():
    mask = np.zeros((24, 36), np.bool_)
    mask[10, 10] = True
    first = fitted(MovingAir(1.0, 0.0, mask))
    assert (first.speed, first.turn) == (1.0, 0.0)
    assert first.there is not None and math.isfinite(first.there.sum().item())
