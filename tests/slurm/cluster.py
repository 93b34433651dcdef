"""What the tests say to Slurm, and how they wait for it."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.test_train import losses

# on one machine the GPUs, CPUs and memory that the scripts ask for do not exist
SMALL = ("--gpus-per-node=0", "--cpus-per-task=1", "--mem=1G")


class Cluster:
    """A running Slurm of `local_slurm`."""

    def __init__(self, tool: Path, environment: dict[str, str], output: Path) -> None:
        self._tool, self._environment, self._output = tool, environment, output

    def submit(self, *arguments: str, **variables: str) -> str:
        """`sbatch` from the repository's root; returns the job's number."""
        output = f"--output={self._output}/slurm-%j.out"
        return self._say("sbatch", "--parsable", output, *SMALL, *arguments, **variables).strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        line = self._say("scontrol", "show", "job", "--oneliner", number)
        return dict(pair.split("=", 1) for pair in line.split() if "=" in pair)

    def cancel(self, number: str) -> None:
        """As a user does."""
        self._say("scancel", number)

    def give_time(self, number: str, minutes: int) -> None:
        """A longer limit, as an administrator may give it."""
        self._say("scontrol", "update", f"jobid={number}", f"TimeLimit={minutes}")

    def kill(self, node: str) -> None:
        """End a node and everything on it, as a crash would."""
        self._say(str(self._tool), "kill", node)

    def log(self, number: str) -> str:
        """The job's own output."""
        path = self._output / f"slurm-{number}.out"
        return path.read_text() if path.exists() else ""

    def wait(self, number: str, what: str, seconds: int, done: Callable[[dict[str, str]], bool]):
        """Until `done(job)`; fails the test with what the job said."""
        end = time.monotonic() + seconds
        while not done(self.job(number)):
            assert time.monotonic() < end, f"not {what}: {self.job(number)}\n{self.log(number)}"
            time.sleep(0.5)

    def _say(self, *command: str, **variables: str) -> str:
        result = subprocess.run(
            command,
            cwd=REPOSITORY,
            env={**self._environment, **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout


def environment(**more: str) -> dict[str, str]:
    """The tests' own, with this Python first and one thread per process."""
    import sys

    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **more}


def steps(run_dir: Path) -> int:
    """How many optimizer steps the run has made so far."""
    return max(losses(run_dir), default=0)
