"""Checkpoints survive kills, bit flips and full disks, and carry nothing that runs."""

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from aqnet import checkpoint
from aqnet.checkpoint import Checkpoints
from aqnet.checkpoint import files as checkpoint_files
from aqnet.errors import AqnetError


def states(step: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A small model after some optimizer steps, with random numbers of its own."""
    torch.manual_seed(step)
    model = torch.nn.Linear(5, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(2, 5)).square().sum().backward()
    optimizer.step()
    weights = model.state_dict()
    ema = {name: value * 0.5 for name, value in weights.items()}
    state = {
        "global_step": step,
        "epoch": 1,
        "items_consumed": 7,
        "config": {"data": {"lead_times": (1, 2)}, "model": {}},
        "statistics": {"pm25": {"mean": 50.0, "std": 20.0}},
        "data_checksums": {"2015.zarr": "0" * 64},
    }
    return {"model": weights, "ema": ema}, optimizer.state_dict(), state


def saved(folder: Path, losses: dict[int, float | None], keep_best: int = 1) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep_best)
    for step, loss in losses.items():
        checkpoints.save(*states(step), metric=loss)
    checkpoints.wait()
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def flip_bit(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def test_what_was_saved_is_loaded_bit_for_bit(tmp_path: Path):
    model, optimizer, _ = states(3)
    loaded = saved(tmp_path, {3: 0.25}).load_latest()
    assert loaded is not None and loaded.ema is not None
    for name, value in model["model"].items():
        assert torch.equal(loaded.model[name], value)
        assert torch.equal(loaded.ema[name], model["ema"][name])
    assert loaded.optimizer["param_groups"] == optimizer["param_groups"]
    for key, value in optimizer["state"][0].items():
        assert torch.equal(loaded.optimizer["state"][0][key], value)
    assert loaded.state["items_consumed"] == 7
    assert loaded.state["config"] == {"data": {"lead_times": [1, 2]}, "model": {}}
    assert loaded.state["validation_loss"] == 0.25
    assert set(loaded.state["sha256"]) == {"model.pt", "optimizer.pt", "state.json"}
    fresh = torch.optim.AdamW(torch.nn.Linear(5, 3).parameters())
    fresh.load_state_dict(loaded.optimizer)


def test_a_fresh_run_has_no_checkpoint(tmp_path: Path):
    assert Checkpoints(tmp_path / "absent", 3).load_latest() is None


def test_training_may_go_on_while_the_copy_is_written(tmp_path: Path):
    model, optimizer, state = states(1)
    before = {name: value.clone() for name, value in model["model"].items()}
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(model, optimizer, state, None)
    for value in model["model"].values():
        value.fill_(9.0)
    loaded = checkpoints.load_latest()
    assert loaded is not None
    assert all(torch.equal(loaded.model[name], value) for name, value in before.items())


def test_reserved_memory_is_what_is_saved_from(tmp_path: Path):
    model, optimizer, state = states(1)
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.reserve(model, optimizer)
    places = {key: buffer.data_ptr() for key, buffer in checkpoints._buffers.items()}
    checkpoints.save(model, optimizer, state, None)
    assert {key: buffer.data_ptr() for key, buffer in checkpoints._buffers.items()} == places
    loaded = checkpoints.load_latest()
    assert loaded is not None and torch.equal(loaded.model["weight"], model["model"]["weight"])


def test_the_best_and_the_newest_two_are_kept_and_named(tmp_path: Path):
    saved(tmp_path, {1: 0.3, 2: 0.1, 3: 0.2, 4: None, 5: float("nan"), 6: 0.9}, keep_best=2)
    assert names(tmp_path) == [f"step_{step:08d}" for step in (2, 3, 5, 6)]
    assert (tmp_path / "best").read_text() == "step_00000002\n"
    assert (tmp_path / "latest").read_text() == "step_00000006\n"


def test_a_run_directory_is_read_from_its_best_else_its_latest(tmp_path: Path):
    saved(tmp_path / "checkpoints", {1: None, 2: None})
    assert checkpoint.read(tmp_path).path.name == "step_00000002"
    saved(tmp_path / "checkpoints", {3: 0.1, 4: 0.2})
    assert checkpoint.read(tmp_path).path.name == "step_00000003"
    step = tmp_path / "checkpoints/step_00000004"
    assert checkpoint.read(step).state["global_step"] == 4


@pytest.mark.parametrize("text", ["", "../../elsewhere\n", "step_1\n"])
def test_a_pointer_that_names_no_checkpoint_is_refused(tmp_path: Path, text: str):
    saved(tmp_path / "checkpoints", {1: 0.5})
    (tmp_path / "checkpoints/best").write_text(text)
    with pytest.raises(AqnetError, match="checkpoints/best"):
        checkpoint.read(tmp_path)


def test_a_path_without_a_checkpoint_is_named(tmp_path: Path):
    with pytest.raises(AqnetError, match=f"{tmp_path}: no checkpoint"):
        checkpoint.read(tmp_path)


@pytest.mark.parametrize("file", ["model.pt", "optimizer.pt", "state.json"])
def test_a_bit_flip_falls_back_to_the_checkpoint_before(
    tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
):
    checkpoints = saved(tmp_path, {1: None, 2: 0.1})
    damaged = tmp_path / "step_00000002" / file
    at = damaged.read_bytes().index(b'"epoch": 1') + 9 if file == "state.json" else 700
    flip_bit(damaged, at)
    with pytest.raises(checkpoint.Damaged, match="step_00000002"):
        checkpoint.read(tmp_path / "step_00000002")
    loaded = checkpoints.load_latest()
    assert loaded is not None and loaded.state["global_step"] == 1
    said = capsys.readouterr().err
    assert "step_00000002" in said and file in said
    assert (tmp_path / "latest").read_text() == "step_00000001\n"
    assert not (tmp_path / "best").exists()
    assert names(tmp_path) == ["step_00000001", "step_00000002.damaged"]


@pytest.mark.parametrize("file", ["model.pt", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_missing_and_cut_files_fall_back_too(tmp_path: Path, file: str, how: str):
    checkpoints = saved(tmp_path, {1: None, 2: None})
    path = tmp_path / "step_00000002" / file
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
    loaded = checkpoints.load_latest()
    assert loaded is not None and loaded.state["global_step"] == 1


def test_a_run_with_damaged_checkpoints_only_does_not_start_afresh(tmp_path: Path):
    checkpoints = saved(tmp_path, {1: None})
    flip_bit(tmp_path / "step_00000001/model.pt", 300)
    for _ in range(2):
        with pytest.raises(AqnetError, match=r"step_00000001.*from the beginning"):
            checkpoints.load_latest()


def test_the_same_step_can_be_saved_again(tmp_path: Path):
    checkpoints = saved(tmp_path, {1: None})
    checkpoints.save(*states(1), metric=0.5)
    loaded = checkpoints.load_latest()
    assert loaded is not None and loaded.state["validation_loss"] == 0.5
    assert names(tmp_path) == ["step_00000001"]


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path):
    checkpoints = saved(tmp_path, {1: None, 2: None})
    (tmp_path / "step_00000003.partial").mkdir()
    (tmp_path / "step_00000003.partial/model.pt").write_bytes(b"half")
    (tmp_path / "step_00000002").rename(tmp_path / "step_00000002.replaced")
    loaded = checkpoints.load_latest()
    assert loaded is not None and loaded.state["global_step"] == 2
    assert names(tmp_path) == ["step_00000001", "step_00000002"]


def test_a_full_disk_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoints = saved(tmp_path, {1: None})
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(AqnetError, match="MB are free"):
        checkpoints.save(*states(2), metric=None)
    assert names(tmp_path) == ["step_00000001"]


@pytest.mark.parametrize("surfaces_in", ["wait", "save"])
def test_an_error_of_the_background_write_surfaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, surfaces_in: str
):
    def fails(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    checkpoints = saved(tmp_path, {1: None})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files.torch, "save", fails)
        checkpoints.save(*states(2), metric=None)
        with pytest.raises(AqnetError, match=r"step_00000002.*No space left"):
            if surfaces_in == "wait":
                checkpoints.wait()
            else:
                checkpoints.save(*states(3), metric=None)
    assert names(tmp_path) == ["step_00000001"]
    assert (tmp_path / "latest").read_text() == "step_00000001\n"
    checkpoints.save(*states(4), metric=None)  # an error is said once
    checkpoints.wait()


def test_a_disk_that_is_full_when_the_checkpoint_is_named_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    checkpoints = saved(tmp_path, {1: None})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        checkpoints.save(*states(2), metric=None)
        with pytest.raises(AqnetError, match=r"step_00000002: is whole.*No space left"):
            checkpoints.wait()
    loaded = checkpoints.load_latest()
    assert loaded is not None and loaded.state["global_step"] == 2


def test_latest_never_names_what_the_disk_did_not_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checkpoints = saved(tmp_path, {1: None})
    monkeypatch.setattr(checkpoint_files.os, "fsync", lambda file: os.ftruncate(file, 10))
    checkpoints.save(*states(2), metric=None)
    with pytest.raises(checkpoint.Damaged):
        checkpoints.wait()
    assert (tmp_path / "latest").read_text() == "step_00000001\n"


class Malicious:
    """Unpickled carelessly, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("file", ["model.pt", "optimizer.pt"])
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_malicious_pickle_runs_nothing_and_is_refused_in_one_line(
    tmp_path: Path, file: str, form: str
):
    checkpoints = saved(tmp_path, {1: None})
    step, trace = tmp_path / "step_00000001", tmp_path / "executed"
    bomb = {"model": Malicious(trace)}
    if form == "torch":
        torch.save(bomb, step / file)
    else:
        (step / file).write_bytes(pickle.dumps(bomb))
    state = json.loads((step / "state.json").read_bytes())  # the attacker mends the checksum
    state["sha256"][file] = hashlib.sha256((step / file).read_bytes()).hexdigest()
    (step / "state.json").write_text(json.dumps(state))
    for load in (checkpoints.load_latest, lambda: checkpoint.read(step)):
        with pytest.raises(AqnetError) as error:
            load()
        assert not isinstance(error.value, checkpoint.Damaged)
        assert "\n" not in str(error.value)
        assert file in str(error.value) and "refused" in str(error.value)
    assert not trace.exists()


def test_only_plain_values_can_be_saved(tmp_path: Path):
    model, optimizer, state = states(1)
    with pytest.raises(TypeError, match="Path"):
        Checkpoints(tmp_path, 1).save({**model, "path": tmp_path}, optimizer, state, None)
