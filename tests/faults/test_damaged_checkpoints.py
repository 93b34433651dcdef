"""No damaged or hostile checkpoint is taken for a good one; the one before it is used and named."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from aqnet import checkpoint
from aqnet.checkpoint import Checkpoints
from aqnet.checkpoint import files as checkpoint_files
from aqnet.errors import AqnetError
from tests.checkpoint.test_checkpoint import saved, states
from tests.faults import damage


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return damage.original(tmp_path_factory.mktemp("good"))


CASES = list(damage.cases(len(damage.KINDS) * len(damage.FILES), 0))


@pytest.mark.parametrize(("name", "harm"), CASES, ids=[name for name, _ in CASES])
def test_a_damaged_file_leads_to_the_checkpoint_before(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, harm: Any
):
    damage.check(good, tmp_path, harm)
    told = capsys.readouterr().err
    assert "step_00000002: damaged checkpoint" in told and "using the one before" in told


@pytest.fixture(scope="module")
def best_first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return damage.with_best_first(tmp_path_factory.mktemp("best_first"))


@pytest.mark.parametrize(("name", "harm"), CASES, ids=[name for name, _ in CASES])
def test_a_damaged_best_that_is_not_the_newest_is_set_aside_and_the_best_left_named(
    best_first: Path, tmp_path: Path, name: str, harm: Any
):
    damage.check_best(best_first, tmp_path, harm)


def test_the_newest_is_the_best_where_all_better_ones_are_damaged(best_first: Path, tmp_path: Path):
    run = shutil.copytree(best_first, tmp_path / "run")
    for step in (1, 2):
        (run / f"checkpoints/step_0000000{step}/model.pt").unlink()
    Checkpoints(run / "checkpoints", 1).load_latest()
    assert checkpoint.read(run).state["global_step"] == 3
    aside = sorted(path.name for path in (run / "checkpoints").glob("*.damaged"))
    assert aside == ["step_00000001.damaged", "step_00000002.damaged"]


def test_only_the_best_and_the_newest_are_read_at_a_start(
    best_first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = shutil.copytree(best_first, tmp_path / "run")
    (run / "checkpoints/step_00000002/model.pt").unlink()
    hashed: list[str] = []
    one = checkpoint_files._sha256

    def counted(path: Path) -> str:
        hashed.append(f"{path.parent.name}/{path.name}")
        return one(path)

    monkeypatch.setattr(checkpoint_files, "_sha256", counted)
    assert Checkpoints(run / "checkpoints", 1).load_latest() is not None
    once = [f"step_0000000{step}/{name}.pt" for step in (1, 3) for name in ("model", "optimizer")]
    assert sorted(hashed) == once


@pytest.mark.parametrize("pointer", damage.POINTERS)
def test_a_folder_in_place_of_a_name_is_set_aside_with_what_is_in_it(
    good: Path, tmp_path: Path, pointer: str
):
    """Also before the first checkpoint, which could not be named after hours of training."""
    for name, folder in (("with", good / "checkpoints"), ("without", tmp_path / "empty")):
        folder.mkdir(exist_ok=True)
        checkpoints = shutil.copytree(folder, tmp_path / name)
        (checkpoints / pointer).unlink(missing_ok=True)
        (checkpoints / pointer / "inside").mkdir(parents=True)
        Checkpoints(checkpoints, 1).load_latest()
        assert (checkpoints / f"{pointer}.damaged/inside").is_dir()
        assert not (checkpoints / pointer).is_dir()


@pytest.mark.parametrize("pointer", damage.POINTERS)
@pytest.mark.parametrize(
    "target", damage.TARGETS, ids=lambda target: getattr(target, "__name__", repr(target)[:20])
)
def test_a_name_that_leads_nowhere_or_out_of_the_directory_is_not_followed(
    good: Path, tmp_path: Path, pointer: str, target: Any
):
    damage.check_pointer(good, tmp_path, pointer, target)


@pytest.mark.parametrize("what", ["directory", "link loop"])
def test_a_name_that_is_no_file_is_named(good: Path, tmp_path: Path, what: str):
    shutil.copytree(good, tmp_path / "run")
    best = tmp_path / "run/checkpoints/best"
    best.unlink()
    if what == "directory":
        best.mkdir()
    else:
        best.symlink_to("best")
    with pytest.raises(AqnetError, match="checkpoints/best: cannot be read"):
        checkpoint.read(tmp_path / "run")


def nested(levels: int) -> dict[str, Any]:
    return {"deeper": nested(levels - 1)} if levels else {}


GONE = "(gone)"


def edited(step: Path, **changes: Any) -> None:
    """Change state.json as an attacker would, who mends its checksum; `GONE` removes a key."""
    state = {**json.loads((step / "state.json").read_bytes()), **changes}
    state = {key: value for key, value in state.items() if value is not GONE}
    sums = state.pop("sha256")
    sums["state.json"] = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    (step / "state.json").write_text(json.dumps({**state, "sha256": sums}))


@pytest.mark.parametrize(
    "changes",
    [
        {"global_step": "2"},
        {"global_step": 3},  # another step's checkpoint under this name
        {"global_step": True},
        {"epoch": -1},
        {"items_consumed": 10**30},
        {"config": [1]},
        {"statistics": None},
        {"best_metric": "low"},
        {"best_metric": 10**400},
        {"seconds": float("nan")},
        {"config": {"data": {}, "model": [1]}},
        {"config": {"model": {}}},
        {"config": {"data": nested(900), "model": {}}},
        {"statistics": {"pm25": 3}},
        {"statistics": {"pm25": {"mean": 1.0}}},
        {"statistics": {"pm25": {"mean": 1.0, "std": 10**400}}},
        {"data_checksums": {"2015.zarr": 5}},
        {"grid": 3},
        {"channels": {"weather": [], "air": [[]]}},
        {"channels": ["pm25"]},
        {"units": ["K"]},
        {"imported": {"initialised": 3}},
        *({key: GONE} for key in ("global_step", "config", "statistics", "data_checksums")),
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_a_mistyped_state_leads_to_the_checkpoint_before(
    good: Path, tmp_path: Path, changes: dict[str, Any]
):
    def harm(step: Path) -> None:
        edited(step, **changes)

    damage.check(good, tmp_path, harm)


@pytest.mark.parametrize("loss", [10**400, "low", True, [0.1]], ids=lambda loss: str(loss)[:20])
def test_a_mistyped_loss_of_an_older_checkpoint_is_never_the_best(
    good: Path, tmp_path: Path, loss: Any
):
    run = shutil.copytree(good, tmp_path / "run")
    edited(run / "checkpoints/step_00000001", validation_loss=loss)
    loaded = Checkpoints(run / "checkpoints", 1).load_latest()
    assert loaded is not None and loaded.state["global_step"] == 2
    assert (run / "checkpoints/best").read_text() == "step_00000002\n"


@pytest.mark.parametrize("key", ["channels", "units"])
def test_static_fields_without_their_names_are_no_whole_checkpoint(tmp_path: Path, key: str):
    model, optimizer, state = states(1)
    model["grid"] = model["static"] = {"elevation": torch.zeros(2, 2)}
    words = {"channels": {"weather": [], "air": ["pm25"]}, "units": {"pm25": "ug m-3"}}
    checkpoint_files.write(tmp_path / "step_00000001", model, optimizer, {**state, **words})
    checkpoint.read(tmp_path / "step_00000001")
    edited(tmp_path / "step_00000001", **{key: GONE})
    with pytest.raises(checkpoint.Damaged, match=f"step_00000001.*lacks {key}"):
        checkpoint.read(tmp_path / "step_00000001")


def test_a_state_larger_than_any_is_not_read(good: Path, tmp_path: Path):
    def harm(step: Path) -> None:
        with (step / "state.json").open("ab") as file:
            file.truncate(10**12)  # sparse: takes no room

    damage.check(good, tmp_path, harm)


@pytest.mark.parametrize("file", ["model.pt", "optimizer.pt"])
def test_a_tensor_larger_than_its_file_is_refused(tmp_path: Path, file: str):
    """10^12 elements that repeat one value take no room in a file, but do in an optimizer."""
    saved(tmp_path, {1: None})
    step = tmp_path / "step_00000001"
    torch.save({"model": {"weight": torch.zeros(1).expand(10**12)}}, step / file)
    state = json.loads((step / "state.json").read_bytes())
    state["sha256"][file] = hashlib.sha256((step / file).read_bytes()).hexdigest()
    (step / "state.json").write_text(json.dumps(state))
    with pytest.raises(AqnetError, match=f"{file}: refused: its tensors are larger"):
        checkpoint.read(step)


def test_an_archive_that_unpacks_to_more_than_itself_is_refused(tmp_path: Path):
    torch.save({"weight": torch.zeros(10**6)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    with pytest.raises(AqnetError, match="members are larger than the file"):
        checkpoint_files.load_tensors(tmp_path / "bomb.pt")


@pytest.mark.parametrize("what", ["file", "link", "folder"])
@pytest.mark.parametrize(
    "name", ["step_00000002.damaged", "step_00000003.partial", "latest.partial"]
)
def test_whatever_stands_where_a_damaged_one_goes_is_replaced(
    good: Path, tmp_path: Path, name: str, what: str
):
    def harm(step: Path) -> None:
        (step / "model.pt").unlink()
        place = step.with_name(name)
        if what == "file":
            place.touch()
        elif what == "link":
            place.symlink_to(step.with_name("step_00000001"))
        else:
            (place / "inside").mkdir(parents=True)

    damage.check(good, tmp_path, harm)


def test_checkpoints_that_is_a_file_is_named_before_training(tmp_path: Path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(AqnetError, match="checkpoints: is no folder"):
        Checkpoints(tmp_path / "checkpoints", 1).load_latest()
