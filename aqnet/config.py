"""The configuration: YAML in, frozen dataclasses out. The only place that knows keys."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

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


def load(path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
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
    tree = _parse(text, str(path))
    if not isinstance(tree, dict):
        raise AqnetError(f"{path}: expected a mapping of keys, found {type(tree).__name__}")
    return from_dict(overridden(tree, overrides), str(path))


def from_dict(tree: dict[str, Any], origin: str) -> Config:
    """Build and check a config from nested dicts; `origin` names it in errors."""
    try:
        config: Config = _build(Config, tree, "")
        _check(config)
    except AqnetError as error:
        raise AqnetError(f"{origin}: {error}") from None
    return config


def overridden(tree: dict[str, Any], overrides: typing.Sequence[str]) -> dict[str, Any]:
    """A copy of nested dicts with `key=value` overrides applied."""
    changed = copy.deepcopy(tree)
    for override in overrides:
        _override(changed, override)
    return changed


def to_dict(config: Config) -> dict[str, Any]:
    """Nested dicts and lists, the inverse of `from_dict`; JSON and YAML can hold it."""
    result: dict[str, Any] = _plain(dataclasses.asdict(config))
    return result


def to_yaml(config: Config) -> str:
    """The resolved config as text that `load` reads back to an equal config."""
    return yaml.dump(to_dict(config), Dumper=_CoreDumper, sort_keys=False, allow_unicode=True)


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
    before, after = _flatten(old), _flatten(new)
    return [
        f"{key} ({before.get(key)!r} -> {after.get(key)!r})"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not _MAY_CHANGE.fullmatch(key)
    ]


# --- YAML 1.2 core schema -----------------------------------------------------------------------


class _CoreLoader(yaml.SafeLoader):
    pass


class _CoreDumper(yaml.SafeDumper):
    pass


# PyYAML's own resolvers are those of YAML 1.1, for which `no` is false and `1e-4` is text
_CoreLoader.yaml_implicit_resolvers = {}
_CoreDumper.yaml_implicit_resolvers = {}


_SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
for _tag, _pattern in _SCALARS.items():
    for _class in (_CoreLoader, _CoreDumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), None
        )


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = node.value
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _construct_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[str, Any]:
    keys = [str(loader.construct_object(key, deep=True)) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice", node.start_mark
            )
    values = [loader.construct_object(value, deep=True) for _, value in node.value]
    return dict(zip(keys, values, strict=True))


_CoreLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_CoreLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def _parse(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_CoreLoader)
    except yaml.YAMLError as error:
        raise AqnetError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise AqnetError(f"{override!r}: expected key=value, such as train.max_steps=100")
    *parents, last = key.split(".")
    for parent in parents:
        child = tree.get(parent)
        if child is None:
            child = tree[parent] = {}
        if not isinstance(child, dict):
            raise AqnetError(f"{override!r}: {parent!r} holds a value, not a section")
        tree = child
    tree[last] = _parse(text, override)


# --- dicts to dataclasses -----------------------------------------------------------------------


def _build(kind: Any, value: Any, key: str) -> Any:
    """`value` as `kind` (a dataclass or a type hint of one of its fields)."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build_section(kind, value, key)
    if origin in (typing.Union, types.UnionType):  # `X | None`
        return None if value is None else _build(arguments[0], value, key)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise AqnetError(f"{key} is {value!r}; expected {_one_of(arguments, value)}")
        return value
    if origin is tuple:
        return _build_tuple(arguments, value, key)
    if origin is dict:
        if not isinstance(value, dict):
            raise AqnetError(f"{key} is {value!r}; expected a mapping")
        return {name: _build(arguments[1], item, f"{key}.{name}") for name, item in value.items()}
    if kind is float and type(value) in (int, float):
        return float(value)
    if type(value) is not kind:
        raise AqnetError(f"{key} is {value!r}; expected {_TYPE_NAMES[kind]}")
    return value


_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _build_section(kind: Any, value: Any, key: str) -> Any:
    if not isinstance(value, dict):
        raise AqnetError(f"{key or 'the config'} is {value!r}; expected a section of keys")
    hints = typing.get_type_hints(kind)
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in hints:
            raise AqnetError(f"unknown key '{prefix}{name}'; {_nearest(name, hints, prefix)}")
    for item in dataclasses.fields(kind):
        required = item.default is item.default_factory is dataclasses.MISSING
        if required and item.name not in value:
            raise AqnetError(f"the key '{prefix}{item.name}' is missing")
    return kind(**{name: _build(hints[name], item, prefix + name) for name, item in value.items()})


def _build_tuple(arguments: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    if isinstance(value, str) and arguments == (int, int):  # "128x256"
        parts = value.split("x")
        value = [int(part) if part.isdigit() else part for part in parts]
    if not isinstance(value, list | tuple):
        raise AqnetError(f"{key} is {value!r}; expected a list")
    if arguments[-1] is not Ellipsis and len(value) != len(arguments):
        raise AqnetError(f"{key} is {value!r}; expected {len(arguments)} values")
    if key.startswith("data.split."):  # a year is written as a number
        value = [str(item) if type(item) is int else item for item in value]
    return tuple(_build(arguments[0], item, f"{key}[{at}]") for at, item in enumerate(value))


def _nearest(name: str, known: typing.Iterable[str], prefix: str) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    if close:
        return f"did you mean '{prefix}{close[0]}'?"
    return f"known here: {', '.join(prefix + key for key in known)}"


def _one_of(values: tuple[Any, ...], found: Any) -> str:
    close = difflib.get_close_matches(str(found), [str(value) for value in values], n=1)
    listed = " or ".join(str(value) for value in values)
    return listed + (f" (did you mean {close[0]}?)" if close else "")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


# --- combinations that cannot work --------------------------------------------------------------

_PERIOD = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?(/\d{4}(-\d{2}(-\d{2})?)?)?")


def _check(config: Config) -> None:
    _check_data(config.data)
    _check_model(config)
    _check_training(config)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AqnetError(message)


def _check_data(data: Data) -> None:
    for key in ("variables", "targets", "lead_times", "history_hours"):
        values = getattr(data, key)
        _require(bool(values), f"data.{key} is empty")
        _require(len(set(values)) == len(values), f"data.{key} lists a value twice: {values}")
    _require(min(data.lead_times) > 0, f"data.lead_times must be positive hours: {data.lead_times}")
    _require(
        data.history_hours[0] == 0 and max(data.history_hours) == 0,
        f"data.history_hours must be 0 followed by negative hours, found {data.history_hours}",
    )
    for target in data.targets:
        _require(
            target not in STATIC_VARIABLES and "@" not in target,
            f"data.targets: {target!r} cannot be a target",
        )
    for key in ("train", "validation", "test"):
        for period in getattr(data.split, key):
            _require(
                _PERIOD.fullmatch(period) is not None,
                f"data.split.{key}: {period!r} is no year (2013), month (2013-10) or date range "
                "(2013-03-01/2013-09-30)",
            )
    for name in data.static_files:
        _require(
            name in STATIC_VARIABLES, f"data.static_files.{name}: known are {STATIC_VARIABLES}"
        )
    _require(
        (data.resample == "none") == (data.shape is None),
        "data.shape is the grid to resample to: give it with data.resample area or bilinear, "
        "and leave it out with none",
    )


def _check_model(config: Config) -> None:
    data, model = config.data, config.model
    for key in ("patch", "embed_dim", "depth", "num_heads", "window"):
        _require(getattr(model, key) > 0, f"model.{key} must be positive")
    _require(
        model.embed_dim % model.num_heads == 0,
        f"model.embed_dim {model.embed_dim} is no multiple of model.num_heads {model.num_heads}",
    )
    for key in ("drop_path", "drop_rate"):
        _require(0 <= getattr(model, key) < 1, f"model.{key} must be at least 0 and below 1")
    _require(
        model.scan == "raster" or {"u", "v"} <= set(data.variables),
        "model.scan is wind, but data.variables lacks u or v; set model.scan: raster",
    )
    _require(
        model.compatibility in ("none", "aq_net2") or "elevation" in data.variables,
        f"model.compatibility is {model.compatibility}, but data.variables lacks elevation",
    )
    _require(
        not model.terrain.enabled or "elevation" in data.variables,
        "model.terrain.enabled is true, but data.variables lacks elevation; set it to false",
    )
    _require(
        model.regions is None or model.attention == "global",
        "model.regions cannot go with model.attention: window; leave one of them out",
    )
    _check_compatibility(model)
    for block in model.terrain.blocks or ():
        _require(
            0 <= block < model.depth,
            f"model.terrain.blocks: {block} is no block of a model of depth {model.depth}",
        )
    for target in data.targets:
        _require(
            model.predict == "value" or target in data.variables,
            f"model.predict is change, but the target {target!r} is not in data.variables; "
            "add it there or set model.predict: value",
        )


def _check_compatibility(model: Model) -> None:
    needed = {
        "tokens": "all",
        "missing": "fill",
        "lead_time_mode": "conditioned",
        "attention": "global",
        "predict": "value",
    }
    if model.compatibility == "none":
        return
    for key, value in needed.items():
        _require(
            getattr(model, key) == value,
            f"model.compatibility {model.compatibility} needs model.{key}: {value}",
        )
    _require(
        not model.terrain.enabled,
        f"model.compatibility {model.compatibility} needs model.terrain.enabled: false (its own "
        "terrain terms are in block 0)",
    )


def _check_training(config: Config) -> None:
    train = config.train
    for key in (
        "micro_batch",
        "effective_batch",
        "learning_rate",
        "clip_norm",
        "max_bad_steps",
        "checkpoint_every",
        "keep_best",
        "checksum_every",
        "log_every",
        "timeout_seconds",
    ):
        _require(getattr(train, key) > 0, f"train.{key} must be positive")
    _require(config.validation.every > 0, "validation.every must be positive")
    _require(train.warmup_steps >= 0, "train.warmup_steps must not be negative")
    _require(
        (train.init_from is None) == (train.init_statistics is None),
        "train.init_from needs train.init_statistics (checkpoint or data), and only then",
    )
    _require(
        any(limit is not None for limit in (train.max_steps, train.max_epochs, train.max_hours)),
        "give a run length: train.max_steps, train.max_epochs or train.max_hours",
    )
    _require(
        train.decay_steps is not None or train.max_steps is not None,
        "train.decay_steps (the length of the cosine) is needed where train.max_steps is not given",
    )
    for name in train.target_weights:
        _require(name in config.data.targets, f"train.target_weights.{name} is no target")
    for hours in train.lead_time_weights:
        _require(
            hours in map(str, config.data.lead_times),
            f"train.lead_time_weights.{hours} is no lead time",
        )
