"""A tiny prepared world, made once for all tests that run the commands."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
SPLIT = {
    "train": ["2015-01-01/2015-01-14"],
    "validation": ["2015-01-15/2015-01-22"],
    "test": ["2015-01-23/2015-01-31"],
}


def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` in the repository; fails the test where it ends with another status."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The config, as a tree, of a tiny model on a prepared world of 8 x 16 cells."""
    return prepared(tmp_path_factory.mktemp("tiny"))


def prepared(folder: Path) -> dict[str, Any]:
    """Write that world into a folder, and prepare it."""
    folder.mkdir(exist_ok=True)
    tree: dict[str, Any] = yaml.safe_load((REPOSITORY / "configs/demo.yaml").read_text())
    tree["run_dir"] = str(folder / "run")
    tree["data"] |= {
        "sources": [{"path": str(folder / "world/data_*_china_masked.zarr")}],
        "stores": str(folder / "stores"),
        "split": SPLIT,
    }
    tree["model"] |= {"embed_dim": 16, "depth": 2, "num_heads": 2}
    tree["model"] |= {"quantiles": [0.25, 0.5, 0.75]}  # which few validation times can calibrate
    tree["train"] |= {"max_steps": 4, "warmup_steps": 1, "effective_batch": 32, "log_every": 1}
    tree["train"] |= {"micro_batch": 2, "workers": 0, "checkpoint_every": 2}
    tree["validation"] = {"every": 2, "max_items": 8, "micro_batch": 2}
    world = ("--output", str(folder / "world"), "--years", "2015", "--grid", "8x16")
    run("-m", "aqnet.data.synthetic", *world)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    run("-m", "aqnet.data.prepare", "--config", str(path))
    return tree
