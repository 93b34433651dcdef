"""The model's parameters, FLOP, activations and step time, as formulas of the config alone.

Tests compare them with the real model. The planner and telemetry's FLOP/s use them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from aqnet.config import Config, Model
from aqnet.plan import machine as machines
from aqnet.plan.machine import Machine

_SCAN_FEATURES = 64  # aqnet.model.climax.SCAN_FEATURES


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


def patch_grid(model: Model, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of patches; the last ones may stick out of the grid."""
    return -(-height // model.patch), -(-width // model.patch)


def parameters(config: Config, size: Size) -> dict[str, int]:
    """Number of parameters per part of the model."""
    model, dim, hidden = config.model, config.model.embed_dim, _hidden(config)
    variables, targets = len(config.input_variables), len(config.data.targets)
    leads = len(config.data.lead_times)
    patches = math.prod(patch_grid(model, size.height, size.width))
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


def checkpoint_bytes(config: Config, size: Size) -> float:
    """Weights, both of Adam's moments, and the moving average where there is one."""
    return 4.0 * sum(parameters(config, size).values()) * (3 + (config.train.ema_decay is not None))


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


def item_flops(config: Config, size: Size) -> float:
    """FLOP of forward and backward of one item, without what checkpointing repeats."""
    flops = training_flops(config, size)
    return sum(flops.values()) - flops["twice"]


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


def micro_step_seconds(config: Config, size: Size, machine: Machine) -> float:
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
