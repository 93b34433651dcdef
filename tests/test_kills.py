"""A run killed at any moment, many times, ends with the bits of one that nobody disturbed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import REPOSITORY

SIZE = ("model.drop_rate=0.1", "model.drop_path=0.1", "train.ema_decay=0.9")
OFTEN = ("train.checkpoint_every=2", "validation.every=3")


def train(config: Path, run_dir: Path, processes: int, kills: int, *overrides: str) -> list[Any]:
    log = run_dir.with_suffix(".log")
    arguments = ["--config", config, "--processes", processes, "--kills", kills, "--log", log]
    options = [f"run_dir={run_dir}", *SIZE, *OFTEN, *overrides]
    subprocess.run(
        [sys.executable, "-m", "tests.kills", *map(str, arguments), *options],
        cwd=REPOSITORY,
        check=True,
        timeout=900 + 60 * kills,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return [json.loads(line) for line in log.read_text().splitlines()] if kills else []


def files(run_dir: Path) -> list[Path]:
    """Those of every checkpoint that is kept."""
    return sorted(run_dir.glob("checkpoints/step_*/*.pt"))


def assert_same_run(whole: Path, broken: Path) -> None:
    assert [file.relative_to(whole) for file in files(whole)] == [
        file.relative_to(broken) for file in files(broken)
    ]
    for one, other in zip(files(whole), files(broken), strict=True):
        first, second = (torch.load(file, weights_only=True) for file in (one, other))
        assert leaves(first) == leaves(second)
    for name in ("latest", "best"):
        assert (whole / "checkpoints" / name).read_text() == (
            broken / "checkpoints" / name
        ).read_text()
    assert scalars(whole) == scalars(broken)


def leaves(tree: Any) -> list[Any]:
    """The tree's names, its tensors' bytes and its numbers."""
    if isinstance(tree, dict):
        return [leaf for key in tree for leaf in (key, *leaves(tree[key]))]
    if isinstance(tree, list):
        return [leaf for item in tree for leaf in leaves(item)]
    return [tree.numpy().tobytes() if isinstance(tree, torch.Tensor) else tree]


def scalars(run_dir: Path) -> dict[tuple[int, str], float]:
    """Losses and scores of every step; each is there once."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rows = [
        ((record["step"], name), value)
        for record in records
        for name, value in record.items()
        if name.startswith(("train/", "validation/"))
    ]
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def test_two_killed_processes_continue_to_the_same_bits(tiny: dict[str, Any], tmp_path: Path):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny))
    length = "train.max_steps=14"
    train(config, tmp_path / "whole", 2, 0, length)
    assert len(train(config, tmp_path / "broken", 2, 4, length)) == 4
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.slow
def test_ten_kills_in_loop_validation_and_writing_change_no_bit(
    tiny: dict[str, Any], tmp_path: Path
):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny))
    length = ("train.max_steps=36", "train.effective_batch=48")
    train(config, tmp_path / "whole", 3, 0, *length)
    log = train(config, tmp_path / "broken", 3, 10, *length)
    assert len(log) == 10
    hit = [phase for kill in log for phase in kill["phases"]]
    assert {"loop", "validation", "writing", "start"} <= set(hit)
    assert hit.count("start") >= 2  # killed again before the first step of its own
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
