"""What the commands say about damaged training stores."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import run


@pytest.mark.parametrize("workers", [0, 2])
def test_training_on_a_damaged_hour_ends_with_one_line_that_names_it(
    tiny: dict[str, Any], tmp_path: Path, workers: int
):
    stores = tmp_path / "stores"
    shutil.copytree(tiny["data"]["stores"], stores)
    for shard in range(4):  # of the training fortnight
        file = stores / f"2015.zarr/air/c/{shard}/0/0/0"
        data = bytearray(file.read_bytes())
        for at in range(1000, len(data) - 1000, 500):
            data[at] ^= 64
        file.write_bytes(data)
    tree = {**tiny, "run_dir": str(tmp_path / "run"), "data": {**tiny["data"]}}
    tree["data"]["stores"] = str(stores)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    arguments = ("--config", str(tmp_path / "config.yaml"), f"train.workers={workers}")
    result = run("train.py", *arguments, "model.predict=value", status=2)
    errors = result.stderr.strip().splitlines()
    assert len(errors) == 1, result.stderr
    assert f"{stores}/2015.zarr: the fields of 2015-01-" in errors[0]
    assert "prepare it again" in errors[0]


def test_inspect_tells_a_wrong_path_from_a_damaged_store(tiny: dict[str, Any], tmp_path: Path):
    result = run("-m", "aqnet.data.inspect", str(tmp_path / "nowhere.zarr"), status=2)
    assert result.stderr == f"error: {tmp_path}/nowhere.zarr: no such file or folder\n"
    shutil.copytree(Path(tiny["data"]["stores"]) / "2015.zarr", tmp_path / "2015.zarr")
    (tmp_path / "2015.zarr/air/c/3/0/0/0").unlink()
    result = run("-m", "aqnet.data.inspect", str(tmp_path / "2015.zarr"), status=1)
    assert "the fields of 2015-01-07T00 cannot be read" in result.stdout
    assert "8,760, every 1 h" in result.stdout
    assert "data_2015_china_masked.zarr, resample: none" in result.stdout
