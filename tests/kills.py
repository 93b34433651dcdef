"""Kill a training run again and again: python -m tests.kills --config C --processes 3 --kills 10

The ranks run train.py's own main. They are forked from a process that has loaded torch already, so
that a restart takes a second; the first rank notes in shared memory where it is, and the process
that kills stops it before it looks, so the log says truly what was hit. One JSON line a kill.
"""

import argparse
import json
import mmap
import os
import random
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

import train
from aqnet import checkpoint, errors
from aqnet.checkpoint import files as checkpoint_files
from aqnet.training import loop

# where a run can be hit; the last is before its first own step (a second kill in a row)
PHASES = ("loop", "validation", "writing", "start")
_STARTED, _VALIDATION, _WRITING = 4, 5, 6  # places of the flags; the step stands in bytes 0 to 3


class Board:
    """What the first rank tells about itself, in memory that forked processes share."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    def clear(self) -> None:
        self._memory[:] = bytes(8)

    def step(self) -> int:
        return int(struct.unpack("i", self._memory[:4])[0])

    def phases(self) -> list[str]:
        if not self._memory[_STARTED]:
            return ["start"]
        flags = {"validation": _VALIDATION, "writing": _WRITING}
        inside = [name for name, at in flags.items() if self._memory[at]]
        return inside if "validation" in inside else ["loop", *inside]

    def inside(self, function: Callable[..., Any], flag: int, slow: float = 0.0) -> Any:
        """`function`, which says that it runs and takes `slow` seconds more at either end."""

        def noted(*arguments: Any, **named: Any) -> Any:
            self._memory[flag] = 1
            time.sleep(slow)
            try:
                return function(*arguments, **named)
            finally:
                time.sleep(slow)
                self._memory[flag] = 0

        return noted

    def counted(self, function: Callable[..., Any]) -> Any:
        def noted(run: loop.TrainingRun, *arguments: Any) -> Any:
            result = function(run, *arguments)
            self._memory[:4] = struct.pack("i", run.state.position.global_step)
            self._memory[_STARTED] = 1
            return result

        return noted


def slowed(function: Callable[..., Any]) -> Any:
    """A kill shall find a write at each of its stages, which take microseconds here."""

    def later(*arguments: Any) -> Any:
        time.sleep(0.01)
        return function(*arguments)

    return later


def rank_of(rank: int, size: int, port: int, arguments: list[str], out: Path, board: Board) -> int:
    """Fork one rank of train.py; returns its process number."""
    process = os.fork()
    if process:
        return process
    with out.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.argv = ["train.py", *arguments]
    if rank == 0:
        loop._validate = board.inside(loop._validate, _VALIDATION, 0.02)
        loop._step = board.counted(loop._step)
        write = checkpoint.Checkpoints._write
        checkpoint.Checkpoints._write = board.inside(write, _WRITING)  # type: ignore[method-assign]
        for name in ("_write_tensors", "_write_text", "verified_state", "replace_folder"):
            setattr(checkpoint_files, name, slowed(getattr(checkpoint_files, name)))
    finish()


def finish() -> NoReturn:
    """Run train.py and leave without the parent's own exit."""
    status: Any = 1
    try:
        errors.run(train.main)
    except SystemExit as end:
        status = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def begin(size: int, arguments: list[str], out: Path, board: Board) -> list[int]:
    """Start a run of `size` ranks."""
    board.clear()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [rank_of(rank, size, port, arguments, out, board) for rank in range(size)]


def kill(processes: Sequence[int], board: Board, phase: str, step: int, victims: list[int]) -> Any:
    """Wait for `phase` at or after `step`, a random moment more, and kill; says what was hit."""
    while phase not in board.phases() or (phase != "start" and board.step() < step):
        if os.waitpid(processes[0], os.WNOHANG)[0]:
            raise RuntimeError(f"the run ended before it could be hit in {phase} at step {step}")
        time.sleep(0.0005)
    time.sleep(random.uniform(0, 0.5 if phase == "start" else 0.04))
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    hit = {"phases": board.phases(), "step": board.step(), "killed": victims}
    for victim in victims:
        os.kill(processes[victim], signal.SIGKILL)
    for spared in set(range(len(processes))) - set(victims):  # what torchrun does with the others
        os.kill(processes[spared], signal.SIGCONT)
        os.kill(processes[spared], signal.SIGTERM)
    for process in processes:
        end_within(process, 10.0)
    return hit


def end_within(process: int, seconds: float) -> None:
    """Reap a process; kill it if it takes longer."""
    end = time.monotonic() + seconds
    while not os.waitpid(process, os.WNOHANG)[0]:
        time.sleep(0.005)
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)


def complete(processes: list[int]) -> None:
    for rank, process in enumerate(processes):
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if status:
            raise RuntimeError(f"rank {rank} ended with status {status}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--every", type=int, default=3, help="steps between two kills")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", help="key=value; run_dir among them")
    options = parser.parse_args()
    random.seed(options.seed)
    torch.set_num_threads(1)
    arguments = ["--config", options.config, *options.overrides]
    out, board = options.log.with_suffix(".out"), Board()
    for number in range(options.kills):
        phase = PHASES[number % len(PHASES)]
        everyone = list(range(options.processes))
        victims = everyone if random.random() < 0.5 else [random.choice(everyone)]
        processes = begin(options.processes, arguments, out, board)
        hit = kill(processes, board, phase, 1 + options.every * number, victims)
        with options.log.open("a") as log:
            log.write(json.dumps({"aimed_at": phase, **hit}) + "\n")
    complete(begin(options.processes, arguments, out, board))


if __name__ == "__main__":
    main()
