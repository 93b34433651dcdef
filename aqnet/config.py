"""The configuration: YAML in, frozen dataclasses out. The only place that knows keys."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from aqnet import periods
from aqnet.config_reading import build, dump, flattened, overridden, parse, plain
from aqnet.errors import AqnetError

STATIC_VARIABLES = ("lat2d", "lon2d", "elevation", "population")


@dataclass(frozen=True)
class Source:
    """Files of one layout: `path` is a glob, `names` maps aqnet's names to the file's."""

    path: str
    names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """Each a list of years (2013), months (2013-10) or date ranges (2013-03-01/2013-09-30)."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def years(self) -> list[int]:
        """The calendar years that the three touch together, ascending."""
        return periods.years((*self.train, *self.validation, *self.test))


@dataclass(frozen=True)
class Data:
    """What is read, how it is put on the model grid, and which samples there are."""

    stores: str
    variables: tuple[str, ...]
    targets: tuple[str, ...]
    split: Split
    lead_times: tuple[int, ...] = (12, 24, 48, 96)
    history_hours: tuple[int, ...] = (0,)
    sources: tuple[Source, ...] = ()
    units: dict[str, str] = field(default_factory=dict)
    static_files: dict[str, str] = field(default_factory=dict)
    mask_file: str | None = None
    winds: Literal["earth", "grid"] = "earth"
    resample: Literal["none", "area", "bilinear"] = "none"
    shape: tuple[int, int] | None = None
    dtype: Literal["float32", "float16"] = "float32"


@dataclass(frozen=True)
class Terrain:
    """Terrain attention: in all blocks, or in the listed ones (counted from 0)."""

    enabled: bool = True
    blocks: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Model:
    """Sizes and switches of `aqnet.model.climax.ClimaX`."""

    patch: int = 2
    embed_dim: int = 768
    depth: int = 6
    decoder_depth: int = 2
    num_heads: int = 8
    mlp_ratio: float = 4.0
    drop_path: float = 0.1
    drop_rate: float = 0.1
    tokens: Literal["domain", "all"] = "domain"
    missing: Literal["ignore", "fill"] = "ignore"
    lead_time_mode: Literal["joint", "conditioned"] = "joint"
    attention: Literal["global", "window"] = "global"
    window: int = 1024
    scan: Literal["wind", "raster"] = "wind"
    scan_embedding: bool = True
    regions: tuple[int, int] | None = None
    terrain: Terrain = Terrain()
    calendar: Literal["off", "day", "day_and_year"] = "day"
    predict: Literal["change", "value"] = "change"
    activation_checkpointing: bool = False
    compatibility: Literal[
        "none", "aq_net2", "aq_net2_barrier", "aq_net2_uphill", "aq_net2_relative"
    ] = "none"


@dataclass(frozen=True)
class Train:
    """The optimizer steps."""

    micro_batch: int = 1
    effective_batch: int = 64
    max_steps: int | None = None
    max_epochs: int | None = None
    max_hours: float | None = None
    max_items: int | None = None
    learning_rate: float = 1.5e-4
    learning_rate_factors: dict[str, float] = field(default_factory=dict)
    weight_decay: float = 0.01
    warmup_steps: int = 2000
    decay_steps: int | None = None
    clip_norm: float = 1.0
    loss: Literal["mse", "huber"] = "mse"
    huber_delta: float = 1.0
    target_weights: dict[str, float] = field(default_factory=dict)
    lead_time_weights: dict[str, float] = field(default_factory=dict)
    ema_decay: float | None = None
    patience: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    deterministic: bool = False
    max_bad_steps: int = 10
    checkpoint_every: int = 500
    keep_best: int = 3
    checksum_every: int = 500
    timeout_seconds: int = 1800
    workers: int = 2
    log_every: int = 10
    init_from: str | None = None
    init_statistics: Literal["checkpoint", "data"] | None = None
    evaluate_after_training: bool = False


@dataclass(frozen=True)
class Validation:
    """How often, in optimizer steps, and on how many items (evenly spread) to validate."""

    every: int = 500
    max_items: int | None = None
    micro_batch: int | None = None
    maps: int = 2


@dataclass(frozen=True)
class Plan:
    """What `aqnet.training.plan` cannot read elsewhere.

    `peak_tflops` is that of one process's device; with it telemetry tells the share in use.
    """

    grid: tuple[int, int] | None = None
    domain_fraction: float = 1.0
    peak_tflops: float | None = None


@dataclass(frozen=True)
class Config:
    """One experiment."""

    run_dir: str
    data: Data
    seed: int = 0
    model: Model = Model()
    train: Train = Train()
    validation: Validation = Validation()
    plan: Plan = Plan()

    @property
    def input_variables(self) -> tuple[str, ...]:
        """Channels of `Batch.fields`: `data.variables`, then NAME@-24h for each earlier hour."""
        earlier = [
            f"{name}@{hours}h"
            for hours in self.data.history_hours
            if hours != 0
            for name in self.data.variables
            if name not in STATIC_VARIABLES
        ]
        return (*self.data.variables, *earlier)

    def accumulation(self, world_size: int) -> int:
        """Micro-batches per optimizer step and process.

        Raises:
            AqnetError: the effective batch does not divide; the nearest that do are named.
        """
        train = self.train
        unit = len(self.data.lead_times) * world_size * train.micro_batch
        if train.effective_batch % unit == 0:
            return train.effective_batch // unit
        below = train.effective_batch // unit * unit
        near = " or ".join(str(n) for n in (below, below + unit) if n > 0)
        items, rest = divmod(train.effective_batch, len(self.data.lead_times) * world_size)
        sizes = [n for n in range(1, items + 1) if items % n == 0] if rest == 0 else []
        hint = f", or train.micro_batch one of {sizes}" if sizes else ""
        raise AqnetError(
            f"train.effective_batch is {train.effective_batch} forecasts, which is no multiple of "
            f"{unit} ({len(self.data.lead_times)} lead times x {world_size} processes x "
            f"micro_batch {train.micro_batch}); set train.effective_batch to {near}{hint}"
        )


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file and apply `key=value` overrides.

    Raises:
        AqnetError: the file is missing or not YAML, a key is unknown, has the wrong type, or keys
            contradict each other.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AqnetError(f"{path}: cannot read the config file: {error}") from None
    tree = parse(text, str(path))
    if not isinstance(tree, dict):
        raise AqnetError(f"{path}: expected a mapping of keys, found {type(tree).__name__}")
    return from_dict(overridden(tree, overrides), str(path))


def from_dict(tree: dict[str, Any], origin: str) -> Config:
    """Build and check a config from nested dicts; `origin` names it in errors."""
    try:
        config: Config = build(Config, tree)
    except AqnetError as error:
        raise AqnetError(f"{origin}: {error}") from None
    wrong = (_wrong_numbers(config), _wrong_data(config.data), _wrong_model(config))
    for problem in itertools.chain(*wrong, _wrong_training(config)):
        raise AqnetError(f"{origin}: {problem}")
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Nested dicts and lists, the inverse of `from_dict`; JSON and YAML can hold it."""
    result: dict[str, Any] = plain(dataclasses.asdict(config))
    return result


def to_yaml(config: Config) -> str:
    """The resolved config as text that `load` reads back to an equal config."""
    return dump(to_dict(config))


# Run length, loader, telemetry, checkpointing, micro-batch, validation interval and paths.
_MAY_CHANGE = re.compile(
    r"run_dir|data\.(stores|sources.*|static_files.*|mask_file|units.*)"
    r"|train\.(micro_batch|max_steps|max_epochs|max_hours|patience|checkpoint_every|keep_best"
    r"|checksum_every|timeout_seconds|workers|log_every|max_bad_steps|evaluate_after_training"
    r"|init_from|init_statistics)|validation\.(every|micro_batch|maps)|plan\..*"
)


def changes_forbidden_on_continuation(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Keys (with both values) in which two resolved configs differ though a run may not change
    them; data are compared by checksums elsewhere."""
    before, after = flattened(old), flattened(new)
    return [
        f"{key} ({before.get(key)!r} -> {after.get(key)!r})"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not _MAY_CHANGE.fullmatch(key)
    ]


# --- values and combinations that cannot work ---------------------------------------------------

_MAY_BE_ZERO = re.compile(
    r"seed|validation\.maps|model\.(decoder_depth|drop_path|drop_rate)"
    r"|train\.(weight_decay|warmup_steps|workers"
    r"|(target_weights|lead_time_weights|learning_rate_factors)\..*)"
)


def _wrong_numbers(config: Config) -> Iterator[str]:
    """Every number is positive, save those that may be 0 and the two lists with rules of their
    own."""
    for key, value in flattened(to_dict(config)).items():
        if key in ("data.history_hours", "model.terrain.blocks"):
            continue
        for number in value if isinstance(value, list) else [value]:
            if type(number) in (int, float) and not number > 0:  # NaN is not
                if _MAY_BE_ZERO.fullmatch(key) is None:
                    yield f"{key} must be positive, found {number}"
                elif number != 0:
                    yield f"{key} must not be negative, found {number}"
    for key in ("model.drop_path", "model.drop_rate", "train.ema_decay"):
        share = attrgetter(key)(config)
        if share is not None and share >= 1:
            yield f"{key} must be below 1, found {share}"


def _wrong_data(data: Data) -> Iterator[str]:
    for key in ("variables", "targets", "lead_times", "history_hours", "split.train"):
        values = attrgetter(key)(data)
        if not values:
            yield f"data.{key} is empty"
        if len(set(values)) < len(values):
            yield f"data.{key} lists a value twice: {values}"
    if data.history_hours[0] != 0 or max(data.history_hours) != 0:
        yield f"data.history_hours must be 0 followed by negative hours, found {data.history_hours}"
    for target in data.targets:
        if target in STATIC_VARIABLES or "@" in target:
            yield f"data.targets: {target!r} cannot be a target"
    for key in ("train", "validation", "test"):
        try:
            periods.intervals(getattr(data.split, key))
        except AqnetError as error:
            yield f"data.split.{key}: {error}"
    for name in data.static_files:
        if name not in ("elevation", "population"):
            yield f"data.static_files.{name}: known are elevation and population"
    for name in data.units:
        if name not in (*data.variables, *data.targets):
            yield f"data.units.{name}: no such variable in data.variables and data.targets"
    if (data.resample == "none") != (data.shape is None):
        yield (
            "data.shape is the grid to resample to: give it with data.resample area or bilinear, "
            "and leave it out with none"
        )


def _wrong_model(config: Config) -> Iterator[str]:
    data, model = config.data, config.model
    if model.embed_dim % model.num_heads:
        heads = f"model.num_heads {model.num_heads}"
        yield f"model.embed_dim {model.embed_dim} is no multiple of {heads}"
    if model.scan == "wind" and not {"u", "v"} <= set(data.variables):
        yield "model.scan is wind, but data.variables lacks u or v; set model.scan: raster"
    if "elevation" not in data.variables:
        lacks = "but data.variables lacks elevation"
        if model.compatibility not in ("none", "aq_net2"):
            yield f"model.compatibility is {model.compatibility}, {lacks}"
        if model.terrain.enabled:
            yield f"model.terrain.enabled is true, {lacks}; set it to false"
    if model.regions is not None and model.attention == "window":
        yield "model.regions cannot go with model.attention: window; leave one of them out"
    if model.compatibility != "none":
        yield from _wrong_compatibility(model)
    for block in model.terrain.blocks or ():
        if not 0 <= block < model.depth:
            yield f"model.terrain.blocks: {block} is no block of a model of depth {model.depth}"
    for target in data.targets:
        if model.predict == "change" and target not in data.variables:
            yield (
                f"model.predict is change, but the target {target!r} is not in data.variables; "
                "add it there or set model.predict: value"
            )


def _wrong_compatibility(model: Model) -> Iterator[str]:
    needed = {
        "tokens": "all",
        "missing": "fill",
        "lead_time_mode": "conditioned",
        "attention": "global",
        "predict": "value",
    }
    for key, value in needed.items():
        if getattr(model, key) != value:
            yield f"model.compatibility {model.compatibility} needs model.{key}: {value}"
    if model.terrain.enabled:
        yield (
            f"model.compatibility {model.compatibility} needs model.terrain.enabled: false (its "
            "own terrain terms are in block 0)"
        )


def _wrong_training(config: Config) -> Iterator[str]:
    train = config.train
    if (train.init_from is None) != (train.init_statistics is None):
        yield "train.init_from needs train.init_statistics (checkpoint or data), and only then"
    if train.max_steps is None:
        if train.max_epochs is None and train.max_hours is None:
            yield "give a run length: train.max_steps, train.max_epochs or train.max_hours"
        if train.decay_steps is None:
            yield (
                "train.decay_steps (the length of the cosine) is needed where train.max_steps is "
                "not given"
            )
    for name in train.target_weights:
        if name not in config.data.targets:
            yield f"train.target_weights.{name} is no target"
    for hours in train.lead_time_weights:
        if hours not in map(str, config.data.lead_times):
            yield f"train.lead_time_weights.{hours} is no lead time"
