"""evaluate.py --weather: the same checkpoint scored, and forecasting, with each kind of weather."""

import csv
import html
import json
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import torch
import zarr

import evaluate
from aqnet.data.stores.store import open_store
from aqnet.data.weather import STORED
from aqnet.errors import AqnetError
from aqnet.evaluation import daily_sums
from aqnet.evaluation.options import check, command_line
from aqnet.evaluation.report import results
from aqnet.evaluation.report.pictures import pictures
from aqnet.evaluation.studies import compare
from tests.conftest import SPLIT
from tests.data.worlds import hour
from tests.test_train import command, complete

NAMES = {"u": "u10", "v": "v10", "temp": "t2m"}
FIRST, INPUT = SPLIT["test"][0][:10], "2015-01-24T06"


@pytest.fixture(scope="module")
def tree(tiny: dict[str, Any]) -> dict[str, Any]:
    """A model that is given winds and temperature 6 and 24 h ahead."""
    more = {"weather": list(NAMES), "weather_hours": [6, 24]}
    train = {**tiny["train"], "max_steps": 2}
    return {**tiny, "data": {**tiny["data"], **more}, "train": train}


@pytest.fixture(scope="module")
def trained(tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("weather") / "run"
    complete(command(tree, run_dir, 1))
    return run_dir


@pytest.fixture(scope="module")
def files(tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A perfect forecast of 200 h from the first hour of the test split: what the stores hold."""
    path = tmp_path_factory.mktemp("files") / "perfect.nc"
    store = open_store(Path(tree["data"]["stores"]) / "2015.zarr")
    start = int(np.searchsorted(store.time, hour(FIRST)))
    values = np.stack([store.read(start + lead, "weather") for lead in range(200)])
    with netCDF4.Dataset(path, "w") as file:
        lat, lon = store.grid.lat.numpy()[:, 0], store.grid.lon.numpy()[0]
        for name, size in (("step", 200), ("latitude", len(lat)), ("longitude", len(lon))):
            file.createDimension(name, size)
        for name, data, unit in (
            ("step", np.arange(200), "hours"),
            ("latitude", lat, "degrees_north"),
            ("longitude", lon, "degrees_east"),
        ):
            variable = file.createVariable(name, "f8", (name,))
            variable.units, variable[...] = unit, data
        variable = file.createVariable("time", "f8", ())
        variable.units, variable[...] = "hours since 1970-01-01", hour(FIRST)
        for name, inside in NAMES.items():
            variable = file.createVariable(inside, "f4", ("step", "latitude", "longitude"))
            variable.units = "K" if name == "temp" else "m s**-1"
            variable[...] = values[:, store.channels["weather"].index(name)]
    return path


def scored(trained: Path, output: Path, *options: str) -> dict[str, Any]:
    """metrics.json of an evaluation in this process."""
    start = ["--checkpoint", str(trained), "--output", str(output), "--max-samples", "12"]
    parsed = command_line().parse_args([*start, "--no-pictures", *options])
    check(parsed, STORED)
    evaluate.evaluate(parsed, torch.device("cpu"))
    found: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return found


def errors(found: dict[str, Any], forecast: str) -> list[float]:
    return [row["rmse"] for row in found["rows"] if row["forecast"] == forecast]


def test_a_perfect_forecast_from_files_scores_as_analysed_weather_and_other_weather_does_not(
    trained: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    found = {}
    for name, options in (
        ("analysed", []),
        ("none", ["--weather", "none"]),
        ("persisted", ["--weather", "persisted"]),
        ("files", ["--weather", str(files), "data.units={}"]),  # overrides may follow
    ):
        found[name] = scored(trained, tmp_path / name, *options)
        said = capsys.readouterr().out
        label = found[name]["weather"]
        assert label == (str(files) if name == "files" else name)
        page = (tmp_path / name / "report.html").read_text()
        words = {
            "analysed": "given analysed weather to come, an upper bound",
            "none": "without weather to come",
            "persisted": "given the input time's weather, held",
            "files": f"given weather forecasts, {files}",
        }[name]
        assert words in said
        # in the page's title and in those of its tables
        assert html.unescape(page).count(words) > 12
        rows = list(csv.DictReader((tmp_path / name / "metrics.csv").open()))
        assert {row["weather"] for row in rows if row["forecast"] == "aqnet"} == {label}
        saved = zarr.open_group(tmp_path / name / "forecasts.zarr", mode="r")
        assert saved.attrs["weather_to_come"] == label
    assert "u, v, temp at 24 of 24 input times x hours" in said
    # to the bit, as two steps teach a model to look at the weather a little
    analysed, none = found["analysed"], found["none"]
    assert errors(found["files"], "aqnet") == errors(analysed, "aqnet")
    assert errors(none, "aqnet") != errors(analysed, "aqnet")
    held = errors(found["persisted"], "aqnet")
    assert held != errors(analysed, "aqnet") and held != errors(none, "aqnet")
    assert errors(none, "persistence") == errors(analysed, "persistence")
    compare.run(tmp_path / "analysed", tmp_path / "none", tmp_path / "compared")
    said = capsys.readouterr().out
    assert "not given the same weather to come" in said and "(without weather to come)" in said
    (row, *_) = csv.DictReader((tmp_path / "compared/compare.csv").open())
    assert (row["weather_a"], row["weather_b"]) == ("analysed", "none")


def test_pictures_are_told_which_weather_was_given(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told = []

    def draw_all(folder: Path, *arguments: object) -> list[object]:
        told.append(arguments[-1])
        return []

    monkeypatch.setattr(results, "can_draw", lambda wanted: True)
    monkeypatch.setattr(pictures, "draw_all", draw_all)
    scored(trained, tmp_path / "out", "--weather", "persisted")
    assert told == ["persisted"]
    assert daily_sums.read(tmp_path / "out/days.npz").given == "persisted"


def once(trained: Path, output: Path, *options: str) -> np.ndarray:
    start = ["--checkpoint", str(trained), "--output", str(output), "--forecast", INPUT]
    parsed = command_line().parse_args([*start, *options])
    check(parsed, STORED)
    evaluate.evaluate(parsed, torch.device("cpu"))
    saved = zarr.open_group(output / f"forecast_{INPUT}.zarr", mode="r")
    return np.asarray(saved["pm25"])


def test_one_forecast_takes_its_weather_from_files_and_says_where_it_has_none(
    trained: Path,
    tree: dict[str, Any],
    files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    source = tree["data"]["sources"][0]["path"]
    without = once(trained, tmp_path / "none", "--source", source, "--no-pictures")
    assert "without weather to come" in capsys.readouterr().out
    given = once(trained, tmp_path / "files", "--source", source, "--weather", str(files))
    said = capsys.readouterr().out
    assert f"given weather forecasts, {files}" in said and "at 2 of 2 input times x hours" in said
    assert f"begun up to {24 + 6} h before" in said
    assert (tmp_path / f"files/forecast_{INPUT}_pm25.png").exists()
    options = ("--source", source, "--weather", "analysed", "--no-pictures")
    np.testing.assert_array_equal(given, once(trained, tmp_path / "analysed", *options))
    assert (without != given)[np.isfinite(given)].any()


def test_weather_that_a_model_does_not_take_or_that_is_unclear_is_refused(
    trained: Path, tiny: dict[str, Any], tmp_path: Path
):
    plain = tmp_path / "run"
    complete(command({**tiny, "train": {**tiny["train"], "max_steps": 1}}, plain, 1))
    with pytest.raises(AqnetError, match=r"was trained without data\.weather"):
        scored(plain, tmp_path / "out", "--weather", "analysed")
    with pytest.raises(AqnetError, match="give one of analysed, persisted, none, or files"):
        scored(trained, tmp_path / "out", "--weather", "none", "a.nc")
    with pytest.raises(AqnetError, match=r"was trained with data\.weather \['u', 'v', 'temp'\]"):
        scored(trained, tmp_path / "out", "data.weather=[u]")
