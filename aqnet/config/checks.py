"""Values and combinations of a config that cannot work."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from aqnet.config import periods
from aqnet.config.keys import STATIC_VARIABLES, Config, Data, Model, Report
from aqnet.config.reading import flattened, to_dict
from aqnet.errors import AqnetError


def problems(config: Config) -> Iterator[str]:
    """What is wrong with a config, each a sentence that begins with the key."""
    parts = (_wrong_numbers(config), _wrong_data(config.data), _wrong_model(config))
    return itertools.chain(*parts, _wrong_training(config), _wrong_places(config.report))


_MAY_BE_ZERO = re.compile(
    r"seed|validation\.maps|model\.(decoder_depth|drop_path|drop_rate)"
    r"|train\.(weight_decay|warmup_steps|workers|weather_dropout"
    r"|(target_weights|lead_time_weights|learning_rate_factors)\..*)"
)


_FREE = {
    *("data.history_hours", "data.missing_values", "data.utc_offset"),
    *("model.terrain.blocks", "model.quantiles"),
}
# far above any use: what is built in loops, started, or kept in memory by these numbers would take
# all of the machine before anything else finds fault with them
_AT_MOST = {
    "model.patch": 256,
    "model.embed_dim": 65_536,
    "model.depth": 1000,
    "model.decoder_depth": 1000,
    "model.mlp_ratio": 64,
    "train.micro_batch": 2**20,
    "train.workers": 1024,
    "validation.micro_batch": 2**20,
    "validation.maps": 1000,
    "data.shape": 100_000,
    "plan.grid": 100_000,
    "data.lead_times": 24 * 366 * 10,
}


def _numbers(value: Any) -> tuple[Any, ...]:
    if isinstance(value, tuple):
        return value
    return () if value is None else (value,)


def _wrong_numbers(config: Config) -> Iterator[str]:
    """Every number is positive, save those that may be 0 or anything, or have rules of their
    own."""
    for key, value in flattened(to_dict(config)).items():
        if key in _FREE or key.startswith("report.places."):
            continue
        for number in value if isinstance(value, list) else [value]:
            if type(number) not in (int, float):
                continue
            if math.isinf(number) and key != "train.clip_norm":  # where it means not to clip
                yield f"{key} must be finite, found {number}"
            elif not number > 0:  # NaN is not
                if _MAY_BE_ZERO.fullmatch(key) is None:
                    yield f"{key} must be positive, found {number}"
                elif number != 0:
                    yield f"{key} must not be negative, found {number}"
    for key, most in _AT_MOST.items():
        for number in _numbers(attrgetter(key)(config)):
            if number > most:
                yield f"{key} is {number}; it may be at most {most}"
    for key in ("model.drop_path", "model.drop_rate", "train.ema_decay", "train.weather_dropout"):
        share = attrgetter(key)(config)
        if share is not None and share >= 1:
            yield f"{key} must be below 1, found {share}"


def _wrong_data(data: Data) -> Iterator[str]:
    needed = ("variables", "targets", "lead_times", "history_hours", "split.train")
    for key in (*needed, "weather", "weather_hours", "recent_days"):
        values = attrgetter(key)(data)
        if key in needed and not values:
            yield f"data.{key} is empty"
        if len(set(values)) < len(values):
            yield f"data.{key} lists a value twice: {values}"
    if data.history_hours[0] != 0 or max(data.history_hours) != 0:
        yield f"data.history_hours must be 0 followed by negative hours, found {data.history_hours}"
    for key in ("variables", "targets", "weather"):
        for name in attrgetter(key)(data):
            if "@" in name:
                yield f"data.{key}: {name!r}: a name holds no @, which marks hours"
    for target in data.targets:
        if target in STATIC_VARIABLES:
            yield f"data.targets: {target!r} cannot be a target"
    yield from _wrong_weather(data)
    for key in ("train", "validation", "test"):
        try:
            periods.intervals(getattr(data.split, key))
        except AqnetError as error:
            yield f"data.split.{key}: {error}"
    for name in data.static_files:
        if name not in ("elevation", "population"):
            yield f"data.static_files.{name}: known are elevation and population"
    named = {name for source in data.sources for name in source.names}
    # from which the humidity of --weather's files may come
    humid = ("temp", "dewpoint") if "rh" in data.weather else ()
    for name in data.units:
        if name not in (*data.variables, *data.stored, *named, *humid):
            yield f"data.units.{name}: no such variable in data.variables, weather and targets"
    if abs(data.utc_offset) > 14:
        yield f"data.utc_offset is in hours east of UTC, at most 14, found {data.utc_offset}"
    if (data.resample == "none") != (data.shape is None):
        yield (
            "data.shape is the grid to resample to: give it with data.resample area or bilinear, "
            "and leave it out with none"
        )


def _wrong_weather(data: Data) -> Iterator[str]:
    if bool(data.weather) != bool(data.weather_hours):
        yield "data.weather and data.weather_hours go together: give both, or neither"
    for name in data.weather:
        if name in data.targets:
            yield f"data.weather: {name!r} is a target; read after the input time it is the truth"
        if name in STATIC_VARIABLES:
            yield f"data.weather: {name!r} does not change with time; data.variables is its place"
    for hours in data.weather_hours:
        if hours > max(data.lead_times):
            yield (
                f"data.weather_hours: {hours} is beyond the longest of data.lead_times, "
                f"{max(data.lead_times)}"
            )
    for target in data.targets if data.recent_days else ():
        if target not in data.variables:
            yield (
                f"data.recent_days: the mean of {target!r} is given relative to its value, which "
                "is not in data.variables; add it there"
            )


def _wrong_model(config: Config) -> Iterator[str]:
    data, model = config.data, config.model
    if model.embed_dim % model.num_heads:
        heads = f"model.num_heads {model.num_heads}"
        yield f"model.embed_dim {model.embed_dim} is no multiple of {heads}"
    if model.scan == "wind" and not {"u", "v"} <= set(data.variables):
        yield "model.scan is wind, but data.variables lacks u or v; set model.scan: raster"
    if model.transport != "off" and not {"u", "v"} <= set(data.variables):
        lacks = "but data.variables lacks u or v; set model.transport: off"
        yield f"model.transport is {model.transport}, {lacks}"
    yield from _hidden_wind(config)
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
    yield from _wrong_quantiles(model.quantiles)
    for block in model.terrain.blocks or ():
        if not 0 <= block < model.depth:
            yield f"model.terrain.blocks: {block} is no block of a model of depth {model.depth}"
    for target in data.targets:
        if model.predict == "change" and target not in data.variables:
            yield (
                f"model.predict is change, but the target {target!r} is not in data.variables; "
                "add it there or set model.predict: value"
            )
        if model.transport != "off" and target not in data.variables:
            yield (
                f"model.transport is {model.transport}, but the target {target!r} is not in "
                "data.variables; add it there or set model.transport: off"
            )


def _hidden_wind(config: Config) -> Iterator[str]:
    """A conditioned pass must not follow air by a wind after its own lead time."""
    data, model = config.data, config.model
    if model.transport != "off" and model.lead_time_mode == "conditioned" and config.wind_hours[1:]:
        for lead in data.lead_times:
            if lead not in data.weather_hours:
                yield (
                    f"data.weather_hours: {lead} h, one of data.lead_times, is missing; with "
                    "model.lead_time_mode: conditioned the wind must be known at each of them"
                )


def _wrong_quantiles(levels: tuple[float, ...]) -> Iterator[str]:
    found = f"model.quantiles {list(levels)}"
    if len(levels) == 1:
        yield f"{found}: give at least two, such as [0.05, 0.25, 0.5, 0.75, 0.95], or none"
    if not all(0 < level < 1 for level in levels):
        yield f"{found}: each must lie between 0 and 1"
    if any(not first < second for first, second in itertools.pairwise(levels)):
        yield f"{found}: each must be larger than the one before"


def _wrong_compatibility(model: Model) -> Iterator[str]:
    needed = {
        "tokens": "all",
        "missing": "fill",
        "lead_time_mode": "conditioned",
        "attention": "global",
        "predict": "value",
        "transport": "off",
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


def _wrong_places(report: Report) -> Iterator[str]:
    for name, (lat, lon) in report.places.items():
        if not (-90 <= lat <= 90 and -180 <= lon <= 360):
            yield (
                f"report.places.{name} is [{lat:g}, {lon:g}]; expected latitude and longitude in "
                "degrees, such as [39.9, 116.4]"
            )
