"""The embedded world through prepare, and what prepare refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from aqnet import config as configs
from aqnet.data import statistics, synthetic
from aqnet.data.prepare.run import _alone, prepare
from aqnet.data.stores import store
from aqnet.errors import AqnetError
from tests.data.source_writers import CONFIG, fields, hours, write_zarr


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    synthetic.write_year(folder, synthetic.World(8, 16), 2015, 0)
    return folder


def load(world: Path, output: Path, **data: Any) -> configs.Config:
    shipped = Path(__file__).parents[3] / "configs/demo.yaml"
    tree = configs.to_dict(configs.load(shipped))
    split = {"train": ["2015-01"], "validation": ["2015-02"], "test": ["2015-03"]}
    tree["data"] |= {"sources": [{"path": f"{world}/*.zarr"}], "stores": str(output)}
    tree["data"] |= {"split": split, **data}
    return configs.from_dict(tree, "here")


def test_stores_hold_what_the_source_holds(world: Path, tmp_path: Path):
    config = load(world, tmp_path)
    prepare(config)
    made = store.open_store(tmp_path / "2015.zarr")
    source = zarr.open_group(world / "data_2015_china_masked.zarr", mode="r")
    row = 100
    expected = np.asarray(source["pm25"][row])  # type: ignore[index]
    np.testing.assert_allclose(made.read(row)[made.names.index("pm25")], expected, rtol=1e-6)
    np.testing.assert_array_equal(made.grid.mask.numpy(), np.isfinite(expected))
    assert statistics.read(config, [made]).of(("temp",))[0].item() > 200

    before = (tmp_path / "2015.zarr/zarr.json").stat().st_mtime_ns
    prepare(config)  # a second time changes nothing
    assert (tmp_path / "2015.zarr/zarr.json").stat().st_mtime_ns == before


def test_years_written_one_by_one_are_those_written_together(tmp_path: Path):
    for year in (2013, 2014, 2015):
        path = tmp_path / f"sources/data_{year}_china_masked.zarr"
        write_zarr(path, hours(year, 60), fields(60, year))

    def folder(name: str) -> configs.Config:
        data = {"sources": [{"path": f"{tmp_path}/sources/*"}], "stores": str(tmp_path / name)}
        return configs.from_dict({**CONFIG, "data": CONFIG["data"] | data}, "here")

    whole, parts = folder("whole"), folder("parts")
    prepare(whole)
    with _alone(tmp_path / "parts", [2014]):
        prepare(parts, only=[2013])
        prepare(parts, only=[2015])
        with pytest.raises(AqnetError, match="another prepare"):
            prepare(parts, only=[2014])
        with pytest.raises(AqnetError, match="another prepare"):
            prepare(parts)
    prepare(parts, only=[2014])
    assert not (tmp_path / "parts/statistics.json").exists()
    prepare(parts)
    for name in ("2013.zarr", "2014.zarr", "2015.zarr"):
        made = [store.open_store(tmp_path / folder / name) for folder in ("whole", "parts")]
        assert made[0].checksum == made[1].checksum
    results = [
        (tmp_path / folder / "statistics.json").read_bytes() for folder in ("whole", "parts")
    ]
    assert results[0] == results[1]
    prepare(parts, only=[2013, 2013])
    with pytest.raises(AqnetError, match="2012 is not in data"):
        prepare(parts, only=[2012])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"sources": [{"path": "nowhere/*.zarr"}]}, "nowhere"),
        ({"split": {"train": ["2014"], "validation": ["2015"], "test": ["2015"]}}, "2014"),
    ],
)
def test_missing_input_is_named_and_nothing_is_written(
    world: Path, tmp_path: Path, data: dict[str, Any], words: str
):
    with pytest.raises(AqnetError, match=words):
        prepare(load(world, tmp_path / "stores", **data))
    assert not list(tmp_path.rglob("*.zarr"))
