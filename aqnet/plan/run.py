"""What a run will need, before anyone queues for it.

    python -m aqnet.plan --config C --nodes 100 --gpus-per-node 8 --preset lumi-g

The model's figures are formulas of the config alone (`formulas.py`). Where the training stores
exist, their grid, domain and hours are read from them.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from aqnet import config as configs
from aqnet.config import Config, periods
from aqnet.errors import AqnetError
from aqnet.files import replace_text
from aqnet.plan import machine as machines
from aqnet.plan.formulas import (
    Size,
    activation_bytes,
    checkpoint_bytes,
    item_flops,
    micro_step_seconds,
    parameters,
    patch_grid,
)
from aqnet.plan.machine import GB, Machine

_BUCKET = 25 * 2**20  # bytes of a DDP bucket


def size_of(config: Config) -> Size:
    """Grid, tokens and hours: from the stores where they exist, assumed where not.

    Raises:
        AqnetError: there are no stores, and the config says no grid.
    """
    training = config.data.split.train
    paths = [Path(config.data.stores) / f"{year}.zarr" for year in periods.years(training)]
    missing = [path for path in paths if not path.is_dir()]
    if not missing:
        return _stored_size(config, paths)
    shape = config.data.shape or config.plan.grid
    if shape is None:
        raise AqnetError(
            f"{missing[0]}: no such store, so the grid is unknown; set plan.grid (such as 128x256) "
            "or prepare the data first"
        )
    patches = math.prod(patch_grid(config.model, *shape))
    share = config.plan.domain_fraction if config.model.tokens == "domain" else 1.0
    hours = sum(end - first for first, end in periods.intervals(training))
    said = (
        f"no stores at {config.data.stores}: a grid of {shape[0]} x {shape[1]} cells, every hour "
        f"of the training periods, and {share:.0%} of the patches as tokens are assumed",
    )
    return Size(*shape, tokens=round(share * patches), hours=hours, said=said)


def _stored_size(config: Config, paths: Sequence[Path]) -> Size:
    hours = stored = 0
    training = periods.intervals(config.data.split.train)
    for path in paths:
        group = zarr.open_group(path, mode="r")
        mask, time = (np.asarray(group[name]) for name in ("mask", "time"))
        wanted = [(time >= first) & (time < end) for first, end in training]
        stored += len(time)
        hours += int(np.any(wanted, 0).sum())
    patch, (height, width) = config.model.patch, mask.shape
    rows, columns = patch_grid(config.model, height, width)
    padded = np.pad(mask, ((0, rows * patch - height), (0, columns * patch - width)))
    inside = padded.reshape(rows, patch, columns, patch).any((1, 3))
    tokens = int(inside.sum()) if config.model.tokens == "domain" else inside.size
    said = (f"grid, domain and hours read from {paths[0]} ...",)
    return Size(height, width, tokens, hours, stored, said)


def machine_for(config: Config, size: Size, preset: str) -> Machine:
    """A known machine, or, for `local`, this one, measured at the model's shapes."""
    if preset != "local":
        return machines.preset(preset, config.train.precision)
    variables = len(config.input_variables)
    return machines.this_machine(config.model, variables, size.tokens, config.train.micro_batch)


def plan(config: Config, size: Size, nodes: int, per_node: int, machine: Machine) -> dict[str, Any]:
    """Every figure of the plan, in bytes, seconds and FLOP.

    Raises:
        AqnetError: the effective batch does not divide among the processes.
    """
    processes, leads = nodes * per_node, len(config.data.lead_times)
    accumulation, items = configs.accumulation(config, processes), config.train.micro_batch
    count = sum(parameters(config, size).values())
    compute = micro_step_seconds(config, size, machine)
    update = 7 * 4.0 * count / machine.elementwise  # AdamW reads four and writes three numbers
    reduce_ = machines.all_reduce_seconds(4.0 * count, nodes, per_node, machine)
    # all but the last bucket travels while the last micro-batch's backward goes on
    last = machines.all_reduce_seconds(min(4.0 * count, _BUCKET), nodes, per_node, machine)
    exposed = max(last, reduce_ - 2 / 3 * compute) if processes > 1 else 0.0
    step = accumulation * compute + exposed + update
    batch = config.train.effective_batch // leads
    rate = batch / step
    moments = count * 4.0
    stored = checkpoint_bytes(config, size)
    activations = items * sum(activation_bytes(config, size).values()) * (1 + machine.holes)
    read = _item_bytes(config, size)
    steps = config.train.max_steps
    return {
        "processes": processes,
        "tokens": size.tokens,
        "items_per_step": batch,
        "accumulation": accumulation,
        "steps_per_epoch": math.ceil(size.hours / batch),
        "parameters": count,
        "flops_per_item": item_flops(config, size),
        "memory": {
            "base": machine.base,
            "parameters": moments,
            "gradients": moments,
            "optimizer": 2 * moments,
            "moving average": moments if config.train.ema_decay else 0.0,
            "checkpoint copy": stored if machine.name == "local" else 0.0,
            "stores kept": _kept_bytes(config, size),
            "activations": activations,
        },
        "memory_available": machine.memory,
        "all_reduce_bytes": moments,
        "all_reduce_seconds": reduce_,
        "all_reduce_exposed_seconds": exposed,
        "micro_step_seconds": compute,
        "update_seconds": update,
        "step_seconds": step,
        "efficiency": accumulation * compute / step,
        "items_per_second": rate,
        "read_bytes_per_second": rate * read,
        "read_bytes_per_second_and_node": rate * read / nodes,
        "checkpoint_bytes": stored,
        "checkpoint_seconds": stored / machine.disk,
        "run_seconds": None if steps is None else steps * step,
    }


def _kept_bytes(config: Config, size: Size) -> float:
    """Stores that are small together are kept in memory (aqnet.data.dataset.KEPT_BYTES)."""
    hours = len(config.data.history_hours) + len(config.data.lead_times)
    whole = size.stored_hours * _item_bytes(config, size) / hours
    return whole if whole <= 256 * 2**20 else 0.0


def _item_bytes(config: Config, size: Size) -> float:
    """Uncompressed bytes of the hours that an item reads."""
    data = config.data
    channels = {*data.variables, *data.targets} - set(configs.STATIC_VARIABLES)
    hours = len(data.history_hours) + len(data.lead_times)
    wide = 2 if data.dtype == "float16" else 4
    return float(wide * hours * len(channels) * size.height * size.width)


def described(config: Config, size: Size, figures: dict[str, Any], machine: Machine) -> str:
    """The plan as text."""
    memory = figures["memory"]
    total, available = sum(memory.values()), figures["memory_available"]
    parts = ", ".join(f"{name} {size_text(value)}" for name, value in memory.items() if value)
    seconds = figures["run_seconds"]
    whole = "until train.max_steps is set, unknown" if seconds is None else _time(seconds)
    effective = config.train.effective_batch
    lines = [
        f"grid              {size.height} x {size.width} cells, {size.tokens} tokens of "
        f"{config.model.patch} x {config.model.patch}",
        f"model             {figures['parameters']:,} parameters, "
        f"{figures['flops_per_item'] / 1e9:,.1f} GFLOP an item, forward and backward",
        f"effective batch   {effective} forecasts = {figures['processes']} processes x "
        f"{config.train.micro_batch} items x {len(config.data.lead_times)} lead times x "
        f"accumulation {figures['accumulation']}",
        f"epoch             {size.hours:,} items, {figures['steps_per_epoch']:,} steps",
        f"memory a process  {size_text(total)} of {size_text(available)}: {parts}"
        + ("" if total < 0.9 * available else "   TOO MUCH: lower train.micro_batch"),
        f"all-reduce        {size_text(figures['all_reduce_bytes'])} a step, "
        f"{_time(figures['all_reduce_seconds'])}, of which "
        f"{_time(figures['all_reduce_exposed_seconds'])} not behind the backward",
        f"step              {_time(figures['step_seconds'])}: "
        f"{figures['accumulation']} x {_time(figures['micro_step_seconds'])} forward and backward, "
        f"update {_time(figures['update_seconds'])}; efficiency {figures['efficiency']:.0%}",
        f"speed             {figures['items_per_second']:,.1f} items/s; reading "
        f"{size_text(figures['read_bytes_per_second'])}/s in all, "
        f"{size_text(figures['read_bytes_per_second_and_node'])}/s a node, before compression",
        f"checkpoint        {size_text(figures['checkpoint_bytes'])}, "
        f"{_time(figures['checkpoint_seconds'])} in the background",
        f"whole run         {whole}, without validation",
        "assumptions:",
        *(f"  - {text}" for text in (*size.said, *machine.said)),
        "  - the all-reduce by the alpha-beta model, the faster of ring and tree, behind the last "
        "micro-batch's backward but for its last bucket of 25 MiB",
        "  - reading, validation and checkpoints hide behind the steps",
    ]
    return "\n".join(lines)


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
    parser.add_argument("--preset", choices=machines.PRESETS, default="local")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    config = configs.load(options.config, options.overrides)
    size = size_of(config)
    # refused before anything is timed
    configs.accumulation(config, options.nodes * options.gpus_per_node)
    machine = machine_for(config, size, options.preset)
    figures = plan(config, size, options.nodes, options.gpus_per_node, machine)
    print(described(config, size, figures, machine))
    if options.json is not None:
        replace_text(options.json, json.dumps(figures, indent=1) + "\n")
