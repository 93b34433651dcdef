"""torchrun and evaluate.py, killed at a random time."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import run
from tests.faults import killed


@pytest.mark.faults
def test_a_killed_torchrun_leaves_nobody_and_the_run_goes_on_to_the_same_bits(
    tiny: dict[str, Any], tmp_path: Path
):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny))
    killed.torchrun(config, tmp_path, 2, seed=0)


@pytest.mark.faults
def test_a_killed_evaluation_leaves_nothing_or_a_whole_one(tiny: dict[str, Any], tmp_path: Path):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**tiny, "run_dir": str(tmp_path / "run")}))
    run("train.py", "--config", str(config))
    killed.evaluation(tmp_path / "run", tmp_path, 2, seed=0)
