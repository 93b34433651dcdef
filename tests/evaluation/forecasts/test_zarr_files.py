"""forecasts.zarr: CF metadata, opened by xarray; ranks share no chunk."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray

from aqnet.batch import Batch, Forecast
from aqnet.evaluation.forecasts import zarr_files as forecasts
from aqnet.grid import Grid
from tests.evaluation.test_scorer import CONFIG, FIRST, GRID, LEADS, MASK, SHAPE, STATISTICS, UNITS

CURVED = Grid(GRID.lat + 0.1 * GRID.lon, GRID.lon - 0.2 * GRID.lat, None, MASK)
TIMES = np.array([FIRST, FIRST + 6, FIRST + 18])


def batch(*times: int) -> Batch:
    empty = torch.zeros(len(times))
    return Batch(empty, torch.tensor(times), torch.tensor([LEADS] * len(times)), empty, empty)


def values(*times: int) -> torch.Tensor:
    return torch.stack([torch.full((2, 2, *SHAPE), float(time - FIRST)) for time in times])


@pytest.mark.parametrize("grid", [GRID, CURVED], ids=["degrees", "projected"])
def test_xarray_opens_what_two_ranks_wrote(grid: Grid, tmp_path: Path):
    path = tmp_path / "forecasts.zarr"
    forecasts.create(path, TIMES, CONFIG, grid, UNITS)
    first, second = (forecasts.Writer(path, TIMES, CONFIG, grid, STATISTICS) for _ in range(2))
    times = FIRST + 18, FIRST + 24  # one is not wanted
    second.write(batch(*times), Forecast(values(*times)))
    first.write(batch(FIRST, FIRST + 6), Forecast(values(FIRST, FIRST + 6)))
    assert not path.exists()
    forecasts.commit(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = xarray.open_zarr(path, decode_timedelta=False)
    assert (
        found.time.values.tolist()
        == TIMES.astype("datetime64[h]").astype("datetime64[ns]").tolist()
    )
    assert found.time.attrs["standard_name"] == "forecast_reference_time"
    assert found.lead_time.values.tolist() == list(LEADS)
    assert found.lead_time.attrs == {"standard_name": "forecast_period", "units": "hours"}
    assert set(found.data_vars) == {"pm25", "no2"}
    assert found.pm25.attrs["units"] == "ug m-3"
    assert found.pm25.dims[:2] == ("time", "lead_time")
    assert found.pm25.encoding["chunks"] == (1, len(LEADS), *SHAPE)
    lat, lon = (
        np.broadcast_arrays(found.lat, found.lon)
        if grid is CURVED
        else np.meshgrid(found.lat, found.lon, indexing="ij")
    )
    np.testing.assert_array_equal(lat, grid.lat)
    np.testing.assert_array_equal(lon, grid.lon)
    assert {"lat", "lon"} <= set(found.pm25.coords)
    expected = np.where(MASK, (TIMES - FIRST)[:, None, None] * 30.0 + 60.0, np.nan)
    for lead in range(len(LEADS)):
        np.testing.assert_array_equal(found.pm25.values[:, lead], expected)


def test_an_older_store_is_replaced_only_by_a_whole_one(tmp_path: Path):
    path = tmp_path / "forecasts.zarr"
    for times in (TIMES, TIMES[:1]):
        forecasts.create(path, times, CONFIG, GRID, UNITS)
        assert path.exists() == (times is not TIMES)
        forecasts.commit(path)
    assert xarray.open_zarr(path).sizes["time"] == 1


def test_forecast_made_elsewhere_is_regridded_and_knows_what_it_covers():
    lat, lon = np.meshgrid([20.0, 45.0], [99.0, 101.5], indexing="ij")

    def read(time: int, leads: tuple[int, ...]) -> np.ndarray:
        return np.broadcast_to(lat + lon, (len(leads), 2, 2, 2)) + time

    other = forecasts.ExternalForecast("cams", read, (lat, lon), CONFIG, GRID)
    inside = (GRID.lat <= 45 + 12.5) & (GRID.lon <= 101.5 + 1.25)  # half a cell beyond counts
    assert other.coverage == pytest.approx(inside[MASK].double().mean().item())
    found = other.forecast(1000)
    expected = np.minimum(GRID.lat.numpy(), 45) + np.minimum(GRID.lon.numpy(), 101.5) + 1000
    expected = np.where(inside, expected, np.nan)[MASK]
    np.testing.assert_allclose(found, np.broadcast_to(expected, (2, 2, len(expected))))
