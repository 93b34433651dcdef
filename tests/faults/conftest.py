"""A tiny run, trained once for all tests of this folder that need one."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import run


@pytest.fixture(scope="session")
def trained(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its config.yaml and of the run directory `run`; no test changes either."""
    folder = tmp_path_factory.mktemp("trained")
    path = folder / "config.yaml"
    length = {**tiny["train"], "decay_steps": 4}  # the schedule must not hang on max_steps
    path.write_text(yaml.safe_dump({**tiny, "run_dir": str(folder / "run"), "train": length}))
    run("train.py", "--config", str(path))
    return folder
