"""slurm/submit.sh: what is looked at before a job is queued."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from aqnet import config as configs
from slurm.check import job_of, seconds
from tests.conftest import REPOSITORY


def submit(tree: dict[str, Any], folder: Path, *arguments: str) -> tuple[int, str]:
    """submit.sh in a folder with a site file and a stand-in for sbatch."""
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    (folder / "site.sh").write_text("preset=lumi-g\necho $A_MODULE_READS_THIS\n")
    (folder / "sbatch").write_text('#!/usr/bin/env bash\necho "sbatch $*"\n')
    (folder / "sbatch").chmod(0o755)
    result = subprocess.run(
        ["bash", "slurm/submit.sh", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "CONFIG": str(folder / "config.yaml"),
            "RUN_DIR": str(folder / "run"),
            "SITE": str(folder / "site.sh"),
        },
    )
    return result.returncode, result.stdout + result.stderr


SMALL = ("--nodes=2", "--gpus-per-node=2", "slurm/train.sbatch")


def test_dry_run_of_a_good_job_says_what_it_will_do_and_writes_nothing(
    tiny: dict[str, Any], tmp_path: Path
):
    status, output = submit(tiny, tmp_path, "--dry-run", *SMALL, "train.max_steps=40")
    assert status == 0, output
    assert "PROBLEM" not in output and "sbatch" not in output
    assert "32 = 2 nodes x 2 processes x 2 items x 4 lead times x accumulation 1" in output
    assert "a new run" in output
    assert "for 40 steps" in output and "1 job(s) of 24.00 h" in output
    assert not (tmp_path / "run").exists()


def test_good_job_is_queued_with_its_options(tiny: dict[str, Any], tmp_path: Path):
    status, output = submit(tiny, tmp_path, *SMALL, "train.max_steps=40")
    assert status == 0, output
    assert output.splitlines()[-1] == f"sbatch {' '.join(SMALL)} train.max_steps=40"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--nodes=3", *SMALL[1:]), "is no multiple of 48"),
        ((*SMALL, "data.stores=nowhere"), "nowhere/2015.zarr: no such store"),
        ((*SMALL, "data.split.train=[2015-02]"), "training split"),
        (("--time=5", *SMALL), "leaves nothing before the signal"),
        (("--signal=B:USR1@20", *SMALL), "signal comes 20 s before"),
        (("--time=soon", *SMALL), "invalid seconds value: 'soon'"),
        ((*SMALL, "train.max_step=40"), "did you mean 'train.max_steps'?"),
    ],
)
def test_job_that_would_fail_is_not_queued(
    tiny: dict[str, Any], tmp_path: Path, arguments: tuple[str, ...], words: str
):
    status, output = submit(tiny, tmp_path, *arguments)
    assert status == 2, output
    assert words in output
    assert "sbatch -" not in output and "sbatch slurm" not in output


def test_help_says_what_is_given_and_looks_at_nothing():
    done = subprocess.run(
        ["bash", "slurm/submit.sh", "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("Checks a training job before it is queued")
    for word in ("--dry-run", "CONFIG", "RUN_DIR", "SITE", "NPROC", "slurm/lumi.sbatch"):
        assert word in done.stdout
    assert "set -euo" not in done.stdout


def test_site_that_needs_modules_says_in_one_line_that_there_are_none(tmp_path: Path):
    done = subprocess.run(
        ["bash", "slurm/submit.sh", "--dry-run", "slurm/lumi.sbatch"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        env={
            "PATH": os.environ["PATH"],
            "CONFIG": "configs/lumi_800.yaml",
            "RUN_DIR": str(tmp_path),
        },
    )
    assert done.returncode == 2
    (line,) = (done.stdout + done.stderr).splitlines()
    assert line.startswith("PROBLEM") and "'module'" in line


def test_times_are_read_as_slurm_reads_them():
    texts = ("30", "30:15", "2:30:15", "1-12", "1-12:30", "1-12:30:15", "UNLIMITED")
    day = 86400
    assert [seconds(text) for text in texts] == [
        *(1800, 1815, 9015, 1.5 * day, 1.5 * day + 1800, 1.5 * day + 1815, math.inf)
    ]


def test_shipped_scripts_say_what_they_ask_for():
    job = job_of(REPOSITORY / "slurm/lumi.sbatch", ["--time=12:00:00"], None)
    assert (job.nodes, job.per_node, job.limit, job.lead) == (100, 8, 12 * 3600, 300)
    config = configs.load(REPOSITORY / "configs/lumi_800.yaml")
    assert (config.train.effective_batch, configs.accumulation(config, job.processes)) == (6400, 2)
    job = job_of(REPOSITORY / "slurm/train.sbatch", ["-N4", "--gpus-per-node=a100:8"], None)
    assert (job.nodes, job.per_node) == (4, 8)
    job = job_of(REPOSITORY / "slurm/train.sbatch", ["--signal=B:USR1"], None)
    assert job.lead == 60  # Slurm's own
