"""evaluate.py: byte-equal for any number of processes; what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import xarray
import yaml

from tests.conftest import run
from tests.test_train import command, complete


@pytest.fixture(scope="module")
def trained(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    complete(command(tiny, run_dir, 1))
    return run_dir


def test_results_are_byte_equal_for_1_2_and_3_processes(trained: Path, tmp_path: Path):
    texts, saved = [], []
    for processes in (1, 2, 3):
        output = tmp_path / str(processes)
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        options = ["--checkpoint", str(trained), "--output", str(output), "--max-samples", "43"]
        run(*torchrun, "evaluate.py", *options)
        texts.append((output / "metrics.json").read_bytes())
        saved.append(xarray.open_zarr(output / "forecasts.zarr").load())
    assert texts[0] == texts[1] == texts[2]
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


def test_place_without_a_checkpoint_is_one_line(tmp_path: Path):
    options = ["--checkpoint", str(tmp_path / "none"), "--output", str(tmp_path / "out")]
    result = run("evaluate.py", *options, status=2)
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
