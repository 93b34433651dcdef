"""The sections of a configuration and their keys, with defaults, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from aqnet.config import periods
from aqnet.config.channels import STATIC_VARIABLES, Channel


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
    weather: tuple[str, ...] = ()
    weather_hours: tuple[int, ...] = ()
    recent_days: tuple[int, ...] = ()
    sources: tuple[Source, ...] = ()
    units: dict[str, str] = field(default_factory=dict)
    missing_values: tuple[float, ...] = ()
    utc_offset: int = 0
    static_files: dict[str, str] = field(default_factory=dict)
    mask_file: str | None = None
    winds: Literal["earth", "grid"] = "earth"
    resample: Literal["none", "area", "bilinear"] = "none"
    shape: tuple[int, int] | None = None
    dtype: Literal["float32", "float16"] = "float32"

    @property
    def stored_weather(self) -> tuple[str, ...]:
        """Variables with a time that are no targets: the stores' `weather`."""
        others = (*STATIC_VARIABLES, *self.targets)
        return tuple(
            name for name in dict.fromkeys((*self.variables, *self.weather)) if name not in others
        )

    @property
    def stored(self) -> tuple[str, ...]:
        """All variables with a time: `stored_weather`, then the targets, the stores' `air`."""
        return (*self.stored_weather, *self.targets)


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
    transport: Literal["wind", "fields", "attention", "off"] = "wind"
    calendar: Literal["off", "day", "day_and_year"] = "day"
    predict: Literal["change", "value"] = "change"
    quantiles: tuple[float, ...] = ()
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
    weather_dropout: float = 0.1
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
    """What `aqnet.plan` cannot read elsewhere.

    `peak_tflops` is that of one process's device; with it telemetry tells the share in use.
    """

    grid: tuple[int, int] | None = None
    domain_fraction: float = 1.0
    peak_tflops: float | None = None


@dataclass(frozen=True)
class Report:
    """What evaluate.py's report shows besides: `places` are names with latitude and longitude of
    the cells whose forecasts it draws; where none is given, the five cells of highest mean."""

    places: dict[str, tuple[float, float]] = field(default_factory=dict)


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
    report: Report = Report()

    @property
    def input_channels(self) -> tuple[Channel, ...]:
        """Channels of `Batch.fields`: `data.variables`, their earlier hours, weather to come, and
        the means of the last days."""
        data = self.data
        moving = [name for name in data.variables if name not in STATIC_VARIABLES]
        return (
            *(Channel(name) for name in data.variables),
            *(Channel(name, hours) for hours in data.history_hours if hours for name in moving),
            *(Channel(name, hours) for hours in data.weather_hours for name in data.weather),
            *(Channel(name, days=days) for days in data.recent_days for name in data.targets),
        )

    @property
    def token_variables(self) -> tuple[str, ...]:
        """Of the input channels those that are aggregated to a token: all but weather to come."""
        return tuple(channel.name for channel in self.input_channels if not channel.to_come)

    @property
    def wind_hours(self) -> tuple[int, ...]:
        """Hours after the input time at which the inputs have a wind, ascending."""
        to_come = {"u", "v"} <= set(self.data.weather)
        return (0, *sorted(self.data.weather_hours)) if to_come else (0,)

    @property
    def input_variables(self) -> tuple[str, ...]:
        """Names of `input_channels`: pm25, pm25@-24h, u@+12h, pm25@mean7d."""
        return tuple(channel.name for channel in self.input_channels)
