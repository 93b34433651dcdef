"""What a run will need, before anyone queues for it.

    python -m aqnet.training.plan --config C --nodes 100 --gpus-per-node 8 --preset lumi-g

Parameters, FLOP and activations are formulas of the config alone; a test compares them with the
real model. Where the training stores exist, their grid, domain and hours are read from them.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from aqnet import config as configs
from aqnet import periods
from aqnet.checkpoint_files import replace_text
from aqnet.config import Config
from aqnet.errors import AqnetError, run
from aqnet.training import machine as machines
from aqnet.training.machine import GB, Machine

_SCAN_FEATURES = 64  # aqnet.model.climax.SCAN_FEATURES
_BUCKET = 25 * 2**20  # bytes of a DDP bucket


@dataclass(frozen=True)
class Size:
    """What the formulas need besides the config.

    Attributes:
        height, width: cells of the grid; tokens: of one sequence.
        hours: of the training split; stored_hours: of the stores that it reads, 0 if unknown.
        said: what was assumed.
    """

    height: int
    width: int
    tokens: int
    hours: int
    stored_hours: int = 0
    said: tuple[str, ...] = ()


def size_of(config: Config) -> Size:
    """Grid, tokens and hours: from the stores where they exist, assumed where not.

    Raises:
        AqnetError: there are no stores, and the config says no grid.
    """
    training = config.data.split.train
    paths = [Path(config.data.stores) / f"{year}.zarr" for year in periods.years(training)]
    if all(path.is_dir() for path in paths):
        return _stored_size(config, paths)
    shape = config.data.shape or config.plan.grid
    if shape is None:
        raise AqnetError(
            f"{paths[0]}: no such store, so the grid is unknown; set plan.grid (such as 128x256) "
            "or prepare the data first"
        )
    patches = math.prod(-(-cells // config.model.patch) for cells in shape)
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
    patch = config.model.patch
    height, width = mask.shape
    padded = np.pad(mask, ((0, -height % patch), (0, -width % patch)))
    rows, columns = padded.shape[0] // patch, padded.shape[1] // patch
    inside = padded.reshape(rows, patch, columns, patch).any((1, 3))
    tokens = int(inside.sum()) if config.model.tokens == "domain" else inside.size
    said = (f"grid, domain and hours read from {paths[0]} ...",)
    return Size(height, width, tokens, hours, stored, said)


# --- the model in formulas ----------------------------------------------------------------------


def parameters(config: Config, size: Size) -> dict[str, int]:
    """Number of parameters per part of the model."""
    model, dim, hidden = config.model, config.model.embed_dim, _hidden(config)
    variables, targets = len(config.input_variables), len(config.data.targets)
    leads = len(config.data.lead_times)
    patches = math.prod(-(-cells // model.patch) for cells in (size.height, size.width))
    block = 4 * dim + 4 * dim * dim + 4 * dim + 2 * dim * hidden + hidden + dim
    return {
        "embedding": variables * dim * (model.patch**2 + 2) + dim + 4 * (dim * dim + dim),
        "positions": patches * dim,
        "lead time": 0 if model.lead_time_mode == "joint" else 2 * dim,
        "scan and calendar": (_SCAN_FEATURES + 1) * dim * model.scan_embedding
        + (_calendar(config) + 1) * dim * (model.calendar != "off"),
        "blocks": model.depth * block + _hilly(config) * 2 * model.num_heads,
        "head": 2 * dim + model.decoder_depth * (dim * dim + dim) + (dim + 1) * _outputs(config),
        "rho": leads * targets * (model.predict == "change"),
    }


def forward_flops(config: Config, size: Size) -> dict[str, float]:
    """FLOP of the forward of one item: linear layers, attention without and with terrain."""
    model, dim = config.model, config.model.embed_dim
    inputs = len(config.input_variables) * (model.patch**2 + 1)
    rows = size.tokens * _sequences(config)
    embedding = 2.0 * size.tokens * (inputs * (model.num_heads + dim) + dim * dim)
    embedding += 2.0 * size.tokens * _SCAN_FEATURES * dim * model.scan_embedding
    # the folded matrices are made once per micro-batch
    embedding += 2.0 * inputs * dim * dim / config.train.micro_batch
    head = 2.0 * rows * dim * (model.decoder_depth * dim + _outputs(config) + _calendar(config))
    blocks = model.depth * machines.linear_flops(rows, dim, _hidden(config))
    length, width = _window(config, size), dim // model.num_heads
    hilly = _hilly(config)
    terrain = machines.attention_flops(
        rows, length, machines.terrain_width(width) * model.num_heads
    )
    return {
        "linear": embedding + head + blocks,
        "attention": (model.depth - hilly) * machines.attention_flops(rows, length, dim),
        "terrain": hilly * terrain,
    }


def training_flops(config: Config, size: Size) -> dict[str, float]:
    """FLOP of forward and backward of one item, by kind.

    Linear layers take twice their forward in the backward; attention 2.5 times (it is made again
    from its log-sum-exps). `twice` is what activation checkpointing repeats.
    """
    forward = forward_flops(config, size)
    rows = size.tokens * _sequences(config)
    again = config.model.depth * machines.linear_flops(
        rows, config.model.embed_dim, _hidden(config)
    )
    return {
        "linear": 3.0 * forward["linear"],
        "attention": 3.5 * forward["attention"],
        "terrain": 3.5 * forward["terrain"],
        "twice": (again + forward["attention"] + forward["terrain"])
        * config.model.activation_checkpointing,
    }


def activation_bytes(config: Config, size: Size) -> dict[str, float]:
    """Bytes of one item: those kept for the backward, and the most that comes and goes besides.

    A block keeps, in widths of a token: its input, both norms' outputs, queries, keys and values,
    the attention's output by head and by token, the sum between, and both sides of GELU; with
    dropout the noise of the hidden layer and of both branches too (as on CPU; a GPU keeps less).
    """
    model, dim, hidden = config.model, config.model.embed_dim, _hidden(config)
    wide = 2 if config.train.precision == "bf16" else 4
    rows, variables = size.tokens * _sequences(config), len(config.input_variables)
    noise = model.drop_rate > 0
    block = wide * rows * (9 * dim + 2 * hidden + (hidden + 2 * dim) * noise)
    blocks = model.depth * block
    if model.activation_checkpointing:
        blocks = model.depth * wide * rows * dim + block
    inputs = variables * (model.patch**2 + 1)
    numbers = (
        model.num_heads * (inputs + variables) + variables * model.patch**2 + (2 + noise) * dim
    )
    embedding = 4.0 * size.tokens * (numbers + _SCAN_FEATURES * model.scan_embedding)
    head = wide * rows * dim * (2 + 2 * model.decoder_depth) + 4.0 * rows * _calendar(config)
    pairs = len(config.data.lead_times) * len(config.data.targets)
    forecast = 4.0 * pairs * size.height * size.width
    return {
        "kept": blocks + embedding + head + forecast,
        # forecast by token and cell, difference, square and gradients; or the widest layer's
        "passing": max(6 * forecast, 3.0 * wide * rows * hidden),
    }


def _hidden(config: Config) -> int:
    return int(config.model.embed_dim * config.model.mlp_ratio)


def _sequences(config: Config) -> int:
    return 1 if config.model.lead_time_mode == "joint" else len(config.data.lead_times)


def _outputs(config: Config) -> int:
    leads = len(config.data.lead_times) if config.model.lead_time_mode == "joint" else 1
    return config.model.patch**2 * leads * len(config.data.targets)


def _calendar(config: Config) -> int:
    if config.model.calendar == "off":
        return 0
    targets = len(config.data.lead_times) if config.model.lead_time_mode == "joint" else 1
    return 3 + 3 * targets + (2 if config.model.calendar == "day_and_year" else 0)


def _hilly(config: Config) -> int:
    """How many blocks have terrain attention."""
    terrain = config.model.terrain
    if not terrain.enabled:
        return 0
    return config.model.depth if terrain.blocks is None else len(set(terrain.blocks))


def _window(config: Config, size: Size) -> int:
    """Tokens that a token attends to."""
    return (
        min(size.tokens, config.model.window) if config.model.attention == "window" else size.tokens
    )


# --- the cluster --------------------------------------------------------------------------------


def plan(config: Config, size: Size, nodes: int, per_node: int, machine: Machine) -> dict[str, Any]:
    """Every figure of the plan, in bytes, seconds and FLOP.

    Raises:
        AqnetError: the effective batch does not divide among the processes.
    """
    processes, leads = nodes * per_node, len(config.data.lead_times)
    accumulation, items = config.accumulation(processes), config.train.micro_batch
    count = sum(parameters(config, size).values())
    flops = training_flops(config, size)
    compute = _micro_step_seconds(config, size, machine)
    update = 7 * 4.0 * count / machine.elementwise  # AdamW reads four and writes three numbers
    reduce_ = machines.all_reduce_seconds(4.0 * count, nodes, per_node, machine)
    # all but the last bucket travels while the last micro-batch's backward goes on
    last = machines.all_reduce_seconds(min(4.0 * count, _BUCKET), nodes, per_node, machine)
    exposed = max(last, reduce_ - 2 / 3 * compute) if processes > 1 else 0.0
    step = accumulation * compute + exposed + update
    batch = config.train.effective_batch // leads
    rate = batch / step
    moments = count * 4.0
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
        "flops_per_item": sum(flops.values()),
        "memory": {
            "base": machine.base,
            "parameters": moments,
            "gradients": moments,
            "optimizer": 2 * moments,
            "moving average": moments if config.train.ema_decay else 0.0,
            "checkpoint copy": 3 * moments if machine.name == "local" else 0.0,
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
        "checkpoint_bytes": 3 * moments + (moments if config.train.ema_decay else 0.0),
        "checkpoint_seconds": 3 * moments / machine.disk,
        "run_seconds": None if steps is None else steps * step,
    }


def machine_for(config: Config, size: Size, preset: str) -> Machine:
    """A known machine, or, for `local`, this one, measured at the model's shapes."""
    if preset != "local":
        return machines.preset(preset, config.train.precision)
    variables = len(config.input_variables)
    return machines.this_machine(config.model, variables, size.tokens, config.train.micro_batch)


def _micro_step_seconds(config: Config, size: Size, machine: Machine) -> float:
    """Forward and backward of a micro-batch: matrix products, attention, and the rest by bytes."""
    model, flops = config.model, training_flops(config, size)
    rows = size.tokens * _sequences(config)
    per_row = machines.elementwise_bytes(model.embed_dim, _hidden(config), model.drop_rate > 0)
    aggregated = machines.aggregation_bytes(model, len(config.input_variables))
    seconds = (flops["linear"] + flops["twice"]) / machine.linear
    seconds += flops["attention"] / machine.attention + flops["terrain"] / machine.terrain
    seconds += rows * model.depth * per_row / machine.elementwise
    seconds += size.tokens * aggregated / machine.aggregation
    # embedding, calendar, scan, head and loss have about as many small steps as four blocks
    return config.train.micro_batch * seconds + (model.depth + 4) * machine.overhead


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
    parts = ", ".join(f"{name} {_size(value)}" for name, value in memory.items() if value)
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
        f"memory a process  {_size(total)} of {_size(available)}: {parts}"
        + ("" if total < 0.9 * available else "   TOO MUCH: lower train.micro_batch"),
        f"all-reduce        {_size(figures['all_reduce_bytes'])} a step, "
        f"{_time(figures['all_reduce_seconds'])}, of which "
        f"{_time(figures['all_reduce_exposed_seconds'])} not behind the backward",
        f"step              {_time(figures['step_seconds'])}: "
        f"{figures['accumulation']} x {_time(figures['micro_step_seconds'])} forward and backward, "
        f"update {_time(figures['update_seconds'])}; efficiency {figures['efficiency']:.0%}",
        f"speed             {figures['items_per_second']:,.1f} items/s; reading "
        f"{_size(figures['read_bytes_per_second'])}/s in all, "
        f"{_size(figures['read_bytes_per_second_and_node'])}/s a node, before compression",
        f"checkpoint        {_size(figures['checkpoint_bytes'])}, "
        f"{_time(figures['checkpoint_seconds'])} in the background",
        f"whole run         {whole}, without validation",
        "assumptions:",
        *(f"  - {text}" for text in (*size.said, *machine.said)),
        "  - the all-reduce by the alpha-beta model, the faster of ring and tree, behind the last "
        "micro-batch's backward but for its last bucket of 25 MiB",
        "  - reading, validation and checkpoints hide behind the steps",
    ]
    return "\n".join(lines)


def _size(value: float) -> str:
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
    parser = argparse.ArgumentParser(prog="python -m aqnet.training.plan", description=__doc__)
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
    config.accumulation(options.nodes * options.gpus_per_node)  # refused before anything is timed
    machine = machine_for(config, size, options.preset)
    figures = plan(config, size, options.nodes, options.gpus_per_node, machine)
    print(described(config, size, figures, machine))
    if options.json is not None:
        replace_text(options.json, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
