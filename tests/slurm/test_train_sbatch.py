"""What slurm/train.sbatch decides, with stand-ins for Slurm's commands (no Slurm needed)."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# each stand-in notes how it was called; srun "trains": until asked to stop, or as SCENE says
SRUN = r"""#!/usr/bin/env bash
echo "srun $*" >>"$CALLS"
env | grep -E "^(NCCL|FI|TORCH|SRUN)_" >>"$CALLS"
if [ "$SCENE" = fails ]; then
  printf 'step 1\nstep 2\n' >"$RUN_DIR/logs/17-0-node0-a.log"
  printf 'error: why\nE1 torch/distributed/elastic/multiprocessing/api.py:1] failed\nTraceback\n' |
    tee "$RUN_DIR/logs/17-0-node1-b.log" >>"$RUN_DIR/logs/17-0-node0-a.log"
  exit 3
fi
mkdir -p "$RUN_DIR/checkpoints"
case $SCENE in
  finishes)
    [ ! -d "$RUN_DIR/evaluation/logs" ] || echo scores >"$RUN_DIR/evaluation/logs/17-0-node0-a.log"
    echo finished >"$RUN_DIR/status"; exit 0 ;;
  cancelled) echo interrupted >"$RUN_DIR/status"; exit 0 ;;
esac
until [ -e "$RUN_DIR/stop_requested" ]; do sleep 0.05; done
[ "$SCENE" = stuck ] || echo step_00000007 >"$RUN_DIR/checkpoints/latest"
[ "$SCENE" = too_late ] && echo finished >"$RUN_DIR/status" || echo interrupted >"$RUN_DIR/status"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >>"$CALLS"
[ "$1" != show ] || echo localhost
"""
MODULE = """#!/usr/bin/env bash
echo "module $*" >>"$CALLS"
"""


def batch(
    tmp_path: Path, scene: str, signalled: bool = False, script: str = "train.sbatch"
) -> tuple[int, str, str]:
    """Run the script in the scene; returns its status, its output and the commands it gave."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("module", MODULE)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    calls = tmp_path / "calls"
    process = subprocess.Popen(
        ["bash", f"slurm/{script}", "train.max_steps=9"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "SCENE": scene,
            "CONFIG": "configs/demo.yaml",
            "RUN_DIR": str(tmp_path / "run"),
            "SLURM_JOB_ID": "17",
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_GPUS_ON_NODE": "8",
            "SLURM_CPUS_PER_TASK": "56",
        },
    )
    if signalled:
        end = time.monotonic() + 10
        while not calls.exists() or "srun" not in calls.read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)  # Slurm's --signal=B: reaches this shell alone
    output, _ = process.communicate(timeout=20)
    return process.returncode, output, calls.read_text()


@pytest.mark.parametrize(
    ("scene", "signalled", "status", "requeued"),
    [
        ("finishes", False, 0, False),
        ("stops", True, 0, True),
        ("too_late", True, 0, False),  # it finished while the signal came
        ("cancelled", False, 0, False),  # interrupted, but not by the time limit
        ("stuck", True, 1, False),  # no new checkpoint: it would be requeued for ever
        ("fails", False, 3, False),
    ],
)
def test_requeues_only_what_its_own_signal_stopped(
    tmp_path: Path, scene: str, signalled: bool, status: int, requeued: bool
):
    found, output, calls = batch(tmp_path, scene, signalled)
    assert found == status, output
    assert ("scontrol requeue 17" in calls) == requeued


def test_starts_one_torchrun_per_node_with_the_nodes_gpus(tmp_path: Path):
    _, _, calls = batch(tmp_path, "finishes")
    (line,) = [line for line in calls.splitlines() if line.startswith("srun")]
    assert "--ntasks-per-node=1" in line
    assert "--nproc_per_node=8" in line
    assert "--rdzv_id=17-0 --rdzv_backend=c10d --rdzv_endpoint=localhost:20017" in line
    end = f"train.py --config configs/demo.yaml run_dir={tmp_path}/run train.max_steps=9"
    assert line.endswith(end)


def test_lumi_starts_the_container_on_each_node_with_what_its_libraries_read(tmp_path: Path):
    status, output, calls = batch(tmp_path, "finishes", script="lumi.sbatch")
    assert status == 0, output
    lines = calls.splitlines()
    assert "module load lumi-aif-singularity-bindings" in lines
    line = calls[calls.index("srun ") :]
    assert "singularity exec -B aqnet.sqsh:/user-software:image-src=/ /appl/local/laifs" in line
    assert "torch.distributed.run --numa-binding=exclusive --nnodes=1 --nproc_per_node=8" in line
    expected = {"NCCL_SOCKET_IFNAME=hsn", "FI_MR_CACHE_MONITOR=userfaultfd"}
    expected |= {"TORCH_NCCL_DUMP_ON_TIMEOUT=1", "SRUN_CPUS_PER_TASK=56"}
    assert expected <= set(lines)
    assert not [line for line in lines if line.startswith(("NCCL_IB", "NCCL_NET_GDR"))]


def test_failed_job_says_why_in_its_own_output(tmp_path: Path):
    _, output, _ = batch(tmp_path, "fails")
    end = output[output.index("--- the end of") :].splitlines()
    assert end[1:4] == ["step 1", "step 2", "error: why"]
    assert end[-1] == "error: why"
    assert "Traceback" not in output


def test_failed_job_of_hundreds_of_nodes_says_why_too(tmp_path: Path):
    logs = tmp_path / "run/logs"
    logs.mkdir(parents=True)
    for node in range(2, 1000):  # more names than a pipe holds
        (logs / f"17-0-node{node}-{'n' * 80}.log").touch()
    status, output, _ = batch(tmp_path, "fails")
    assert (status, output.splitlines()[-1]) == (3, "error: why")


def test_evaluation_that_succeeds_shows_its_scores(tmp_path: Path):
    status, output, _ = batch(tmp_path, "finishes", script="evaluate.sbatch")
    assert (status, output.splitlines()[-1]) == (0, "scores")
