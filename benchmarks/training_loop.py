"""What the training loop costs beside the mathematics: python -m benchmarks.training_loop [--quick]

Four measurements; benchmarks/README.md explains the figures:
overhead  the demo model's step in the loop against the same step written inline, taking turns;
scaling   items per second of one process and of two, and how much of their time telemetry names;
stall     how long saving a checkpoint keeps the loop, against writing it in the foreground;
resume    how long a checkpoint takes to be read, verified and put into model and optimizer.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aqnet import config as configs
from aqnet import distributed
from aqnet.batch import Batch
from aqnet.checkpoint import Checkpoints, read, write
from aqnet.config import Config
from aqnet.data.sampler import TrainSampler
from aqnet.grid import Grid
from aqnet.model.climax import ClimaX
from aqnet.training import loop
from aqnet.training.optimizer import make_optimizer
from aqnet.training.reporter import Reporter
from benchmarks.model_parts import grid_of, statistics_of

DEMO, LARGE = "configs/demo.yaml", "configs/china_6pollutants.yaml"
ITEMS = 100_000  # more than any measurement takes


class Directory:
    """A run directory that nobody asks to stop."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stop_requested(self) -> bool:
        """What the loop asks each step; the file is looked for as `RunDirectory` does."""
        return (self.path / "stop_requested").exists()


class Loader:
    """Micro-batches from a few that lie in memory: reading is measured elsewhere."""

    def __init__(self, sampler: TrainSampler, ready: list[Batch]) -> None:
        self.sampler, self.ready = sampler, ready

    def __iter__(self) -> Iterator[Batch]:
        for number, _ in enumerate(self.sampler):
            yield self.ready[number % len(self.ready)]


def demo(folder: Path, steps: int, **train: Any) -> Config:
    tree = configs.to_dict(configs.load(DEMO))
    tree["run_dir"] = str(folder)
    tree["train"] |= {"max_steps": steps, "checkpoint_every": steps, **train}
    tree["validation"] |= {"every": steps, "maps": 0}
    return configs.from_dict(tree, DEMO)


def batch_of(config: Config, grid: Grid, seed: int) -> Batch:
    """Random fields and targets in the domain."""
    generator = torch.Generator().manual_seed(seed)
    shape, size = grid.shape, config.train.micro_batch
    leads = torch.tensor(config.data.lead_times)
    fields = torch.randn(size, len(config.input_variables), *shape, generator=generator)
    targets = torch.randn(size, len(leads), len(config.data.targets), *shape, generator=generator)
    mask = grid.mask.expand(targets.shape).contiguous()
    time_ = torch.randint(400_000, 500_000, (size,), generator=generator)
    return Batch(fields, time_, leads.expand(size, -1), targets, mask)


def run_of(config: Config, device: torch.device) -> loop.TrainingRun:
    """The demo's run with random data."""
    torch.manual_seed(0)
    grid = grid_of((32, 64))
    model = ClimaX(config, grid, statistics_of(config)).to(device)
    size, rank = distributed.world_size(), distributed.rank()
    sampler = TrainSampler(ITEMS, config, rank, size)
    folder = Path(config.run_dir)
    state = loop.start(config, model, None, device)
    batches = Loader(sampler, [batch_of(config, grid, seed) for seed in range(4)])
    loop.validate = lambda state, data, stop: {"validation/loss": 0.0}
    return loop.TrainingRun(
        state,
        loop.TrainingData(sampler, batches, batch_of(config, grid, 0)),
        loop.ValidationData([], statistics_of(config)),
        Reporter(state, 0.0, ITEMS),
        Checkpoints(folder / "checkpoints", 1),
        Directory(folder),
        loop.Constants({}, {"grid": grid.to_dict()}),
    )


def inline_step(model: ClimaX, optimizer: torch.optim.Optimizer, batches: list[Batch]) -> Tensor:
    """What the loop's step comes to, with nothing around it."""
    total, cells = torch.zeros(()), 0
    for batch in batches:
        forecast = model(batch.fields, batch.time, batch.lead_time)
        difference = torch.where(batch.mask, forecast - batch.targets, 0.0)
        loss = difference.square().sum()
        loss.backward()
        total += loss.detach()
        cells += int(batch.mask.sum())
    gradients = [value.grad for value in model.parameters() if value.grad is not None]
    torch._foreach_div_(gradients, float(cells))
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total / cells


def overhead(steps: int) -> dict[str, float]:
    """Medians of `steps` steps in the loop and of as many inline ones, in turns."""
    with tempfile.TemporaryDirectory() as name:
        config = demo(Path(name), steps + 5)
        run = run_of(config, torch.device("cpu"))
        twin = ClimaX(config, grid_of((32, 64)), statistics_of(config)).train()
        optimizer = make_optimizer(twin, config.train)
        ready = [batch_of(config, grid_of((32, 64)), seed) for seed in range(4)]
        batches = [ready[number % 4] for number in range(configs.accumulation(config, 1))]
        took: dict[str, list[float]] = {"loop": [], "inline": []}
        since = time.perf_counter()

        def turn() -> None:
            nonlocal since
            took["loop"].append(time.perf_counter() - since)
            begin = time.perf_counter()
            inline_step(twin, optimizer, batches)
            since = time.perf_counter()
            took["inline"].append(since - begin)

        run.after_each_step = turn
        loop.fit(run)
    loop_, inline = (statistics.median(took[name][5:]) for name in ("loop", "inline"))
    return {"loop_s": loop_, "inline_s": inline, "overhead": loop_ / inline - 1}


def rate(steps: int) -> tuple[float, dict[str, float]]:
    """Items per second of this process's group (see `scaling`), median over the steps; and the
    shares that the loop's parts have of the wall time of all steps."""
    device = distributed.start(600)
    with tempfile.TemporaryDirectory() as name:
        config = demo(Path(name), steps + 3, log_every=steps + 3)
        run = run_of(config, device)
        ends: list[float] = []
        run.after_each_step = lambda: ends.append(time.perf_counter())
        loop.fit(run)
        del run  # the group ends after DDP
        record = last_record(Path(name)) if distributed.is_main() else {}
    distributed.stop()
    items = config.train.effective_batch / len(config.data.lead_times)
    shares = {key: value for key, value in record.items() if key.startswith("time/")}
    return items / statistics.median(later - end for end, later in pairwise(ends[2:])), shares


def last_record(folder: Path) -> dict[str, float]:
    """The last line of a run's metrics that tells where the time went."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    record: dict[str, float] = [line for line in lines if "time/other" in line][-1]
    return record


def scaling(steps: int) -> dict[str, float]:
    """Items per second with the same effective batch, one thread a process; and the share of the
    loop's wall time that has a name."""
    found, named = {}, {}
    for processes in (1, 2):
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        worker = ["-m", "benchmarks.training_loop", "--worker", str(steps)]
        result = subprocess.run(
            [sys.executable, *torchrun, *worker],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        line = next(row for row in result.stdout.splitlines() if row.startswith("{"))
        measured = json.loads(line)
        found[processes] = measured["rate"]
        named[processes] = sum(measured["shares"].values()) - measured["shares"]["time/other"]
    one, two = found[1], found[2]
    return {
        "one_items_s": one,
        "two_items_s": two,
        "efficiency": two / (2 * one),
        "one_named": named[1],
        "two_named": named[2],
    }


def large_model(depth: int) -> tuple[Config, ClimaX, torch.optim.Optimizer]:
    """The original's size (50 M parameters at depth 6) with its Adam state."""
    config = configs.load(LARGE)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, depth=depth))
    model = ClimaX(config, grid_of((128, 256)), statistics_of(config))
    optimizer = make_optimizer(model, config.train)
    for state in optimizer.state.values():
        state["exp_avg"].normal_()
        state["exp_avg_sq"].uniform_()
    return config, model, optimizer


def stall(depth: int, saves: int) -> dict[str, float]:
    """`Checkpoints.save` in the loop against `write` in the foreground; and resuming from it."""
    config, model, optimizer = large_model(depth)
    tensors = {"model": model.state_dict()}, optimizer.state_dict()
    figures: dict[str, float] = {
        "parameters": float(sum(value.numel() for value in model.parameters()))
    }
    facts = {"config": configs.to_dict(config), "statistics": {}, "data_checksums": {}}
    with tempfile.TemporaryDirectory() as name:
        checkpoints = Checkpoints(name, 1)
        begin = time.perf_counter()
        checkpoints.reserve(*tensors)
        figures["reserve_s"] = time.perf_counter() - begin
        stalls, cpu, plain, during, foreground = [], [], [], [], []
        for number in range(saves):
            plain.append(work_for(1.0))
            begin, busy = time.perf_counter(), time.thread_time()
            checkpoints.save(*tensors, {"global_step": number, **facts}, None)
            stalls.append(time.perf_counter() - begin)
            cpu.append(time.thread_time() - busy)
            during.append(work_for(1.0))
            checkpoints.wait()
            begin = time.perf_counter()
            write(Path(name) / "foreground", *tensors, {"global_step": number, **facts})
            foreground.append(time.perf_counter() - begin)
        path = Path(name) / f"step_{saves - 1:08d}"
        size = sum(file.stat().st_size for file in path.iterdir())
        figures |= {
            "megabytes": size / 1e6,
            "write_s": statistics.median(foreground),
            "first_stall_s": stalls[0],
            "stall_s": statistics.median(stalls[1:]),
            "stall_cpu_s": statistics.median(cpu[1:]),
            "slower_during_write": statistics.median(plain) / statistics.median(during) - 1,
        }
        figures["stall"] = figures["stall_s"] / figures["write_s"]
        figures["first_stall"] = figures["first_stall_s"] / figures["write_s"]
        begin = time.perf_counter()
        loaded = read(path)
        figures["read_s"] = time.perf_counter() - begin
    begin = time.perf_counter()
    model.load_state_dict(loaded.model)
    make_optimizer(model, config.train).load_state_dict(loaded.optimizer)
    figures["load_s"] = time.perf_counter() - begin
    return figures


def work_for(seconds: float) -> float:
    """Steps of a small computation per second, for `seconds`."""
    x, done, begin = torch.randn(256, 256), 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        x = F.layer_norm(x @ x, (256,))
        done += 1
    return done / (time.perf_counter() - begin)


def main() -> None:
    """The command."""
    if sys.argv[1:2] == ["--worker"]:
        found, shares = rate(int(sys.argv[2]))
        if os.environ["RANK"] == "0":
            print(json.dumps({"rate": found, "shares": shares}), flush=True)
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="fewer steps, a smaller checkpoint")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps = 20 if options.quick else 60
    figures = {
        "overhead": overhead(steps),
        "scaling": scaling(steps // 2),
        "checkpoint": stall(1 if options.quick else 6, 2 if options.quick else 4),
    }
    step, speed, saved = figures.values()
    print(
        f"step of the demo model: {step['loop_s']:.4f} s in the loop, {step['inline_s']:.4f} s "
        f"inline: {step['overhead']:+.1%}\n"
        f"demo model: {speed['one_items_s']:.1f} items/s with 1 process, "
        f"{speed['two_items_s']:.1f} with 2: {speed['efficiency']:.0%} of twice as many\n"
        f"its time shares without `other` add up to {speed['one_named']:.1%} of the wall time with "
        f"1 process, to {speed['two_named']:.1%} with 2\n"
        f"checkpoint of {saved['parameters'] / 1e6:.0f} M parameters, {saved['megabytes']:.0f} MB: "
        f"stall {saved['stall_s']:.3f} s (the first {saved['first_stall_s']:.3f} s; processor time "
        f"{saved['stall_cpu_s']:.3f} s) of "
        f"{saved['write_s']:.2f} s in the foreground: {saved['stall']:.1%} "
        f"(the first {saved['first_stall']:.1%}); other work during the write took "
        f"{saved['slower_during_write']:+.0%} time; memory was claimed in "
        f"{saved['reserve_s']:.2f} s at the start\n"
        f"resume: read and verified in {saved['read_s']:.2f} s, put into model and optimizer in "
        f"{saved['load_s']:.2f} s"
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
