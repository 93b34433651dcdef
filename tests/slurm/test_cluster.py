"""slurm/*.sbatch on a real Slurm of three virtual nodes: trains, stops, goes on, is scored."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from aqnet import checkpoint
from tests.conftest import REPOSITORY
from tests.data.source_writers import CONFIG, fields, hours, write_zarr
from tests.slurm.cluster import Cluster, environment, steps
from tests.test_train import losses

pytestmark = pytest.mark.slurm
TOOL = REPOSITORY.parent / "shared/tools/local_slurm"
ENDLESS = ("train.max_steps=1000000", "train.decay_steps=5000", "validation.every=1000000")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Up for these tests, and down after them whatever happens."""
    if not TOOL.exists():
        pytest.skip(f"no {TOOL}, which starts a Slurm for tests")
    if os.getuid() != 0 and shutil.which("slurmctld") is None:
        pytest.skip("no slurmctld, and only root can install it")
    folder = tmp_path_factory.mktemp("slurm")
    surroundings = environment(
        LOCAL_SLURM_DIR=str(folder), SLURM_CONF=str(folder / "slurm.conf"), USER="root"
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends pytest in order
    try:
        subprocess.run([str(TOOL), "up", "3"], env=surroundings, check=True, timeout=300)
        yield Cluster(TOOL, surroundings, folder)
    finally:
        subprocess.run([str(TOOL), "down"], env=surroundings, check=True, timeout=60)


@pytest.fixture
def run_dir(tiny: dict[str, Any], tmp_path: Path) -> Path:
    """A run directory to be, with the config RUN_DIR.yaml beside it."""
    path = tmp_path / "run"
    path.with_suffix(".yaml").write_text(yaml.safe_dump({**tiny, "run_dir": "unused"}))
    return path


def train(cluster: Cluster, run_dir: Path, *arguments: str, options: tuple[str, ...] = ()) -> str:
    """Submit slurm/train.sbatch, as it is, on two nodes."""
    return cluster.submit(
        *("--nodes=2", "--time=30", *options, "slurm/train.sbatch", *arguments),
        CONFIG=str(run_dir.with_suffix(".yaml")),
        RUN_DIR=str(run_dir),
    )


def evaluate_after(cluster: Cluster, job: str, run_dir: Path) -> str:
    """Submit slurm/evaluate.sbatch for when `job` has succeeded."""
    dependent = ("--nodes=1", "--time=30", f"--dependency=afterok:{job}", "slurm/evaluate.sbatch")
    return cluster.submit(*dependent, "--max-samples", "20", RUN_DIR=str(run_dir))


def is_state(*states: str):
    return lambda job: job["JobState"] in states


def status(run_dir: Path) -> str:
    return (run_dir / "status").read_text().strip()


def test_two_nodes_train_and_are_scored_by_the_dependent_job(cluster: Cluster, run_dir: Path):
    job = train(cluster, run_dir, "train.max_steps=40", "train.warmup_steps=10")
    after = evaluate_after(cluster, job, run_dir)
    cluster.wait(job, "completed", 120, is_state("COMPLETED"))
    assert status(run_dir) == "finished"
    history = losses(run_dir)
    assert set(history) == set(range(1, 41))
    assert history[40] < history[1]
    logs = sorted(path.name for path in (run_dir / "logs").iterdir())
    assert [name.rpartition("-")[0] for name in logs] == [f"{job}-0-node0", f"{job}-0-node1"]
    assert any("network: " in path.read_text() for path in (run_dir / "logs").iterdir())
    assert f"tensorboard --logdir {run_dir}/tensorboard" in cluster.log(job)
    cluster.wait(after, "completed", 600, is_state("COMPLETED"))
    assert (run_dir / "evaluation/metrics.csv").exists()
    assert "written:" in cluster.log(after)


def test_job_signalled_before_its_limit_is_requeued_and_goes_on(cluster: Cluster, run_dir: Path):
    # Slurm looks every 30 s, so the signal comes 15 to 45 s after the start
    early = ("--time=2", "--signal=B:USR1@75")
    job = train(cluster, run_dir, *ENDLESS, "train.checkpoint_every=1000000", options=early)
    after = evaluate_after(cluster, job, run_dir)
    cluster.wait(job, "requeued", 90, lambda job: job["Restarts"] == "1")
    cluster.give_time(job, 20)  # the stop by hand below has to come before another signal
    assert status(run_dir) == "interrupted"
    assert cluster.job(after)["JobState"] == "PENDING"  # as long as the training may go on
    stopped = steps(run_dir)
    state = checkpoint.read(latest(run_dir)).state
    assert state["global_step"] == stopped > 0
    cluster.wait(job, "going on", 90, lambda job: steps(run_dir) > stopped)
    history = losses(run_dir)
    assert set(history) == set(range(1, max(history) + 1))
    assert cluster.job(after)["JobState"] == "PENDING"
    cluster.cancel(after)
    (run_dir / "stop_requested").touch()
    cluster.wait(job, "stopped by hand, for good", 60, is_state("COMPLETED"))
    assert status(run_dir) == "interrupted"
    assert cluster.job(job)["Restarts"] == "1"


def test_cancelled_job_leaves_a_good_checkpoint_and_stays_cancelled(
    cluster: Cluster, run_dir: Path
):
    job = train(cluster, run_dir, *ENDLESS, "train.checkpoint_every=1000000")
    cluster.wait(job, "training", 90, lambda job: steps(run_dir) > 10)
    cluster.cancel(job)
    cluster.wait(job, "gone", 60, is_state("CANCELLED"))
    cluster.wait(job, "out of its nodes", 60, lambda job: not (run_dir / "lock").exists())
    assert status(run_dir) == "interrupted"
    assert checkpoint.read(latest(run_dir)).state["global_step"] == steps(run_dir) > 10
    assert cluster.job(job)["Restarts"] == "0"


def test_killed_node_ends_in_a_requeue_on_the_others(cluster: Cluster, run_dir: Path):
    job = train(cluster, run_dir, *ENDLESS, "train.checkpoint_every=20")
    cluster.wait(job, "training", 90, lambda job: steps(run_dir) > 30)
    assert cluster.job(job)["NodeList"] == "n[1-2]"
    cluster.kill("n2")
    cluster.wait(job, "requeued", 90, lambda job: job["Restarts"] == "1")
    before = steps(run_dir)
    saved = checkpoint.read(latest(run_dir)).state["global_step"]
    cluster.wait(job, "running", 120, is_state("RUNNING"))
    assert cluster.job(job)["NodeList"] == "n[1,3]"
    cluster.wait(job, "going on", 120, lambda job: steps(run_dir) > before)
    assert before - 20 <= saved <= before
    cluster.cancel(job)
    cluster.wait(job, "gone", 60, is_state("CANCELLED"))


def latest(run_dir: Path) -> Path:
    name = (run_dir / "checkpoints/latest").read_text().strip()
    return run_dir / "checkpoints" / name


def test_array_prepares_a_year_per_task_and_the_job_after_it_the_statistics(
    cluster: Cluster, tmp_path: Path
):
    data = {"sources": [{"path": f"{tmp_path}/data_*.zarr"}], "stores": str(tmp_path / "stores")}
    for year in (2013, 2014, 2015):
        write_zarr(tmp_path / f"data_{year}.zarr", hours(year, 60), fields(60, year))
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**CONFIG, "data": CONFIG["data"] | data}))
    short = ("--nodes=1", "--time=30")
    array = (*short, "--array=0-2", "slurm/prepare.sbatch")
    job = cluster.submit(*array, CONFIG=str(config), FIRST_YEAR="2013")
    dependent = (*short, f"--dependency=afterok:{job}", "slurm/prepare.sbatch")
    after = cluster.submit(*dependent, CONFIG=str(config))
    cluster.wait(after, "completed", 600, is_state("COMPLETED"))
    assert "3 years, 3 complete" in cluster.log(after)
    assert (tmp_path / "stores/statistics.json").exists()
