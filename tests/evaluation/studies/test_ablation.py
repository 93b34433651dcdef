"""The ablation: what its configs change, its statistics, and the command, stopped and resumed."""

import argparse
import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from aqnet import config as configs
from aqnet.errors import AqnetError
from aqnet.evaluation import daily_sums
from aqnet.evaluation.studies import ablation
from tests.conftest import REPOSITORY, run

SHIPPED = sorted((REPOSITORY / "configs/ablation").glob("*.yaml"))


FACTORS = {
    "ablation": {"transport", "scan", "scan_embedding", "terrain", "attention"},
    "ablation_forecast": {"lead_time_mode", "predict", "calendar"},
    "ablation_beijing": {"scan", "terrain"},
}


@pytest.mark.parametrize("folder", FACTORS)
def test_every_shipped_variant_changes_one_switch_of_the_model(folder: str):
    files = sorted((REPOSITORY / "configs" / folder).glob("*.yaml"))
    models = {path.stem: configs.load(path).model for path in files}

    def changed(model: configs.Model, other: configs.Model) -> set[str]:
        fields = {name for name in vars(model) if getattr(model, name) != getattr(other, name)}
        return fields - {"window"}

    base = models.pop("base")
    found = {name: changed(base, model) for name, model in models.items()}
    # raster order inside windows is compared with the wind's inside windows
    if "attention_window_raster" in found:
        window = models["attention_window"]
        found["attention_window_raster"] = changed(window, models["attention_window_raster"])
    assert all(len(factors) == 1 for factors in found.values()), found
    assert set.union(*found.values()) == FACTORS[folder]


def test_the_base_on_beijing_is_the_shipped_configuration():
    base = configs.load(REPOSITORY / "configs/ablation_beijing/base.yaml")
    shipped = configs.load(REPOSITORY / "configs/beijing.yaml")
    assert replace(base, run_dir=shipped.run_dir) == shipped


def sums(seed: int, factor: float = 1.0, days: int = 60) -> daily_sums.Daily:
    generator = np.random.default_rng(seed)
    errors = factor * generator.gamma(2.0, 1.0, (days, 2, 3, 2, 1))
    names = np.array(["aqnet", "damped_anomaly"]), np.array(["o3", "pm25"]), np.array([1, 2, 3])
    times = np.arange(days) * 24
    return daily_sums.Daily(
        *names, np.array(["all"]), times, np.arange(days), errors, np.ones_like(errors)
    )


def test_change_of_rmse_agrees_with_a_loop():
    pairs = [(sums(0), sums(1)), (sums(2), sums(3))]
    each, change, low, high = daily_sums.change_of_rmse(pairs)
    for lead in range(3):
        logs = []
        for target in range(2):
            ours, theirs = (
                sum(pair[side].errors[:, 0, lead, target, 0].sum() for pair in pairs)
                for side in (1, 0)
            )
            logs.append(np.log(ours / theirs) / 2)
            assert change[lead, target] == pytest.approx(100 * (np.exp(logs[-1]) - 1))
        assert change[lead, 2] == pytest.approx(100 * (np.exp(np.mean(logs)) - 1))
    assert each.shape == (2, 3, 3)
    assert np.all((low < change) & (change < high)) and np.all((low < 0) & (high > 0))


def test_a_common_factor_is_found_without_spread():
    each, change, low, high = daily_sums.change_of_rmse([(sums(0), sums(0, factor=1.21))])
    for values in (each, change, low, high):
        assert np.allclose(values, 10.0)


def test_interval_covers_the_truth_as_often_as_it_says():
    """Both runs have the same expected error in blocks of days that vary together."""
    covered = 0
    for trial in range(200):
        generator = np.random.default_rng(trial)
        pair = []
        for _ in range(2):
            made = sums(0, days=400)
            blocks = np.repeat(generator.gamma(4.0, 1.0, (40, 2, 3, 2, 1)), 10, axis=0)
            pair.append(made._replace(errors=blocks))
        _, _, low, high = daily_sums.change_of_rmse([(pair[0], pair[1])], resamples=200)
        covered += bool(low[0, 0] <= 0 <= high[0, 0])
    assert 178 <= covered <= 199


def test_too_few_days_have_no_interval():
    _, change, low, high = daily_sums.change_of_rmse([(sums(0, days=40), sums(1, days=40))])
    assert np.isfinite(change).all() and np.isnan(low).all() and np.isnan(high).all()


def test_runs_over_other_times_are_refused():
    other = sums(1)._replace(times=np.arange(60) * 24 + 1)
    with pytest.raises(AqnetError, match="other input times"):
        daily_sums.change_of_rmse([(sums(0), other)])


def test_run_scored_over_other_pairs_is_refused_when_it_is_read(tmp_path: Path):
    """Not only at the end, when hours of training later the runs are compared."""
    done: ablation.Done = {"base": {0: sums(0)}}
    config = replace(configs.load(SHIPPED[0]), run_dir=str(tmp_path))
    run_of = ablation.Run("raster", 0, SHIPPED[0], config)
    run_of.sums.parent.mkdir()
    daily_sums.write(run_of.sums, sums(1))
    ablation.keep(done, run_of)
    assert set(done) == {"base", "raster"}
    for change, what in (({"times": np.arange(60) * 24 + 1}, "times"), ({"weights": 2}, "cells")):
        other = sums(1)._replace(**change)
        daily_sums.write(
            run_of.sums, other._replace(weights=other.weights * np.ones(other.errors.shape))
        )
        with pytest.raises(AqnetError, match=f"over other .*{what} than the runs before"):
            ablation.keep(done, run_of)


def test_verdict_is_given_only_where_there_is_an_interval():
    for days, said in ((60, "no difference shown"), (40, "no interval: too few days")):
        done = {name: {0: sums(0, days=days)} for name in ("base", "raster")}
        text = ablation.verdicts(ablation.differences(done))
        assert text.count(said) == 3, text


def test_tables_and_verdicts_say_which_weather_to_come_all_runs_were_given(tmp_path: Path):
    def given(seed: int, weather: str) -> daily_sums.Daily:
        return sums(seed)._replace(weather=np.array(weather))

    done = {name: {0: given(0, "analysed")} for name in ("base", "raster")}
    rows = ablation.differences(done)
    words = "given analysed weather to come, an upper bound"
    assert words in ablation.scores(done) and words in ablation.verdicts(rows)
    assert {row["weather"] for row in rows} == {"analysed"}
    plain = {name: {0: given(0, "")} for name in ("base", "raster")}
    rows = ablation.differences(plain)
    assert "weather" not in ablation.scores(plain) + ablation.verdicts(rows)
    config = replace(configs.load(SHIPPED[0]), run_dir=str(tmp_path))
    run_of = ablation.Run("other", 0, SHIPPED[0], config)
    run_of.sums.parent.mkdir()
    daily_sums.write(run_of.sums, given(0, "none"))
    with pytest.raises(AqnetError, match="weather to come 'none', of the runs before 'analysed'"):
        ablation.keep(done, run_of)


@pytest.mark.parametrize("option", ["--seeds", "--at-once", "--max-samples"])
def test_no_runs_or_samples_at_all_are_refused(option: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["ablation", "--output", "out", option, "0"])
    with pytest.raises(AqnetError, match=f"{option} 0: expected at least 1"):
        ablation.main()


@pytest.fixture
def folder(tiny: dict[str, Any], tmp_path: Path) -> Path:
    """Configs of a tiny base and two variants."""
    made = tmp_path / "configs"
    made.mkdir()
    models = {"base": {}, "calendar_off": {"calendar": "off"}, "raster": {"scan": "raster"}}
    # one of the factors is for the calendar's embedding, which a variant lacks
    train = {key: value for key, value in tiny["train"].items() if key != "learning_rate_factors"}
    for name, change in models.items():
        tree = {**tiny, "model": {**tiny["model"], **change}, "train": train}
        (made / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return made


def test_variant_with_other_training_is_refused(folder: Path, tmp_path: Path):
    tree = yaml.safe_load((folder / "raster.yaml").read_text())
    tree["train"]["max_steps"] = 5
    (folder / "raster.yaml").write_text(yaml.safe_dump(tree))
    options = ["--configs", str(folder), "--output", str(tmp_path / "out")]
    result = run("-m", "aqnet.evaluation.ablation", *options, status=2)
    assert "raster.yaml: `train` differs" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_runs_are_trained_and_scored_from_any_working_directory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    commands = []

    class Commands(ablation.Processes):
        def run(self, command: list[str], log: Path) -> None:
            commands.append(command)

    options = argparse.Namespace(
        configs=folder, output=tmp_path, seeds=1, at_once=1, max_samples=9, overrides=[]
    )
    trial = ablation.planned(options)[0]
    trial.folder.mkdir()
    (trial.folder / "status").write_text("finished\n")
    ablation.train_and_score(trial, options, Commands())
    assert [Path(command[1]).name for command in commands] == ["train.py", "evaluate.py"]
    assert all(Path(command[1]).is_file() for command in commands)


@pytest.mark.slow
def test_ablation_is_interrupted_continued_and_compared(folder: Path, tmp_path: Path):
    output = tmp_path / "out"
    options = ["-m", "aqnet.evaluation.ablation", "--configs", str(folder), "--output", str(output)]
    options += ["--max-samples", "60", "--at-once", "1"]
    seeds = ["--seeds", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *options, *seeds], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE
    )
    first = output / "base-seed0/evaluation/days.npz"
    end = time.monotonic() + 200
    while not first.exists() or not (output / "calendar_off-seed0").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    made = first.stat().st_mtime_ns

    result = run(*options, *seeds)
    assert first.stat().st_mtime_ns == made, "what was finished is kept"
    assert "6 runs, 1 of them finished" in result.stdout
    assert result.stdout.count("RMSE / damped_anomaly") == 6  # after each of 5, and at the end
    with (output / "ablation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * 7  # variants, lead times, pollutants and all
    for row in rows:
        each = sorted(float(row[name]) for name in ("seed0", "seed1"))
        assert each[0] - 1e-9 <= float(row["rmse_change_percent"]) <= each[1] + 1e-9
        assert row["low"] == row["high"] == "nan", "nine days are too few for an interval"

    again = run(*options, *seeds)
    assert "6 runs, 6 of them finished" in again.stdout
    other = run(*options, *seeds, "train.max_steps=5", status=2)
    assert "base-seed0: was made with another config" in other.stderr
