"""What one forecast reads, and what evaluation after training is given."""

import gc
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray

import evaluate
import train
from aqnet import config as configs
from aqnet.batch import Forecast, Statistics
from aqnet.checkpoint import files as checkpoint_files
from aqnet.checkpoint.files import Loaded
from aqnet.config import Config
from aqnet.data.prepare.run import prepare
from aqnet.data.stores.layout import Layout
from aqnet.data.stores.record import open_stores
from aqnet.errors import AqnetError
from aqnet.evaluation.forecasts import zarr_files
from aqnet.evaluation.options import command_line
from aqnet.grid import Grid
from aqnet.run_directory import RunDirectory
from tests.data.source_writers import CONFIG, fields, hours, write_zarr
from tests.data.test_dataset import STATISTICS, normalised
from tests.data.worlds import config, grid, hour, write_both


def trained(
    folder: Path, settings: Config, layout: bool = True, statistics: Statistics = STATISTICS
) -> evaluate.Trained:
    """A checkpoint without weights that was trained on the stores of `settings`."""
    kept = Layout.of(open_stores(settings)[0])
    state = {
        "global_step": 1,
        "config": configs.to_dict(settings),
        "statistics": statistics.to_dict(),
        "data_checksums": {},
    }
    tensors = kept.tensors() if layout else {"grid": kept.tensors()["grid"]}
    path = folder / "step_00000001"
    checkpoint_files.write(path, {"model": {}, **tensors}, {}, {**state, **kept.words()})
    loaded: Loaded = checkpoint_files.read(path)
    return evaluate.Trained(loaded, settings, statistics)


def test_a_forecast_needs_only_the_stores_of_its_hours(tmp_path: Path):
    write_both(tmp_path)
    settings = config(tmp_path, lead_times=[3, 24])
    checkpoint = trained(tmp_path, settings)
    shutil.rmtree(tmp_path / "2016.zarr")
    last = hour("2015-12-31T22")  # both its targets lie in the year that is gone
    options = command_line().parse_args(["--output", "there"])
    item = evaluate.reader_at(np.array([last]), options, checkpoint).item(last)
    np.testing.assert_allclose(item.fields[0], normalised("pm25", last), rtol=1e-5)
    assert item.targets.isnan().all() and not item.mask.any()
    with pytest.raises(AqnetError, match=r"2016\.zarr: no such store"):
        evaluate.reader_at(np.array([hour("2016-01-01T02")]), options, checkpoint)


def test_a_range_of_hours_is_forecast_into_one_store_as_each_hour_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write_both(tmp_path)  # every hour but 5 to 7 of 30 December
    settings = config(tmp_path, lead_times=[3, 24])
    checkpoint, device = trained(tmp_path, settings), torch.device("cpu")

    def forecaster(self: evaluate.Trained, where: Grid, device: torch.device) -> Any:
        return lambda batch: Forecast(
            batch.fields[:, :1].nan_to_num()[:, None].expand_as(batch.targets)
        )

    monkeypatch.setattr(evaluate.Trained, "forecaster", forecaster)
    first, last = "2015-12-30T03", "2015-12-30T09"
    for text in (f"{first}/{last}", "2015-12-30T08"):
        options = ["--output", str(tmp_path / "out"), "--forecast", text, "--no-pictures"]
        options += ["--micro-batch", "2"]
        evaluate.forecast_only(command_line().parse_args(options), checkpoint, device)
    said = capsys.readouterr().out
    assert f"{first}/{last}: 3 of 7 hours have no fields and are left out" in said
    together = xarray.open_zarr(tmp_path / f"out/forecast_{first}_{last}.zarr")
    assert [str(time)[11:13] for time in together.time.values] == ["03", "04", "08", "09"]
    alone = xarray.open_zarr(tmp_path / "out/forecast_2015-12-30T08.zarr")
    name = settings.data.targets[0]
    assert alone[name].notnull().any()
    xarray.testing.assert_equal(together.isel(time=[2]), alone)


def test_a_forecast_made_again_without_pictures_leaves_no_older_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_both(tmp_path)
    checkpoint, device = trained(tmp_path, config(tmp_path)), torch.device("cpu")

    def forecaster(self: evaluate.Trained, where: Grid, device: torch.device) -> Any:
        return lambda batch: Forecast(torch.zeros_like(batch.targets))

    monkeypatch.setattr(evaluate.Trained, "forecaster", forecaster)
    output = tmp_path / "out"
    output.mkdir()
    hour_alone, other = "forecast_2015-12-30T08", "forecast_2015-12-30T09_pm25.png"
    for name in (f"{hour_alone}_pm25.png", f"{hour_alone}_so2_odds.png", other):
        (output / name).touch()
    options = ["--output", str(output), "--forecast", "2015-12-30T08", "--no-pictures"]
    evaluate.forecast_only(command_line().parse_args(options), checkpoint, device)
    assert {path.name for path in output.iterdir()} == {f"{hour_alone}.zarr", other}


@pytest.mark.parametrize("given", [["analysed"], ["persisted"], ["none"], []])
def test_source_files_give_weather_that_is_no_other_input_as_stores_do(
    tmp_path: Path, given: list[str]
):
    for year in (2013, 2014, 2015):
        values = fields(100, year)
        values["no2"] = values["pm25"] + 1  # weather to come alone
        write_zarr(tmp_path / f"{year}.zarr", hours(year, 100), values)
    data: dict[str, Any] = {"sources": [{"path": f"{tmp_path}/*.zarr"}], "weather": ["no2"]}
    data |= {"stores": str(tmp_path / "stores"), "weather_hours": [6, 12]}
    tree: Any = {**CONFIG, "data": CONFIG["data"] | data}  # type: ignore[operator]
    settings = configs.from_dict(tree, "here")
    prepare(settings)
    names = "pm25", "o3", "lat2d", "lon2d", "elevation", "no2"
    numbers = Statistics(names, (0.0,) * len(names), (1.0,) * len(names))
    checkpoint, time = trained(tmp_path, settings, statistics=numbers), int(hours(2014)[50])

    def inputs(*options: str) -> torch.Tensor:
        start = ["--output", "there", "--forecast", "2014-01-03T02", *options]
        parsed = command_line().parse_args([*start, *(["--weather", *given] if given else [])])
        return evaluate.reader_at(np.array([time]), parsed, checkpoint).item(time).fields

    stored = inputs()
    to_come = [row for row, channel in enumerate(settings.input_channels) if channel.to_come]
    assert torch.equal(
        inputs("--source", f"{tmp_path}/*.zarr").nan_to_num(-9), stored.nan_to_num(-9)
    )
    assert bool(stored[to_come].isfinite().any()) == (given in (["analysed"], ["persisted"]))
    if given in ([], ["none"]):  # the files need not hold it
        values = {name: fields(100, 2014)[name] for name in ("pm25", "o3")}
        write_zarr(tmp_path / "bare/2014.zarr", hours(2014, 100), values)
        bare = inputs("--source", f"{tmp_path}/bare/*.zarr")
        assert torch.equal(bare.nan_to_num(-9), stored.nan_to_num(-9))


@pytest.mark.parametrize("text", ["2016-01-02/2016-01-01", "2016-01-01/soon", "2016-01-01/"])
def test_a_range_that_is_none_is_refused(text: str):
    with pytest.raises(AqnetError, match=r"ends before it begins|no time such as"):
        zarr_files.hours_of(text)


def test_a_checkpoint_knows_grid_channels_units_and_static_fields_of_its_stores(tmp_path: Path):
    write_both(tmp_path)
    checkpoint = trained(tmp_path, config(tmp_path))
    known = Layout.of_checkpoint(checkpoint.loaded)
    store = Layout.of(open_stores(checkpoint.config)[0])
    assert known is not None
    assert (known.names, known.units) == (store.names, store.units)
    assert known.static.keys() == store.static.keys() == {"elevation", "lat2d", "lon2d"}
    for name, field in store.static.items():
        np.testing.assert_array_equal(known.static[name], field)
        assert known.static[name].dtype == field.dtype
    assert torch.equal(known.grid.mask, grid().mask)
    older = trained(tmp_path / "older", config(tmp_path), layout=False)
    assert Layout.of_checkpoint(older.loaded) is None


def test_evaluation_after_training_takes_the_runs_stores_and_validations_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The best checkpoint may be older than a move of the stores; the config of the run is not."""
    settings = config(tmp_path)
    settings = configs.from_dict(
        {**configs.to_dict(settings), "run_dir": str(tmp_path), "validation": {"micro_batch": 3}},
        "test",
    )
    given = []
    monkeypatch.setattr(evaluate, "evaluate", lambda options, *others: given.append(options))
    train.evaluate_once(settings, RunDirectory(tmp_path), torch.device("cpu"))
    (options,) = given
    assert (options.checkpoint, options.config) == (str(tmp_path), str(tmp_path / "config.yaml"))
    assert options.micro_batch == 3


def test_the_training_state_is_gone_when_the_run_is_evaluated(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    left = []

    def count(*arguments: object) -> None:
        left.append([each for each in gc.get_objects() if isinstance(each, torch.optim.AdamW)])

    monkeypatch.setattr(evaluate, "evaluate", count)
    settings = {**tiny["train"], "max_steps": 1, "evaluate_after_training": True}
    tree = {**tiny, "run_dir": str(tmp_path / "run"), "train": settings}
    train.train(configs.from_dict(tree, "test"), torch.device("cpu"), 0)
    assert left == [[]]
