"""What a run will need, before anyone queues for it.

    python -m aqnet.plan --config C --nodes 100 --gpus-per-node 8 --preset lumi-g

Sizes are those of the real model, tried on fake tensors. Times follow from a machine's data sheet
(--preset), or from a few real steps on this machine (--measure). Where the training stores exist,
their grid, domain and hours are read from them.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from aqnet import config as configs
from aqnet.config import Config
from aqnet.errors import AqnetError
from aqnet.files import replace_text
from aqnet.plan import machine as machines
from aqnet.plan.extent import Extent, extent_of
from aqnet.plan.machine import GB, Machine
from aqnet.plan.rehearsal import Rehearsal, rehearse, timed

_BUCKET = 25 * 2**20  # bytes of a DDP bucket
_DISK = 1 * GB  # bytes per second that one process writes, assumed
_PREFETCH = 2  # batches that torch's DataLoader has waiting for each of its workers
_SPEED = (
    *("all_reduce_seconds", "all_reduce_exposed_seconds", "micro_step_seconds", "update_seconds"),
    *("step_seconds", "efficiency", "items_per_second", "read_bytes_per_second"),
    *("read_bytes_per_second_and_node", "run_seconds"),
)


def plan(
    config: Config,
    extent: Extent,
    nodes: int,
    per_node: int,
    machine: Machine,
    measured: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Every figure of the plan, in bytes, seconds and FLOP; None where it is unknown.

    Args:
        per_node: processes; measured: what `timed` gives, where the machine has no rates.
    Raises:
        AqnetError: the effective batch does not divide among the processes, or config and grid do
            not fit together.
    """
    processes = nodes * per_node
    accumulation = configs.accumulation(config, processes)
    tried = rehearse(config, extent.grid, gradients_stay=processes > 1 or accumulation > 1)
    times = measured if machine.rates is None else machine.rates.seconds(tried)
    items = config.train.effective_batch // len(config.data.lead_times)
    figures = {
        "processes": processes,
        "tokens": tried.tokens,
        "items_per_step": items,
        "accumulation": accumulation,
        "steps_per_epoch": math.ceil(extent.hours / items),
        "parameters": tried.parameters,
        "flops_per_item": tried.item_flops,
        **_memory(config, tried, machine),
        "all_reduce_bytes": 4 * tried.parameters,
        "checkpoint_bytes": tried.checkpoint_bytes,
        "checkpoint_seconds": tried.checkpoint_bytes / _DISK,
        "read_bytes_per_item": configs.item_bytes(config.data, extent.grid.mask.numel()),
    }
    return figures | _speed(config, figures, nodes, per_node, machine, times)


def _memory(config: Config, tried: Rehearsal, machine: Machine) -> dict[str, Any]:
    """Bytes of a process on its device, and beside it on the host."""
    device: dict[str, float] = {"base": machine.base, **tried.memory}
    host: dict[str, float] = {
        "waiting batches": _PREFETCH * config.train.workers * tried.batch_bytes
    }
    (host if machine.on_gpu else device)["checkpoint copy"] = tried.checkpoint_bytes
    return {"memory": device, "memory_available": machine.memory, "host_memory": host}


def _speed(
    config: Config,
    figures: dict[str, Any],
    nodes: int,
    per_node: int,
    machine: Machine,
    times: tuple[float, float] | None,
) -> dict[str, float | None]:
    """Seconds of the parts of a step, and what follows from them."""
    size, last = figures["all_reduce_bytes"], min(figures["all_reduce_bytes"], _BUCKET)
    reduce_ = bucket = 0.0 if nodes * per_node == 1 else None
    if machine.rates is not None:
        reduce_, bucket = (
            machines.all_reduce_seconds(part, nodes, per_node, machine.rates)
            for part in (size, last)
        )
    speed: dict[str, float | None] = {**dict.fromkeys(_SPEED), "all_reduce_seconds": reduce_}
    if times is None:
        return speed
    compute, update = times
    step = figures["accumulation"] * compute + update
    if reduce_ is not None and bucket is not None:
        # all but the last bucket travels while the last micro-batch's backward goes on
        exposed = max(bucket, reduce_ - 2 / 3 * compute)
        step += exposed
        speed |= {
            "all_reduce_exposed_seconds": exposed,
            "efficiency": figures["accumulation"] * compute / step,
        }
    rate = figures["items_per_step"] / step
    read, steps = rate * figures["read_bytes_per_item"], config.train.max_steps
    return speed | {
        "micro_step_seconds": compute,
        "update_seconds": update,
        "step_seconds": step,
        "items_per_second": rate,
        "read_bytes_per_second": read,
        "read_bytes_per_second_and_node": read / nodes,
        "run_seconds": None if steps is None else steps * step,
    }


def described(config: Config, extent: Extent, figures: dict[str, Any], machine: Machine) -> str:
    """The plan as text."""
    height, width = extent.grid.shape
    total, available = sum(figures["memory"].values()), figures["memory_available"]
    lines = [
        f"grid              {height} x {width} cells, {figures['tokens']} tokens of "
        f"{config.model.patch} x {config.model.patch}",
        f"model             {figures['parameters']:,} parameters, "
        f"{figures['flops_per_item'] / 1e9:,.1f} GFLOP an item, forward and backward",
        f"effective batch   {config.train.effective_batch} forecasts = {figures['processes']} "
        f"processes x {config.train.micro_batch} items x {len(config.data.lead_times)} lead times "
        f"x accumulation {figures['accumulation']}",
        f"epoch             {extent.hours:,} items, {figures['steps_per_epoch']:,} steps",
        f"memory a process  {size_text(total)} of {size_text(available)}: "
        + _parts(figures["memory"])
        + ("" if total < 0.9 * available else "   TOO MUCH: lower train.micro_batch"),
        f"beside it         {_parts(figures['host_memory'])} on the host",
        *_speed_lines(figures),
        "assumptions:",
        *(f"  - {text}" for text in (*extent.assumptions, *machine.assumptions)),
        f"  - checkpoints are written at {size_text(_DISK)}/s; reading, validation and checkpoints "
        "hide behind the steps",
    ]
    return "\n".join(lines)


def _speed_lines(figures: dict[str, Any]) -> list[str]:
    size, reduce_ = size_text(figures["all_reduce_bytes"]), figures["all_reduce_seconds"]
    exposed = figures["all_reduce_exposed_seconds"]
    wire = "time unknown without --preset" if reduce_ is None else _time(reduce_)
    hidden = "" if exposed is None else f", of which {_time(exposed)} not behind the backward"
    checkpoint = (
        f"checkpoint        {size_text(figures['checkpoint_bytes'])}, "
        f"{_time(figures['checkpoint_seconds'])} in the background"
    )
    lines = [f"all-reduce        {size} a step, {wire}{hidden}"]
    if figures["step_seconds"] is None:
        return [
            *lines,
            f"reading           {size_text(figures['read_bytes_per_item'])} an item, before "
            "compression",
            checkpoint,
            "step              unknown: --preset plans by a data sheet, --measure times a few "
            "steps here",
        ]
    efficiency, whole = figures["efficiency"], figures["run_seconds"]
    share = "" if efficiency is None else f"; efficiency {efficiency:.0%}"
    return [
        *lines,
        f"step              {_time(figures['step_seconds'])}: {figures['accumulation']} x "
        f"{_time(figures['micro_step_seconds'])} forward and backward, update "
        f"{_time(figures['update_seconds'])}{share}",
        f"speed             {figures['items_per_second']:,.1f} items/s; reading "
        f"{size_text(figures['read_bytes_per_second'])}/s in all, "
        f"{size_text(figures['read_bytes_per_second_and_node'])}/s a node, before compression",
        checkpoint,
        "whole run         "
        + ("until train.max_steps is set, unknown" if whole is None else _time(whole))
        + ", without validation",
    ]


def _parts(sizes: dict[str, float]) -> str:
    return ", ".join(f"{name} {size_text(size)}" for name, size in sizes.items() if size)


def size_text(value: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, scale in (("TB", 1e12), ("GB", GB), ("MB", 1e6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e3:.3g} kB"


def _time(seconds: float) -> str:
    for unit, scale in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e3:.3g} ms"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m aqnet.plan", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", required=True, help="YAML file")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int, default=1, help="processes per node")
    rates = parser.add_mutually_exclusive_group()
    rates.add_argument("--preset", choices=machines.PRESETS, help="plan for such a machine")
    rates.add_argument("--measure", action="store_true", help="time a few steps on this machine")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    nodes, per_node = options.nodes, options.gpus_per_node
    if min(nodes, per_node) < 1:
        raise AqnetError(f"--nodes {nodes} --gpus-per-node {per_node}: each must be 1 or more")
    config = configs.load(options.config, options.overrides)
    configs.accumulation(config, nodes * per_node)  # refused before anything takes time
    machine = machines.machine_of(options.preset, config)
    extent = extent_of(config)
    measured = timed(config, extent.grid) if options.measure else None
    figures = plan(config, extent, nodes, per_node, machine, measured)
    print(described(config, extent, figures, machine))
    if options.json is not None:
        replace_text(options.json, json.dumps(figures, indent=1) + "\n")
