"""Source files read as the stores made from them are."""

import copy
from pathlib import Path

import numpy as np
import pytest

from aqnet import config as configs
from aqnet.data.on_grid.analysis import Analysis
from aqnet.data.prepare.run import prepare
from aqnet.data.stores.layout import Layout
from aqnet.data.stores.record import TimeIndex, open_stores
from aqnet.data.stores.store import open_store
from aqnet.errors import AqnetError
from tests.data.source_writers import CONFIG, LAT, fields, hours, write_zarr

COUNT = 100


@pytest.fixture
def config(tmp_path: Path) -> configs.Config:
    """Stores of targets, of an input that is none, and of weather that is no other input."""
    for year in (2013, 2014, 2015):
        values = fields(COUNT, year)
        values |= {"co": 7 * values["o3"], "no2": values["pm25"] + 1}
        write_zarr(tmp_path / f"{year}.zarr", hours(year, COUNT), values)
    tree = copy.deepcopy(CONFIG)
    tree["data"] |= {  # type: ignore[operator]
        "sources": [{"path": f"{tmp_path}/*.zarr"}],
        "stores": str(tmp_path / "stores"),
        "variables": ["pm25", "co", "o3", "elevation"],
        "weather": ["no2"],
        "weather_hours": [6, 12],
        "recent_days": [1, 2],
    }
    return configs.from_dict(tree, "here")


def test_weather_that_is_no_other_input_is_stored(config: configs.Config):
    prepare(config)
    store = open_store(Path(config.data.stores) / "2013.zarr")
    assert store.channels == {"weather": ("co", "no2"), "air": ("pm25", "o3")}
    expected = fields(COUNT, 2013)
    np.testing.assert_allclose(store.read(70, "weather")[1], expected["pm25"][70] + 1)
    prepare(config)  # a second time changes nothing


def test_an_analysis_reads_what_the_stores_hold(config: configs.Config):
    prepare(config)
    stores = open_stores(config)
    index, layout = TimeIndex(stores), Layout.of(stores[0])
    found = Analysis(config.data.sources[0].path, config, layout)
    hour = int(hours(2014, COUNT)[75])
    np.testing.assert_array_equal(found.read(hour, "air"), index.read(hour, "air"))
    weather, stored = found.read(hour, "weather"), index.read(hour, "weather")
    assert weather is not None and stored is not None
    np.testing.assert_array_equal(weather[0], stored[0])
    assert np.isnan(weather[1]).all()  # files need not hold it where other weather is given
    with_weather = Analysis(config.data.sources[0].path, config, layout, weather=True)
    np.testing.assert_array_equal(with_weather.read(hour, "weather"), stored)
    assert found.read(hour - 100, "air") is None
    for at in (hour, int(hours(2014, COUNT)[30]), int(hours(2014, COUNT)[3])):
        ours, theirs = found.recent(at, (1, 2)), index.recent(at, (1, 2))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert np.isfinite(found.recent(hour, (1, 2))).any()


def test_an_analysis_on_another_grid_is_refused(config: configs.Config, tmp_path: Path):
    prepare(config)
    layout = Layout.of(open_stores(config)[0])
    write_zarr(tmp_path / "moved/2014.zarr", hours(2014, 3), fields(3), lat=LAT + 0.5)
    with pytest.raises(AqnetError, match=r"lies on 3 x 4 cells from 30\.500 to 32\.500 N"):
        Analysis(f"{tmp_path}/moved/*.zarr", config, layout)
