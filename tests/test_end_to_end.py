"""The commands of the README, one after another, on a tiny world."""

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import run


def test_trains_continues_and_evaluates(tiny: dict[str, Any], tmp_path: Path):
    run_dir, config = tmp_path / "run", tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**tiny, "run_dir": str(run_dir)}))
    run("train.py", "--config", str(config))
    assert (run_dir / "status").read_text().strip() == "finished"
    again = run("train.py", "--config", str(config))
    assert "finished at step 4" in again.stdout
    run("train.py", "--config", str(config), "train.max_steps=6", "train.decay_steps=4", status=2)
    run("train.py", "--config", str(config), "train.max_steps=6")
    assert (run_dir / "checkpoints/latest").read_text().strip() == "step_00000006"

    run("evaluate.py", "--checkpoint", str(run_dir), "--output", str(tmp_path / "report"))
    with (tmp_path / "report/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = {"persistence", "climatology", "damped_persistence", "damped_anomaly", "transport"}
    assert {row["forecast"] for row in rows} == {"aqnet", *names}
    assert all(float(row["rmse"]) > 0 for row in rows if row["subset"] == "all")


def test_finished_run_makes_a_missing_evaluation_also_after_its_stores_were_moved(
    tiny: dict[str, Any], tmp_path: Path
):
    run_dir, config = tmp_path / "run", tmp_path / "tiny.yaml"
    train = {**tiny["train"], "max_steps": 2, "evaluate_after_training": True}
    before, after = tmp_path / "before", tmp_path / "after"
    before.symlink_to(tiny["data"]["stores"])
    data = {**tiny["data"], "stores": str(before)}
    config.write_text(
        yaml.safe_dump({**tiny, "run_dir": str(run_dir), "data": data, "train": train})
    )
    run("train.py", "--config", str(config))
    first = (run_dir / "evaluation/metrics.json").read_bytes()
    (run_dir / "evaluation/metrics.json").unlink()
    before.rename(after)
    run("train.py", "--config", str(config), f"data.stores={after}")
    assert (run_dir / "evaluation/metrics.json").read_bytes() == first
    assert (run_dir / "status").read_text() == "finished\n"


@pytest.mark.parametrize("command", ["train.py", "aqnet.data.prepare"])
def test_missing_config_is_one_line_and_status_2(command: str):
    start = [command] if command.endswith(".py") else ["-m", command]
    result = run(*start, "--config", "no/such.yaml", status=2)
    assert len(result.stderr.strip().splitlines()) == 1
    assert "no/such.yaml" in result.stderr
