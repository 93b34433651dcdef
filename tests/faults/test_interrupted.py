"""SIGTERM, SIGSTOP and SIGKILL of the commands themselves, and two evaluations into one folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import evaluate
import train
from aqnet.batch import Batch, Forecast
from aqnet.evaluation.report import results
from aqnet.evaluation.run import BATCHES_BETWEEN_LOOKS, Item, Scorer
from aqnet.training import loop
from tests.conftest import REPOSITORY, run
from tests.faults.configs import command
from tests.faults.soak import ranks
from tests.test_kills import assert_same_run

WHOLE = {"metrics.json", "metrics.csv", "days.npz", "reliability.csv", "forecasts.zarr"}
WHOLE.add(results.REPORT)
LONG = pytest.mark.faults
NO_EVALUATION = "asked to stop before its evaluation was made; the same command makes it"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(results, "can_draw", lambda wanted: False)


def after_training(trained: Path, folder: Path) -> tuple[Path, list[str]]:
    """A copy of the finished run, and what starts it again for its evaluation."""
    run_dir = folder / "run"
    shutil.copytree(trained / "run", run_dir)
    more = [f"run_dir={run_dir}", "train.evaluate_after_training=true"]
    return run_dir, ["--config", str(trained / "config.yaml"), *more]


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def send_before(patch: pytest.MonkeyPatch, where: Any, name: str, times: int = 1) -> None:
    """Let this process get SIGTERM just before it calls a function."""
    function = getattr(where, name)

    def call(*arguments: Any) -> Any:
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments)

    patch.setattr(where, name, call)


def test_a_run_that_gets_sigterm_saves_and_goes_on_to_the_same_bits(trained: Path, tmp_path: Path):
    """At start-up, twice in a step, and in the validation that this step still owes."""
    arguments = ["--config", str(trained / "config.yaml"), f"run_dir={tmp_path / 'run'}"]
    for where, name, times in (
        (train, "assemble", 1),
        (loop, "optimizer_step", 2),
        (loop, "validate", 1),
    ):
        with pytest.MonkeyPatch.context() as patch:
            send_before(patch, where, name, times)
            status, told = command(train.main, arguments)
        assert status == 0, told
        assert (tmp_path / "run/status").read_text() == "interrupted\n"
    assert (tmp_path / "run/checkpoints/latest").read_text() == "step_00000002\n"
    status, told = command(train.main, arguments)
    assert status == 0, told
    assert_same_run(trained / "run", tmp_path / "run")


@pytest.mark.parametrize("more", [[], ["train.max_steps=5"]], ids=["nothing left", "one step"])
def test_sigterm_before_the_evaluation_leaves_it_to_the_same_command(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
):
    """When training looks at requests to stop no more, or has nothing left to do."""
    run_dir, again = after_training(trained, tmp_path)
    said: list[str] = []
    monkeypatch.setattr(train, "say", said.append)
    send_before(monkeypatch, loop, "say_doubts")
    status, told = command(train.main, [*again, *more])
    assert status == 0, told
    assert said[-1] == f"{run_dir}: {NO_EVALUATION}"
    assert (run_dir / "status").read_text() == "finished\n"
    assert not (run_dir / "evaluation").exists()


def test_a_request_to_stop_ends_the_evaluation_after_training_between_batches(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_dir, again = after_training(trained, tmp_path)
    said: list[str] = []
    monkeypatch.setattr(train, "say", said.append)
    score, scored = Scorer.score, []

    def ask(self: Scorer, batch: Batch, forecast: Forecast) -> list[Item]:
        (run_dir / "stop_requested").touch()
        scored.append(batch)
        return score(self, batch, forecast)

    monkeypatch.setattr(Scorer, "score", ask)
    status, told = command(train.main, again)
    assert status == 0, told
    assert said[-1] == f"{run_dir}: {NO_EVALUATION}" and len(scored) == BATCHES_BETWEEN_LOOKS
    assert (run_dir / "status").read_text() == "finished\n"
    assert contents(run_dir / "evaluation") == set()
    assert not (run_dir / "stop_requested").exists()  # it was obeyed


@LONG
def test_sigterm_ends_the_evaluation_after_training_and_the_next_start_makes_it(
    trained: Path, tmp_path: Path
):
    run_dir, again = after_training(trained, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        send_before(patch, evaluate, "write_scores")
        assert command(train.main, again)[0] == 128 + signal.SIGTERM
    assert (run_dir / "status").read_text() == "finished\n"
    assert contents(run_dir / "evaluation") == set()
    assert command(train.main, again)[0] == 0
    assert contents(run_dir / "evaluation") == WHOLE


KILLED_BEFORE_ITS_REPORT = """
import os, signal
from pathlib import Path
import train
from aqnet import errors
from aqnet.evaluation.report import results

results.can_draw = lambda wanted: False
rename = Path.rename

def rename_unless_report(path, target):
    if target.name == "report.html":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)

Path.rename = rename_unless_report
errors.run(train.main)
"""


@LONG
def test_a_kill_between_scores_and_report_leaves_no_older_report_beside_them(
    trained: Path, tmp_path: Path
):
    run_dir, again = after_training(trained, tmp_path)
    output, best = run_dir / "evaluation", (run_dir / "checkpoints/best").read_text()
    output.mkdir()
    (output / "metrics.json").write_text('{"global_step": 1}')
    (output / results.REPORT).write_text("older")
    run("-c", KILLED_BEFORE_ITS_REPORT, *again, status=-signal.SIGKILL)
    scored = json.loads((output / "metrics.json").read_text())["global_step"]
    assert best == f"step_{scored:08d}\n"
    assert not (output / results.REPORT).exists()
    assert command(train.main, again)[0] == 0
    assert contents(output) == WHOLE


def test_a_second_evaluation_into_one_folder_is_refused_by_name(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = ["--checkpoint", str(trained / "run"), "--output", str(tmp_path / "report")]
    options += ["--max-samples", "4", "--no-pictures"]
    write_scores = evaluate.write_scores

    def while_another_starts(*arguments: Any) -> bool:
        told = run("evaluate.py", *options, status=2).stderr
        assert f"error: {tmp_path / 'report'}: in use by process {os.getpid()} on " in told
        return write_scores(*arguments)

    monkeypatch.setattr(evaluate, "write_scores", while_another_starts)
    status, told = command(evaluate.main, options)
    assert status == 0, told
    assert contents(tmp_path / "report") == WHOLE


@LONG  # torchrun gives the stopped rank 30 s to obey its SIGTERM
def test_a_rank_that_is_stopped_under_torchrun_is_named(tiny: dict[str, Any], tmp_path: Path):
    length = {"max_steps": 10**6, "decay_steps": 10**6, "timeout_seconds": 60}
    tree = {**tiny, "run_dir": str(tmp_path / "run"), "train": {**tiny["train"], **length}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    launcher = subprocess.Popen(
        [sys.executable, *torchrun, "--config", str(tmp_path / "config.yaml")],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        while not (tmp_path / "run/checkpoints/latest").exists():
            assert launcher.poll() is None
            time.sleep(0.1)
        (second,) = (
            process
            for process in ranks(launcher.pid)
            if b"\0RANK=1\0" in Path(f"/proc/{process}/environ").read_bytes()
        )
        os.kill(second, signal.SIGSTOP)
        _, told = launcher.communicate(timeout=600)
    finally:
        launcher.kill()  # and its workers die with it
    assert launcher.returncode
    assert "ranks that give no sign of life (stopped, killed or cut off): 1 (step" in told
