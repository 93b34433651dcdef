"""A full or read-only disk: one line and status 2; what was there stays; it goes on with room."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import evaluate
import train
from aqnet.data.prepare import run as prepare
from aqnet.errors import AqnetError
from aqnet.run_directory import RunDirectory
from tests.faults import disk
from tests.faults.configs import command

NUMBER = int(os.environ.get("AQNET_FAULTS_DISKS", "5"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    torch.set_num_threads(1)
    try:
        with disk.mounted(tmp_path / "mount") as folder:
            yield folder
    except PermissionError as error:
        pytest.skip(str(error))


def sizes(most: int) -> list[int]:
    """From nothing to more than enough, evenly in their logarithm."""
    return [0, *(int(4096 * (most / 4096) ** (at / max(1, NUMBER - 1))) for at in range(NUMBER))]


def test_training_on_a_full_disk_is_one_line_and_goes_on_with_room(trained: Path, place: Path):
    for number, free in enumerate(sizes(2**21)):
        run_dir = place / f"run{number}"
        arguments = ["--config", str(trained / "config.yaml"), f"run_dir={run_dir}"]
        disk.check(train.main, arguments, disk.full(place, free))
        status, told = command(train.main, arguments)
        assert status == 0, told
        assert (run_dir / "status").read_text() == "finished\n"
        shutil.rmtree(run_dir)


def test_a_run_that_meets_a_full_disk_keeps_its_checkpoints(trained: Path, place: Path):
    run_dir = place / "run"
    shutil.copytree(trained / "run", run_dir)
    before = kept(run_dir)
    assert any(name.endswith("optimizer.pt") for name in before) and "best" in before
    arguments = ["--config", str(trained / "config.yaml"), f"run_dir={run_dir}"]
    more = [*arguments, "train.max_steps=6", "train.checkpoint_every=1"]
    for trouble in (disk.full(place, 0), disk.full(place, 40_000), disk.read_only(place)):
        assert disk.check(train.main, more, trouble) == "refused"
        now = kept(run_dir)
        assert {name: now.get(name) for name in before} == before


def kept(run_dir: Path) -> dict[str, bytes]:
    """Every file of a run's checkpoints, and `latest` and `best`, by its name."""
    return disk.contents(run_dir / "checkpoints")


def test_a_status_that_cannot_be_written_does_not_hide_why_a_run_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(self: RunDirectory, text: str) -> None:
        raise AqnetError(f"{self.path}/status: cannot be written (No space left on device)")

    def run() -> None:
        try:
            raise AqnetError("step_00000004: cannot be written (No space left on device)")
        except BaseException:
            RunDirectory(tmp_path).failed()
            raise

    monkeypatch.delenv(disk.TRIED, raising=False)  # there is no disk here
    monkeypatch.setattr(RunDirectory, "status", full)
    assert disk.check(run, [], contextlib.nullcontext()) == "refused"

    def hiding(self: RunDirectory) -> None:
        self.status("failed")

    monkeypatch.setattr(RunDirectory, "failed", hiding)
    with pytest.raises(AssertionError, match="but the first was step_00000004"):
        disk.check(run, [], contextlib.nullcontext())


def test_evaluation_on_a_full_disk_leaves_the_scores_before(trained: Path, place: Path):
    output = place / "report"
    options = ["--checkpoint", str(trained / "run"), "--output", str(output)]
    options += ["--max-samples", "4", "--no-pictures"]
    assert command(evaluate.main, options)[0] == 0
    before = disk.contents(output)
    refused = 0
    for free in sizes(2**20):
        outcome = disk.check(evaluate.main, options, disk.full(place, free))
        refused += outcome == "refused"
        assert set(results(output)) == set(before)
        if outcome == "refused":
            assert results(output) == before
    assert disk.check(evaluate.main, options, disk.read_only(place)) == "refused"
    assert results(output) == before and refused


def results(output: Path) -> dict[str, bytes]:
    """Without what was given up, which zarr's own thread may still write to, and which the next
    evaluation removes."""
    found = disk.contents(output).items()
    return {name: held for name, held in found if not name.startswith("new.partial")}


def test_one_forecast_on_a_full_disk_leaves_nothing_that_looks_whole(trained: Path, place: Path):
    options = ["--checkpoint", str(trained / "run"), "--output", str(place / "forecasts")]
    options += ["--forecast", "2015-01-25T00", "--no-pictures"]
    for free in sizes(2**18):
        if disk.check(evaluate.main, options, disk.full(place, free)) == "refused":
            assert not list(place.glob("forecasts/*"))
        shutil.rmtree(place / "forecasts", ignore_errors=True)


def test_preparing_on_a_full_disk_is_one_line_and_goes_on_with_room(
    tiny: dict[str, Any], tmp_path: Path, place: Path
):
    tree = {**tiny, "data": {**tiny["data"], "stores": str(place / "stores")}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    arguments = ["--config", str(tmp_path / "config.yaml")]
    for free in sizes(2**22)[: max(2, NUMBER // 3)]:
        disk.check(prepare.main, arguments, disk.full(place, free))
        assert not (place / "stores/2015.zarr").exists()
    status, told = command(prepare.main, arguments)
    assert status == 0, told
    assert (place / "stores/2015.zarr").exists()
