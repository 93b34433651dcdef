"""evaluate.py: byte-equal for any number of processes; what it refuses."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import xarray
import yaml
import zarr

import evaluate
from aqnet.errors import AqnetError
from tests.conftest import run
from tests.test_train import command, complete


@pytest.fixture(scope="module")
def trained(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    complete(command(tiny, run_dir, 1))
    return run_dir


def test_results_are_byte_equal_for_1_2_and_3_processes(trained: Path, tmp_path: Path):
    texts, saved, pages = [], [], []
    for processes in (1, 2, 3):
        output = tmp_path / str(processes)
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        options = ["--checkpoint", str(trained), "--output", str(output), "--max-samples", "43"]
        options += ["--no-pictures"] if processes == 2 else []
        run(*torchrun, "evaluate.py", *options)
        names = ("metrics.json", "metrics.csv", "days.npz")
        texts.append([(output / name).read_bytes() for name in names])
        pages.append((output / "report.html").read_bytes())
        saved.append(xarray.open_zarr(output / "forecasts.zarr").load())
    assert texts[0] == texts[1] == texts[2]
    assert pages[0] == pages[2]
    drawn = {path.stem for path in (tmp_path / "1/pictures").glob("*.png")}
    assert pages[0].count(b"data:image/png;base64,") == len(drawn)
    assert drawn >= {
        "skill",
        "map_o3",
        "coverage",
        "quantiles",
        "skill_map",
        "place_1_worst",
        "air_paths",
    }
    assert saved[0].sizes["time"] == 16 and bool(saved[0].pm25.notnull().any(("lat", "lon")).all())
    assert saved[0].identical(saved[1]) and saved[0].identical(saved[2])


def test_other_targets_than_the_checkpoints_are_refused(
    trained: Path, tiny: dict[str, Any], tmp_path: Path
):
    other = {**tiny, "data": {**tiny["data"], "targets": ["pm25", "o3"]}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    options = ["--checkpoint", str(trained), "--output", str(tmp_path)]
    result = run("evaluate.py", *options, "--config", str(tmp_path / "other.yaml"), status=2)
    assert "data.targets" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def forecast(trained: Path, output: Path, hour: str, *options: str, status: int = 0) -> str:
    start = ["--checkpoint", str(trained), "--output", str(output), "--forecast", hour]
    result = run("evaluate.py", *start, *options, status=status)
    return result.stdout if status == 0 else result.stderr


def write_netcdf(path: Path, world: Path, hour: int, without: tuple[str, ...]) -> None:
    """The last hour of a source store as NetCDF, at another time."""
    source = zarr.open_group(world, mode="r")
    with netCDF4.Dataset(path, "w") as file:
        lat, lon = (np.asarray(source[name]) for name in ("lat", "lon"))
        for name, size in (("time", 1), ("lat", len(lat)), ("lon", len(lon))):
            file.createDimension(name, size)
        for name, values in (("time", [hour]), ("lat", lat), ("lon", lon)):
            file.createVariable(name, "f8", (name,))[:] = values
        file["time"].units = "hours since 1970-01-01"
        for name, array in source.arrays():
            if array.ndim == 3 and name not in without:
                variable = file.createVariable(name, "f4", ("time", "lat", "lon"))
                variable.units = array.attrs["units"]
                variable[:] = array[-1:]


def test_forecast_from_a_source_file_is_that_from_the_stores(
    trained: Path, tiny: dict[str, Any], tmp_path: Path
):
    hour = "2015-12-31T23"  # the last, so that no truth exists
    forecast(trained, tmp_path / "stores", hour, "--no-pictures")
    world = Path(tiny["data"]["sources"][0]["path"].replace("*", "2015"))
    write_netcdf(tmp_path / "latest.nc", world, int(np.datetime64(hour, "h").astype(int)), ())
    local, source = "2016-01-01T07:00+08:00", ("--source", str(tmp_path / "latest.nc"))
    forecast(trained, tmp_path / "file", local, *source, "data.stores=no/where")
    assert (tmp_path / f"file/forecast_{hour}_pm25.png").stat().st_size > 10_000
    first, second = (
        xarray.open_zarr(tmp_path / name / f"forecast_{hour}.zarr") for name in ("stores", "file")
    )
    assert first.pm25.notnull().any()
    assert not list((tmp_path / "stores").glob("*.png"))
    assert (tmp_path / "file" / f"forecast_{hour}_pm25.png").stat().st_size > 2_000
    xarray.testing.assert_allclose(first, second, rtol=1e-6)


def test_what_a_source_file_lacks_is_named(trained: Path, tiny: dict[str, Any], tmp_path: Path):
    world = Path(tiny["data"]["sources"][0]["path"].replace("*", "2015"))
    write_netcdf(tmp_path / "latest.nc", world, 400_000, ("rh", "o3"))
    source = ("--source", str(tmp_path / "latest.nc"))
    text = forecast(trained, tmp_path / "out", "2015-08-19T16", *source, status=2)
    assert "rh (as 'rh'), o3 (as 'o3')" in text and len(text.splitlines()) == 1
    text = forecast(trained, tmp_path / "out", "2017-01-01T00", *source, status=2)
    assert "2017-01-01T00" in text and "2015-08-19T16" in text
    text = forecast(trained, tmp_path / "out", "2017-01-01T00:30", status=2)
    assert "no whole hour" in text
    assert not (tmp_path / "out").exists()


def test_own_forecasts_given_as_a_file_score_as_themselves(trained: Path, tmp_path: Path):
    options = ["--checkpoint", str(trained), "--no-pictures", "--max-samples", "9"]
    first, second = tmp_path / "first", tmp_path / "second"
    run("evaluate.py", *options, "--output", str(first))
    whole_file, part_file = first / "forecasts.zarr", tmp_path / "part.nc"
    saved = xarray.open_zarr(whole_file, decode_timedelta=False)
    saved.isel(time=slice(4)).to_netcdf(part_file)
    given = ["--forecast-file", f"whole={whole_file}", "--forecast-file", f"part={part_file}"]
    # another batch size calls other kernels: not the same bytes, but the same scores
    run("evaluate.py", *options, "--output", str(second), *given, "--micro-batch", "3")
    before, after = (rows_of(path) for path in (first, second))
    for mine, again in zip(before, filter(is_own, after), strict=True):
        assert [again[key] for key in ("forecast", "region", "subset", "n")] == [
            mine[key] for key in ("forecast", "region", "subset", "n")
        ]
        for key in ("rmse", "mae"):
            assert again[key] == pytest.approx(mine[key], rel=1e-6)
    ours = [row for row in before if row["forecast"] == "aqnet"]
    whole = [row for row in after if row["forecast"] == "whole" and not common(row)]
    assert len(whole) == len(ours) > 0
    for mine, theirs in zip(ours, whole, strict=True):
        assert theirs["rmse"] == pytest.approx(mine["rmse"], rel=1e-5)
        assert theirs["n"] == mine["n"]
    # the other file holds 4 of 9 times: it is compared over those alone
    part = [row for row in after if row["forecast"] == "part" and row["subset"] == "all"]
    assert part == []
    group = [row for row in after if row["subset"] == "common_part" and row["pollutant"] == "o3"]
    assert {row["forecast"] for row in group} >= {"aqnet", "persistence", "whole", "part"}
    assert len({row["n"] for row in group if row["lead_time_hours"] == 12}) == 1


def rows_of(output: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((output / "metrics.json").read_text())["rows"]
    return rows


def common(row: dict[str, Any]) -> bool:
    return str(row["subset"]).startswith("common_")


def is_own(row: dict[str, Any]) -> bool:
    return row["forecast"] not in ("whole", "part") and not common(row)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--checkpoint", "run", "--compare", "a", "b"], "give either --checkpoint"),
        (["--checkpoint", "run", "--source", "a.nc"], "--source needs --forecast"),
        (["--checkpoint", "run", "--forecast-file", "a=b", "--forecast-file", "a=c"], "a, a: each"),
        ([], "give either --checkpoint RUN_DIR or --compare"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: list[str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("sys.argv", ["evaluate.py", "--output", str(tmp_path / "out"), *options])
    with pytest.raises(AqnetError, match=said):
        evaluate.main()
    assert not (tmp_path / "out").exists()


def test_place_without_a_checkpoint_is_one_line(tmp_path: Path):
    options = ["--checkpoint", str(tmp_path / "none"), "--output", str(tmp_path / "out")]
    result = run("evaluate.py", *options, status=2)
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_stations_are_scored_and_reported(trained: Path, tiny: dict[str, Any], tmp_path: Path):
    grid = zarr.open_group(Path(tiny["data"]["stores"]) / "2015.zarr", mode="r")
    y, x = np.argwhere(np.asarray(grid["mask"]))[5]
    lat, lon = (np.asarray(grid[name])[y, x] for name in ("lat", "lon"))
    lines = [f"A,{lat},{lon},2015-01-{day}T{h:02}:00Z,o3,40" for day in (25, 28) for h in range(24)]
    lines += ["far,0,0,2015-01-25T00:00Z,o3,40", lines[0]]
    path = tmp_path / "stations.csv"
    path.write_text("\n".join(["id,lat,lon,time,pollutant,value", *lines]))
    options = ["--checkpoint", str(trained), "--output", str(tmp_path / "out"), "--no-pictures"]
    result = run("evaluate.py", *options, "--stations", str(path))
    assert "1 stations in the domain" in result.stdout
    assert "1 lines left out: stations outside the domain" in result.stdout
    assert "1 lines left out: duplicates" in result.stdout
    with (tmp_path / "out/stations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["region"] for row in rows} == {"all", "A"}
    assert {row["pollutant"] for row in rows} == {"o3"}
    assert all(int(row["n"]) > 20 for row in rows if row["lead_time_hours"] == "12")


def test_two_scored_runs_are_compared(trained: Path, tmp_path: Path):
    for name, seed in (("a", "1"), ("c", "2")):
        options = ["--checkpoint", str(trained), "--output", str(tmp_path / name), "--no-pictures"]
        run("evaluate.py", *options, "--max-samples", "9", "--seed", seed, "--save-forecasts", "0")
        assert not list((tmp_path / name).glob("forecasts*"))
    shutil.copytree(tmp_path / "a", tmp_path / "b/evaluation")  # as a run directory has it
    pair = ["--compare", str(tmp_path / "a"), str(tmp_path / "b")]
    result = run("evaluate.py", *pair, "--output", str(tmp_path / "ab"))
    assert "A is better in 0, B in 0 of 24" in result.stdout
    assert len((tmp_path / "ab/compare.csv").read_text().splitlines()) == 25
    other = ["--compare", str(tmp_path / "a"), str(tmp_path / "c")]
    result = run("evaluate.py", *other, "--output", str(tmp_path / "ac"), status=2)
    assert "same --split, --max-samples and --seed" in result.stderr
    assert not (tmp_path / "ac").exists()
