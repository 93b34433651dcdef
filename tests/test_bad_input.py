"""What a user can get wrong: one line that names it, exit status 2, and nothing overwritten."""

import copy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr

import train
from aqnet import errors
from aqnet.data.prepare import run as prepare
from aqnet.data.synthetic import World, write_year

HOURS = 120
SPLIT = {
    "train": ["2015-01-01/2015-01-02"],
    "validation": ["2015-01-03/2015-01-05"],
    "test": ["2016-01-01/2016-01-05"],
}
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for year in (2015, 2016):
        write_year(folder, World(6, 8), year, 0, HOURS)
    return folder


@pytest.fixture
def case(tiny: dict[str, Any], sources: Path, tmp_path: Path) -> dict[str, Any]:
    """A good config over a copy of two short years of sources, to be spoiled."""
    shutil.copytree(sources, tmp_path / "sources")
    tree = copy.deepcopy(tiny)
    tree["run_dir"] = str(tmp_path / "run")
    tree["data"] |= {"stores": str(tmp_path / "stores"), "split": SPLIT, "lead_times": [3, 6]}
    tree["data"]["sources"] = [{"path": str(tmp_path / "sources/data_*_china_masked.zarr")}]
    return tree


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """Run a command's `main`; expect status 2, and return the one line that it says."""

    def run(main: Callable[[], Any], tree: dict[str, Any] | Path) -> str:
        path = tree if isinstance(tree, Path) else tmp_path / "case.yaml"
        if not isinstance(tree, Path):
            path.write_text(yaml.safe_dump(tree))
        monkeypatch.setattr(sys, "argv", ["command", "--config", str(path)])
        with pytest.raises(SystemExit) as ended:
            errors.run(main)
        said = capsys.readouterr().err.strip()
        assert ended.value.code == 2, said
        assert len(said.splitlines()) == 1, said
        return said

    return run


def year_of(case: dict[str, Any], year: int) -> zarr.Group:
    folder = Path(case["data"]["sources"][0]["path"]).parent
    return zarr.open_group(folder / f"data_{year}_china_masked.zarr", mode="r+")


def array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    found = group[name]
    assert isinstance(found, zarr.Array)
    return found


@pytest.mark.parametrize("main", [train.main, prepare.main])
def test_missing_config(refused: Refused, main: Callable[[], Any]) -> None:
    assert "no/such.yaml" in refused(main, Path("no/such.yaml"))


def test_unknown_key_names_the_nearest(refused: Refused, case: dict[str, Any]) -> None:
    case["train"]["learning_rat"] = 1e-3
    assert "'train.learning_rate'" in refused(train.main, case)


def test_wrong_type(refused: Refused, case: dict[str, Any]) -> None:
    case["train"]["max_steps"] = "many"
    assert "train.max_steps is 'many'; expected a whole number" in refused(train.main, case)


def test_store_of_a_year_missing(refused: Refused, case: dict[str, Any]) -> None:
    said = refused(train.main, case)
    assert "2015.zarr" in said and "aqnet.data.prepare" in said


def test_source_of_a_year_missing(refused: Refused, case: dict[str, Any], tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "sources/data_2016_china_masked.zarr")
    assert "2016" in refused(prepare.main, case)
    assert not list(tmp_path.glob("stores/*.zarr"))


def test_variable_missing(refused: Refused, case: dict[str, Any], tmp_path: Path) -> None:
    del year_of(case, 2016)["so2"]
    said = refused(prepare.main, case)
    assert "data_2016_china_masked.zarr" in said and "'so2'" in said
    assert not list(tmp_path.glob("stores/*.zarr"))


def test_grid_that_differs_between_years(
    refused: Refused, case: dict[str, Any], tmp_path: Path
) -> None:
    write_year(tmp_path / "sources", World(6, 10), 2016, 0, HOURS)
    said = refused(prepare.main, case)
    assert "(6, 10)" in said and "(6, 8)" in said


@pytest.mark.parametrize(("what", "row"), [("unsorted", 40), ("duplicated", 49)])
def test_times_out_of_order(refused: Refused, case: dict[str, Any], what: str, row: int) -> None:
    time = array(year_of(case, 2015), "time")
    time[50] = np.asarray(time[row])
    said = refused(prepare.main, case)
    assert what in said and "data_2015_china_masked.zarr" in said


def test_units_not_understood(refused: Refused, case: dict[str, Any]) -> None:
    array(year_of(case, 2015), "co").attrs["units"] = "furlongs"
    said = refused(prepare.main, case)
    assert "'co'" in said and "'furlongs'" in said and "data.units.co" in said


def test_no_valid_cell(refused: Refused, case: dict[str, Any], tmp_path: Path) -> None:
    for year in (2015, 2016):
        for name in case["data"]["targets"]:
            array(year_of(case, year), name)[...] = np.nan
    said = refused(prepare.main, case)
    assert "no cell" in said or "no valid cell" in said
    assert not list(tmp_path.glob("stores/*.zarr"))


def test_lead_time_longer_than_the_record(
    refused: Refused, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prepare_once(case, tmp_path, monkeypatch)
    case["data"]["lead_times"] = [24 * 400]
    said = refused(train.main, case)
    assert "data.split.train" in said and "[9600]" in said
    assert not (tmp_path / "run/checkpoints").exists()


def test_directory_of_another_run(
    refused: Refused, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prepare_once(case, tmp_path, monkeypatch)
    kept = tmp_path / "run/config.yaml"
    kept.parent.mkdir()
    kept.write_text(yaml.safe_dump({**case, "seed": 7}))
    before = kept.read_bytes()
    assert "seed (7 -> 0)" in refused(train.main, case)
    assert kept.read_bytes() == before


def test_stores_made_of_another_source(
    refused: Refused, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prepare_once(case, tmp_path, monkeypatch)
    before = {path: path.read_bytes() for path in tmp_path.glob("stores/*.zarr/zarr.json")}
    write_year(tmp_path / "sources", World(6, 8), 2015, 1, HOURS + 24)
    said = refused(prepare.main, case)
    assert "2015.zarr" in said
    assert before == {path: path.read_bytes() for path in before}


def prepare_once(case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(yaml.safe_dump(case))
    monkeypatch.setattr(sys, "argv", ["prepare", "--config", str(path)])
    prepare.main()
