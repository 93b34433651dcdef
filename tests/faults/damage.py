"""What can happen to the files of a checkpoint directory, and what then must not: case by case.

`python -m tests.faults` runs hundreds of them; test_damaged_checkpoints.py a few.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from aqnet import checkpoint
from aqnet.checkpoint import Checkpoints
from aqnet.errors import AqnetError
from tests.checkpoint.test_checkpoint import saved, states

FILES = ("model.pt", "optimizer.pt", "state.json")
POINTERS = ("latest", "best")


def _truncated(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size))


def _flipped(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 30))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def _longer(path: Path, chance: random.Random) -> None:
    with path.open("ab") as file:
        file.write(chance.randbytes(chance.randrange(1, 3000)))


def _emptied(path: Path, chance: random.Random) -> None:
    path.write_bytes(b"")


def _random(path: Path, chance: random.Random) -> None:
    path.write_bytes(chance.randbytes(path.stat().st_size))


def _removed(path: Path, chance: random.Random) -> None:
    path.unlink()


def _a_directory(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _a_link_loop(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _a_pipe(path: Path, chance: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _nested(path: Path, chance: random.Random) -> None:
    path.write_text("[" * 200_000)


Harm = Callable[[Path, random.Random], None]
KINDS: tuple[Harm, ...] = (
    *(_truncated, _flipped, _longer, _emptied, _random, _removed),
    *(_a_directory, _a_link_loop, _a_pipe, _nested),
)
TARGETS: tuple[str | Harm, ...] = (
    *("step_00000099\n", "", "\n", "..\n", "../../other\n", "/etc\n", "step_1\n", "\0" * 80),
    *(_a_directory, _a_link_loop, _a_pipe, _nested, _random),
)


def cases(number: int, seed: int) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """`number` cases, each a name and what it does to the folder of a checkpoint."""
    chance = random.Random(seed)
    every = [(kind, file) for kind in KINDS for file in FILES]
    for at in range(number):
        kind, file = every[at % len(every)]
        yield f"{file} {kind.__name__.strip('_')}", _on(kind, file, chance)


def _on(kind: Harm, file: str, chance: random.Random) -> Callable[[Path], None]:
    return lambda folder: kind(folder / file, chance)


def original(folder: Path) -> Path:
    """Two good checkpoints, the second the latest and the best."""
    saved(folder / "checkpoints", {1: 0.2, 2: 0.1})
    return folder


def with_best_first(folder: Path) -> Path:
    """Three good checkpoints, the first the best, the third the latest."""
    saved(folder / "checkpoints", {1: 0.1, 2: 0.2, 3: 0.3})
    return folder


def copied(good: Path, scratch: Path) -> Path:
    """A copy of a run directory, in place of the last one."""
    run = scratch / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(good, run)
    return run


def check(good: Path, scratch: Path, harm: Callable[[Path], None]) -> None:
    """Harm the newest checkpoint in a copy of `good`: it is never loaded, the one before it is.

    Raises:
        AssertionError: something else happened.
    """
    run = copied(good, scratch)
    folder = run / "checkpoints"
    newest = folder / "step_00000002"
    harm(newest)
    try:
        checkpoint.read(run)
    except AqnetError as error:
        assert "step_00000002" in str(error) and "\n" not in str(error), str(error)
    else:
        raise AssertionError("a damaged checkpoint was read as the best one")
    _falls_back(folder)
    assert (folder / "step_00000002.damaged").exists()


def check_best(good: Path, scratch: Path, harm: Callable[[Path], None]) -> None:
    """Harm the best checkpoint, not the newest, in a copy of `with_best_first`: training goes on
    from the newest, and the best whole one is named and kept from then on.

    Raises:
        AssertionError: something else happened.
    """
    run = copied(good, scratch)
    folder = run / "checkpoints"
    harm(folder / "step_00000001")
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        checkpoints = Checkpoints(folder, 1)
        loaded = checkpoints.load_latest()
    assert loaded is not None and loaded.state["global_step"] == 3
    [line] = told.getvalue().splitlines()
    assert "step_00000001: damaged checkpoint" in line and "set aside" in line, line
    assert (folder / "step_00000001.damaged").exists()
    assert (folder / "best").read_text() == "step_00000002\n"
    assert checkpoint.read(run).state["global_step"] == 2
    for step, loss in ((4, 0.15), (5, 0.4), (6, 0.5)):
        checkpoints.save(*states(step), metric=loss)
    checkpoints.wait()
    assert checkpoint.read(run).state["global_step"] == 4


def check_pointer(good: Path, scratch: Path, pointer: str, target: str | Harm) -> None:
    """Let `latest` or `best` hold `target`, or be something else than a file: what it names is not
    read, training goes on, and names it in one line."""
    run = copied(good, scratch)
    if callable(target):
        target(run / "checkpoints" / pointer, random.Random(0))
    else:
        (run / "checkpoints" / pointer).write_text(target)
    if pointer == "best":
        try:
            checkpoint.read(run)
        except AqnetError as error:
            assert str(run / "checkpoints") in str(error) and "\n" not in str(error), str(error)
        else:
            raise AssertionError(f"{target!r} was followed")
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        loaded = Checkpoints(run / "checkpoints", 1).load_latest()
    assert loaded is not None and loaded.state["global_step"] == 2
    [line] = told.getvalue().splitlines()
    assert line.startswith(f"warning: {run}/checkpoints/{pointer}: "), line
    assert "written anew" in line and len(line) < 1000, line
    assert (run / "checkpoints" / pointer).read_text() == "step_00000002\n"


def _falls_back(folder: Path) -> None:
    loaded = Checkpoints(folder, 1).load_latest()
    assert loaded is not None and loaded.state["global_step"] == 1
    model, optimizer, _ = states(1)
    for name, value in model["model"].items():
        assert torch.equal(loaded.model[name], value)
    assert loaded.optimizer["param_groups"] == optimizer["param_groups"]
    assert (folder / "latest").read_text() == "step_00000001\n"
