"""Whose air the report follows."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from aqnet.evaluation.baselines import Observed
from aqnet.evaluation.baselines.transport import Air
from aqnet.evaluation.report.pictures import air_paths
from aqnet.grid import Grid

LAT, LON = torch.meshgrid(
    torch.linspace(30.0, 31.1, 12, dtype=torch.float64),
    torch.linspace(100.0, 101.5, 16, dtype=torch.float64),
    indexing="ij",
)
MASK = torch.ones(12, 16, dtype=torch.bool)
MASK[:2] = False
TIME = 400_000


def scorer(wind: tuple[float, float] | None) -> Any:
    """What the picture asks of a scorer: the highest mean of PM2.5 is in row 6, column 11."""
    values = np.random.default_rng(0).normal(size=(2, 12, 16)).astype(np.float32)
    stored = None if wind is None else np.full((2, 12, 16), 0.0, np.float32)
    if stored is not None:
        stored[0], stored[1] = wind
    means = np.zeros((2, 12, 16))
    means[0, 3, 3] = 9.0  # of another target
    means[1, 6, 11], means[1, 0, 0] = 5.0, 8.0  # and outside the domain
    mask = MASK.numpy()
    air = Air(Grid(LAT, LON, None, MASK), (3, 6), np.ones(2), np.zeros(2))
    return SimpleNamespace(
        baselines=SimpleNamespace(
            air=air, climatology=SimpleNamespace(mean=lambda target: means[target][mask])
        ),
        observed=lambda time: Observed(values, stored, values[None]) if time == TIME else None,
        config=SimpleNamespace(data=SimpleNamespace(targets=("o3", "pm25"))),
        cells=mask,
    )


def test_it_is_the_air_over_the_cell_of_highest_mean_of_pm25_at_the_examples_time():
    scored, example = scorer((1.0, 0.0)), cast(Any, SimpleNamespace(time=TIME))
    origin = air_paths.of(scored, example)
    assert origin is not None and origin.example is example
    assert (origin.target, origin.row, origin.column) == (1, 6, 11)
    for path, hours in zip(origin.paths, (3, 6), strict=True):
        assert path[0].tolist() == [6.0, 11.0]
        east = -hours * 3600 / (np.radians(0.1) * 6_371_000 * np.cos(np.radians(float(LAT[6, 0]))))
        np.testing.assert_allclose(path[-1], [6.0, 11.0 + east], atol=0.02)
    row, at = origin.observed.targets[1, 6], origin.paths[1][-1, 1]
    expected = np.interp(at, np.arange(16), row)
    np.testing.assert_allclose(origin.moved[1], expected, atol=0.02)


def test_without_stored_wind_there_is_none():
    assert air_paths.of(scorer(None), cast(Any, SimpleNamespace(time=TIME))) is None
