"""Look at a training job before it is queued; slurm/submit.sh calls it. Writes nothing.

Prints a line for each thing it looked at, and exits with status 2 where one of them would keep the
job from training as intended.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from aqnet import config as configs
from aqnet.checkpoint import files as checkpoint_files
from aqnet.checkpoint.files import Loaded
from aqnet.checkpoint.retained import NEWEST_KEPT
from aqnet.config import Config
from aqnet.data import statistics
from aqnet.data.stores import record
from aqnet.errors import AqnetError
from aqnet.plan import machine
from aqnet.plan.extent import extent_of
from aqnet.plan.rehearsal import timed
from aqnet.plan.run import plan, size_text
from train import check_data

BEING_WRITTEN = 1  # checkpoint on disk besides those that are kept
SPARE_SECONDS = 60  # Slurm's signal may be late, and a file system slow
SIGNAL_SECONDS = 60.0  # before the limit, where --signal names no time (man sbatch)


@dataclass(frozen=True)
class Job:
    """What Slurm is asked for.

    Attributes:
        per_node: processes; gpus: of a node.
        limit: seconds; lead: seconds before the limit at which the run is told to stop.
    """

    nodes: int
    per_node: int
    gpus: int
    limit: float
    lead: float

    @property
    def processes(self) -> int:
        """The number of processes on all nodes."""
        return self.nodes * self.per_node


def job_of(script: Path, options: list[str], per_node: int | None) -> Job:
    """What the script's #SBATCH lines ask for, overridden by options of `sbatch`.

    Args:
        per_node: processes, where NPROC says so.
    Raises:
        AqnetError: the script cannot be read, or says no time limit.
    """
    try:
        lines = re.findall(r"^#SBATCH\s+(.+?)\s*$", script.read_text(), re.M)
    except OSError as error:
        raise AqnetError(f"{script}: cannot read the batch script: {error}") from None
    parser = argparse.ArgumentParser("sbatch", allow_abbrev=False)
    parser.add_argument("-N", "--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=gpus, default=0)
    parser.add_argument("-t", "--time", type=seconds)
    parser.add_argument("--signal", default="")
    found, _ = parser.parse_known_args([word for line in lines for word in line.split()] + options)
    if found.time is None:
        raise AqnetError(f"{script}: no time limit; give --time=HH:MM:SS")
    signal, _, lead = found.signal.partition("@")
    lead_seconds = float(lead) if lead else SIGNAL_SECONDS * bool(signal)
    number = found.gpus_per_node
    return Job(found.nodes, per_node or max(number, 1), number, found.time, lead_seconds)


def gpus(text: str) -> int:
    """The number in --gpus-per-node: N or TYPE:N."""
    return int(text.rpartition(":")[2])


def seconds(text: str) -> float:
    """Seconds in Slurm's times: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S or UNLIMITED."""
    if text.lower() in ("unlimited", "infinite"):
        return math.inf
    days, dash, rest = text.rpartition("-")
    parts = [float(part) for part in rest.split(":")]
    if dash:
        hours, minutes, last = (*parts, 0.0, 0.0)[:3]
    else:
        hours, minutes, last = (0.0, *parts, 0.0)[:3] if len(parts) < 3 else parts
    return 86400 * float(days or 0) + 3600 * hours + 60 * minutes + last


class Check:
    """Each method looks at one thing, and returns a sentence or raises AqnetError.

    `preset` is a machine of `aqnet.plan`; `local` measures this one.
    """

    def __init__(self, config: Config, job: Job, preset: str) -> None:
        self.config, self.job, self.preset = config, job, preset

    def batch(self) -> str:
        """Whether the effective batch divides among the processes."""
        train, leads = self.config.train, len(self.config.data.lead_times)
        accumulation = configs.accumulation(self.config, self.job.processes)
        return (
            f"effective batch {train.effective_batch} = {self.job.nodes} nodes x "
            f"{self.job.per_node} processes x {train.micro_batch} items x {leads} lead times x "
            f"accumulation {accumulation}"
        )

    def stores(self) -> str:
        """Whether the stores are there, whole, and match each other and the config."""
        return f"stores {', '.join(store.path.name for store in self._stores)} are whole and match"

    def statistics(self) -> str:
        """Whether the statistics are of these stores and this training split."""
        statistics.read(self.config, self._stores)
        return "statistics match the stores and the training split"

    def run_directory(self) -> str:
        """Whether the run is new, or may go on with this config and these stores."""
        if self._loaded is None:
            return f"{self.config.run_dir} holds no checkpoint: a new run"
        before, now = self._loaded.state["config"], configs.to_dict(self.config)
        changes = configs.changes_forbidden_on_continuation(before, now)
        if changes:
            raise AqnetError(
                f"{self._loaded.path}: is of a run with another config ({'; '.join(changes)})"
            )
        check_data(self._loaded, {store.path.name: store.checksum for store in self._stores})
        return f"{self.config.run_dir} goes on at step {self._loaded.state['global_step']}"

    def disk(self) -> str:
        """Whether all checkpoints that will stand at once fit."""
        train = self.config.train
        number = train.keep_best + NEWEST_KEPT + BEING_WRITTEN
        needed = number * self._plan["checkpoint_bytes"]
        place = Path(self.config.run_dir)
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        found = f"{size_text(needed)} for {number} checkpoints, {size_text(free)} free"
        if needed > free:
            raise AqnetError(f"{place}: needs {found}; make room or lower train.keep_best")
        return f"disk: {found} at {place} (a quota may allow less)"

    def time(self) -> str:
        """Whether a step and a checkpoint fit between signal and limit; how many jobs it takes."""
        training = self.job.limit - self.job.lead
        if training <= 0:
            raise AqnetError(
                f"the time limit of {self.job.limit:.0f} s leaves nothing before the signal, "
                f"{self.job.lead:.0f} s before it; give a longer --time"
            )
        config, figures = self.config, self._plan
        if figures["step_seconds"] is None:
            return "time: not planned, because SITE names no file that sets `preset`"
        needed = figures["step_seconds"] + figures["checkpoint_seconds"] + SPARE_SECONDS
        if self.job.lead and self.job.lead < needed:
            raise AqnetError(
                f"the signal comes {self.job.lead:.0f} s before the limit, but a step, a "
                f"checkpoint and {SPARE_SECONDS} s to spare are {needed:.0f} s; give "
                "--signal=B:USR1@SECONDS with more"
            )
        each = f"time: {figures['step_seconds']:.3g} s a step by the plan for {self._machine.name}"
        if config.train.max_steps is None:
            return f"{each}; train.max_steps is not set, so the whole is unknown"
        done = 0 if self._loaded is None else int(self._loaded.state["global_step"])
        left = (config.train.max_steps - done) * figures["step_seconds"]
        return (
            f"{each}, {left / 3600:.2f} h for {config.train.max_steps - done} steps without "
            f"validation: {max(1, math.ceil(left / training))} job(s) of "
            f"{self.job.limit / 3600:.2f} h"
        )

    @cached_property
    def _machine(self) -> machine.Machine:
        return machine.machine_of(None if self.preset == "local" else self.preset, self.config)

    @cached_property
    def _plan(self) -> dict[str, Any]:
        """The figures of `aqnet.plan`; without a preset, a job without GPUs is timed here."""
        extent = extent_of(self.config)
        here = self._machine.rates is None and not self.job.gpus
        measured = timed(self.config, extent.grid) if here else None
        job = self.job
        return plan(self.config, extent, job.nodes, job.per_node, self._machine, measured)

    @cached_property
    def _stores(self) -> list[Any]:
        return list(record.open_stores(self.config))

    @cached_property
    def _loaded(self) -> Loaded | None:
        pointer = Path(self.config.run_dir) / "checkpoints/latest"
        if not pointer.exists():
            return None
        return checkpoint_files.read(pointer.parent / pointer.read_text().strip())


def main() -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m slurm.check", description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--script", type=Path, required=True, help="the batch script")
    parser.add_argument("--nproc", type=int, help="processes per node (default: its GPUs)")
    parser.add_argument("--preset", choices=("local", *machine.PRESETS), default="local")
    parser.add_argument("--option", action="append", default=[], help="an option of sbatch")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    try:
        job = job_of(options.script, options.option, options.nproc)
        check = Check(configs.load(options.config, options.overrides), job, options.preset)
    except AqnetError as error:
        print(f"PROBLEM  {error}")
        return 2
    looks: list[Callable[[], str]] = [check.batch, check.stores, check.statistics]
    looks += [check.run_directory, check.disk, check.time]
    problems, printed = 0, set()
    for look in looks:
        try:
            print(f"ok       {look()}", flush=True)
        except AqnetError as error:
            problems += 1
            if str(error) not in printed:  # missing stores are the problem of several looks
                print(f"PROBLEM  {error}", flush=True)
            printed.add(str(error))
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
