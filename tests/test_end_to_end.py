"""The commands of the README, one after another, on a tiny world."""

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
import zarr

import train
from aqnet.evaluation.baselines import SIMPLE
from aqnet.evaluation.report import results
from tests.conftest import run
from tests.faults.configs import command


def test_trains_continues_and_evaluates(tiny: dict[str, Any], tmp_path: Path):
    run_dir, config = tmp_path / "run", tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**tiny, "run_dir": str(run_dir)}))
    begun = run("train.py", "--config", str(config))
    assert (run_dir / "status").read_text().strip() == "finished"
    said = re.search(
        r"air is ([\d.]+) times the wind of the stores, turned (\S+) deg", begun.stdout
    )
    assert said, begun.stdout
    kept = torch.load(run_dir / "checkpoints/step_00000004/model.pt", weights_only=True)["model"]
    assert float(kept["transport.speed"]) == pytest.approx(float(said[1]), rel=1e-5)
    assert float(kept["transport.turn"]) == pytest.approx(float(said[2]), rel=1e-5)
    assert (float(said[1]), float(said[2])) != (1.0, 0.0)  # the world's is turned and faster
    again = run("train.py", "--config", str(config))
    assert "finished at step 4" in again.stdout
    run("train.py", "--config", str(config), "train.max_steps=6", "train.decay_steps=4", status=2)
    run("train.py", "--config", str(config), "train.max_steps=6")
    assert (run_dir / "checkpoints/latest").read_text().strip() == "step_00000006"

    options = ["--checkpoint", str(run_dir), "--output", str(tmp_path / "report")]
    run("evaluate.py", *options, "--no-pictures")
    with (tmp_path / "report/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["forecast"] for row in rows} == {"aqnet", *SIMPLE}
    assert all(float(row["rmse"]) > 0 for row in rows if row["subset"] == "all")


def test_finished_run_makes_a_missing_evaluation_also_after_its_stores_were_moved(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(results, "can_draw", lambda wanted: False)  # pictures take the longest
    run_dir, config = tmp_path / "run", tmp_path / "tiny.yaml"
    length = {**tiny["train"], "max_steps": 2, "evaluate_after_training": True}
    before, after = tmp_path / "before", tmp_path / "after"
    before.symlink_to(tiny["data"]["stores"])
    data = {**tiny["data"], "stores": str(before)}
    config.write_text(
        yaml.safe_dump({**tiny, "run_dir": str(run_dir), "data": data, "train": length})
    )
    assert command(train.main, ["--config", str(config)])[0] == 0
    first = (run_dir / "evaluation/metrics.json").read_bytes()
    (run_dir / "evaluation/metrics.json").unlink()
    before.rename(after)
    status, told = command(train.main, ["--config", str(config), f"data.stores={after}"])
    assert status == 0, told
    assert (run_dir / "evaluation/metrics.json").read_bytes() == first
    assert (run_dir / "status").read_text() == "finished\n"


def test_a_grid_that_is_no_multiple_of_the_patch(tiny: dict[str, Any], tmp_path: Path):
    """8 x 16 cells in patches of 3: the stores, every output and the exported file have 8 x 16."""
    run_dir, report, config = tmp_path / "run", tmp_path / "report", tmp_path / "tiny.yaml"
    tree = {**tiny, "run_dir": str(run_dir), "model": {**tiny["model"], "patch": 3}}
    config.write_text(yaml.safe_dump(tree))
    prepared = run("-m", "aqnet.data.prepare", "--config", str(config))
    assert "1 years, 1 complete" in prepared.stdout
    run("train.py", "--config", str(config), "train.max_steps=2", "train.warmup_steps=1")
    options = ["--checkpoint", str(run_dir), "--output", str(report), "--no-pictures"]
    run("evaluate.py", *options)
    with (report / "metrics.csv").open() as file:
        assert all(float(row["rmse"]) > 0 for row in csv.DictReader(file) if row["subset"] == "all")
    forecasts = zarr.open_group(report / "forecasts.zarr", mode="r")
    assert forecasts["pm25"].shape[-2:] == (8, 16)
    inside = zarr.open_group(Path(tree["data"]["stores"]) / "2015.zarr", mode="r")["mask"][...]
    assert (np.isfinite(forecasts["pm25"][...]) == inside).all()
    run("-m", "aqnet.model.export", str(run_dir), "--output", str(tmp_path / "model.pt2"))
    module = torch.export.load(tmp_path / "model.pt2").module()
    fields = torch.zeros(1, len(tree["data"]["variables"]), 8, 16)
    lead_time = torch.tensor([[12, 24, 48, 96]])
    found, quantiles = module(fields, torch.zeros(1, dtype=torch.int64), lead_time)
    assert found.shape == (1, 4, 6, 8, 16)
    assert quantiles.shape == (1, 3, 4, 6, 8, 16)
    assert (found[0, 0, 0].isfinite().numpy() >= inside).all()


@pytest.mark.parametrize("name", ["train.py", "aqnet.data.prepare"])
def test_missing_config_is_one_line_and_status_2(name: str):
    start = [name] if name.endswith(".py") else ["-m", name]
    result = run(*start, "--config", "no/such.yaml", status=2)
    assert len(result.stderr.strip().splitlines()) == 1
    assert "no/such.yaml" in result.stderr
