"""The sections of a configuration and their keys, with defaults, as frozen dataclasses.

`docs/make_config.py` makes the reference in docs/config.md of them: each key has its lines below
`Attributes:`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from aqnet.config import periods
from aqnet.config.channels import STATIC_VARIABLES, Channel


@dataclass(frozen=True)
class Source:
    """Source files of one layout, an entry of `data.sources`.

    Attributes:
        path: a glob, `**` for folders, of NetCDF, Zarr, GRIB or archives of NetCDF.
        names: what the files call a variable, by aqnet's name of it.
    """

    path: str
    names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """Which times are for what; each a list of periods.

    Attributes:
        train: what the model, the statistics, the domain and the simple forecasts are made from.
        validation: what chooses the best checkpoint and calibrates quantiles.
        test: what a finished model is scored on.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def years(self) -> list[int]:
        """The calendar years that the three touch together, ascending."""
        return periods.years((*self.train, *self.validation, *self.test))


@dataclass(frozen=True)
class Data:
    """What is read, how it is put on the model grid, and which samples there are.

    Attributes:
        stores: folder of the training stores, YEAR.zarr and statistics.json, that `prepare` writes.
        variables: inputs at the input time, with a time or static.
        targets: what is forecast; among `variables` too unless `model.predict` is `value`,
            `model.transport` is `off` and `recent_days` is empty.
        split: the periods of training, validation and test.
        lead_times: hours after the input time that are forecast.
        history_hours: 0, then earlier hours (negative) whose values are inputs too.
        weather: variables whose values after the input time are inputs too.
        weather_hours: the hours after the input time of `weather`; both or neither.
        recent_days: as inputs, means of the targets over so many whole days before the day of the
            input time, less their value at the input time.
        sources: source files, of which `prepare` makes the stores; the first entry gives grid and
            hours.
        units: the unit of a variable, where its files say none or a wrong one.
        missing_values: codes in the files that mean a missing value and are not declared there.
        utc_offset: hours east of UTC of the files' times.
        static_files: a file of `elevation` or `population`, instead of the sources'.
        mask_file: a field that is positive inside the domain; without, cells that ever have a
            target.
        winds: whether u and v are eastward and northward (`earth`) or along the grid's axes.
        resample: `area` means or `bilinear` values on a coarser grid of `shape`.
        shape: rows and columns of the model grid, such as 128x256, with `resample`.
        dtype: of the fields in the stores.
    """

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
    """Terrain attention, which needs elevation among `data.variables`.

    Attributes:
        enabled: whether lifting and lowering air costs attention.
        blocks: the blocks that have it, counted from 0; all without.
    """

    enabled: bool = True
    blocks: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Model:
    """Sizes and switches of `aqnet.model.climax.ClimaX`; docs/model.md says more.

    Attributes:
        patch: side of a patch in cells; a patch is a token.
        embed_dim: numbers of a token; a multiple of `num_heads`.
        depth: transformer blocks.
        decoder_depth: hidden layers of the head.
        num_heads: of attention.
        mlp_ratio: width of a block's hidden layer over `embed_dim`.
        drop_path: share of residual branches left out in training.
        drop_rate: dropout on embeddings, projections and MLP.
        tokens: patches that touch the `domain`, or `all`.
        missing: `ignore` a variable that is missing in a whole patch, or `fill` it with its mean.
        lead_time_mode: all lead times from one pass, or one pass each, `conditioned` on its own.
        attention: to all tokens, or to those of a `window` along the scan.
        window: tokens of a window.
        scan: tokens are read along the sample's wind, or by rows from the north.
        scan_embedding: whether a token is told its rank in the scan.
        regions: rows and columns of regions that have a wind and ranks of their own.
        terrain: terrain attention.
        transport: follow the air back along the wind, for the forecast and the inputs (`fields`),
            for `attention`, or both (`wind`); needs u and v among `data.variables`.
        calendar: hour and height of the sun as inputs, and the day of the year.
        predict: what the network adds to damped persistence, or the value itself.
        quantiles: levels between 0 and 1, forecast beside the mean.
        activation_checkpointing: compute blocks again in the backward pass instead of keeping them.
        compatibility: the arithmetic of older checkpoints, docs/weights.md.
    """

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
    """The optimizer steps; a run ends at the first of the limits that are given.

    Attributes:
        micro_batch: input times per process and backward.
        effective_batch: forecasts, (input time, lead time) pairs, per optimizer step, of all
            processes.
        max_steps: the limit in optimizer steps.
        max_epochs: the limit in passes over the training split.
        max_hours: the limit in hours of training, restarts included.
        max_items: input times of the training split that are used, evenly spread; all without.
        learning_rate: its peak.
        learning_rate_factors: of parameters, by the first parts of their dotted name (`blocks`,
            `blocks.0.attn`); the longest that fits holds, 0 freezes.
        weight_decay: of AdamW.
        warmup_steps: steps in which the learning rate rises.
        decay_steps: step at which its cosine reaches 0; `max_steps` without.
        clip_norm: the largest norm of the gradient; .inf does not clip.
        loss: squared error, or Huber's.
        huber_delta: where Huber's loss becomes linear, in standard deviations.
        target_weights: weights of targets in the loss, 1 where not given.
        lead_time_weights: weights of lead times in the loss, such as {96: 0.5}.
        ema_decay: keep a moving average of the weights, which is what is validated and used.
        weather_dropout: share of training samples without weather to come.
        patience: validations in a row without a lower loss that end the run.
        precision: bf16 runs linear layers and attention in it, that with a bias on GPUs alone.
        compile: with torch.compile.
        deterministic: the same bits on a GPU too, slower.
        max_bad_steps: steps in a row without finite loss and gradient that end the run.
        checkpoint_every: steps between checkpoints.
        keep_best: checkpoints of lowest validation loss that are kept, besides the newest two.
        checksum_every: steps between comparisons of all processes' parameters.
        timeout_seconds: longest wait for the other processes.
        workers: loader processes per process; 0 reads in the process itself.
        log_every: steps between lines of the log.
        init_from: a run directory or checkpoint whose weights a fresh run starts from.
        init_statistics: normalise as that `checkpoint` or by the `data`; with `init_from`.
        evaluate_after_training: score the best checkpoint on the test split in RUN_DIR/evaluation.
    """

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
    """When and on what to validate.

    Attributes:
        every: optimizer steps between validations.
        max_items: input times, evenly spread; all of the split without.
        micro_batch: input times per forward; `train.micro_batch` without.
        maps: input times of which TensorBoard shows maps.
    """

    every: int = 500
    max_items: int | None = None
    micro_batch: int | None = None
    maps: int = 2


@dataclass(frozen=True)
class Plan:
    """What `aqnet.plan` cannot read elsewhere.

    Attributes:
        grid: rows and columns, where there are no stores yet.
        domain_fraction: share of the patches with a cell of the domain, where there are no stores
            yet.
        peak_tflops: of one process's device; with it telemetry tells the share in use.
    """

    grid: tuple[int, int] | None = None
    domain_fraction: float = 1.0
    peak_tflops: float | None = None


@dataclass(frozen=True)
class Report:
    """What evaluate.py's report shows besides.

    Attributes:
        places: names with latitude and longitude of the cells whose forecasts are drawn; none: the
            five cells of highest mean.
    """

    places: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """One experiment.

    Attributes:
        run_dir: folder of checkpoints, log and status; `run_dir=...` on the command line.
        data: what is read, and which samples there are.
        seed: of first weights, the order of samples and dropout.
        model: sizes and switches.
        train: batches, length, optimizer.
        validation: when and on what.
        plan: for `python -m aqnet.plan` alone.
        report: what evaluate.py draws besides.
    """

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
    def recent_channels(self) -> list[list[int]]:
        """Places in the input channels of the means of `data.recent_days`, of all targets each."""
        channels, data = self.input_channels, self.data
        return [
            [channels.index(Channel(name, days=days)) for name in data.targets]
            for days in data.recent_days
        ]

    @property
    def wind_hours(self) -> tuple[int, ...]:
        """Hours after the input time at which the inputs have a wind, ascending."""
        to_come = {"u", "v"} <= set(self.data.weather)
        return (0, *sorted(self.data.weather_hours)) if to_come else (0,)

    @property
    def input_variables(self) -> tuple[str, ...]:
        """Names of `input_channels`: pm25, pm25@-24h, u@+12h, pm25@mean7d."""
        return tuple(channel.name for channel in self.input_channels)
