"""Weights of one model as the start of another: what was taken, what was not, and why."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aqnet import config as configs
from aqnet.batch import Statistics
from aqnet.checkpoint.files import Loaded
from aqnet.config import Config
from aqnet.errors import AqnetError
from aqnet.model.climax import ClimaX, lead_time_unit

# of a parameter: per axis, what its entries stand for
Labels = dict[int, Sequence[Hashable]]
# of the first forecast, besides `rho` of the present value
TERMS = ("recent_rho", "transport.rho")


@dataclass
class Report:
    """The account of a transfer: every name of either side is in one of these.

    Attributes:
        taken: aqnet's name and where it came from.
        initialised: aqnet's name (or a part of it) and why it was not found.
        dropped: the source's name (or a part of it) and why it was left.
        notes: what else the reader should know.
    """

    taken: dict[str, str] = field(default_factory=dict)
    initialised: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For the terminal: what was taken by group, everything else one by one."""
        groups = Counter(name.partition(".")[0] for name in self.taken)
        listed = ", ".join(f"{name} ({count})" for name, count in groups.items())
        return [
            f"taken: {len(self.taken)} tensors: {listed}",
            *(f"initialised: {name}: {why}" for name, why in self.initialised.items()),
            *(f"dropped: {name}: {why}" for name, why in self.dropped.items()),
            *(f"note: {text}" for text in self.notes),
        ]

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint's state.json."""
        return asdict(self)


def take_weights(model: ClimaX, config: Config, loaded: Loaded) -> Report:
    """Give `model`, made from `config`, the weights of a checkpoint of another config.

    Variables, targets and lead times are matched by name, never by index. The moving average is
    taken where there is one. What does not fit keeps its first value.

    Raises:
        AqnetError: width or number of heads differ, so that nothing would mean the same.
    """
    old, _ = configs.from_checkpoint(loaded.state["config"], str(loaded.path))
    for key in ("embed_dim", "num_heads"):
        there, here = getattr(old.model, key), getattr(config.model, key)
        if there != here:
            raise AqnetError(
                f"{loaded.path}: has model.{key} {there}, the config {here}: none of its weights "
                f"would mean the same; set model.{key}: {there}"
            )
    report = Report()
    _name_differences(old, config, loaded, report)
    weights = _fitted(loaded, old, config, model.patch_shape, report)
    labels, old_labels = _labels(config), _labels(old)
    together = _fitted_together(weights, old, model, config)
    if not together:
        _forecast_as(old, model, config, weights, report)
    unwanted = _unwanted(old, config) | together
    for name, value in model.state_dict().items():
        why = unwanted.get(name) or _take(
            value, weights.get(name), labels.get(name, {}), old_labels.get(name, {})
        )
        if why:
            report.initialised[name] = why
        else:
            report.taken[name] = str(loaded.path)
    for name in sorted(weights.keys() - report.taken.keys()):
        report.dropped[name] = report.initialised.get(name, "the model has no such tensor")
    return report


def starting_statistics(config: Config, data: Statistics, loaded: Loaded) -> Statistics:
    """The new data's statistics, or the checkpoint's, as `train.init_statistics` says.

    Variables that the checkpoint does not know keep the data's.

    Raises:
        AqnetError: the checkpoint's are asked for, and it has none.
    """
    if config.train.init_statistics == "data":
        return data
    known = loaded.state["statistics"]
    if not known:
        raise AqnetError(
            f"{loaded.path}: holds no statistics (imported weights of ClimaX have none); set "
            "train.init_statistics: data"
        )
    return Statistics.from_dict({**data.to_dict(), **known})


def resized_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Position embeddings [1, h * w, D] for another number of patches, bicubically."""
    image = table.transpose(1, 2).unflatten(2, old)
    image = F.interpolate(image, size=new, mode="bicubic", align_corners=False)
    return image.flatten(2).transpose(1, 2).contiguous()


def _fitted(
    loaded: Loaded, old: Config, new: Config, shape: tuple[int, int], report: Report
) -> dict[str, Tensor]:
    """The checkpoint's weights for `new`'s unit of lead time and its `shape` of patches."""
    weights = dict(loaded.ema if loaded.ema is not None else loaded.model)
    ratio = lead_time_unit(new.model) / lead_time_unit(old.model)
    if ratio != 1.0 and "lead_time_embed.weight" in weights:
        weights["lead_time_embed.weight"] = weights["lead_time_embed.weight"] * ratio
        report.notes.append(f"lead_time_embed.weight times {ratio:g}: other units, exact")
    if loaded.grid is not None:
        height, width = (-(-size // old.model.patch) for size in loaded.grid["mask"].shape)
        if (height, width) != shape:
            weights["pos_embed"] = resized_positions(weights["pos_embed"], (height, width), shape)
            report.notes.append(
                f"pos_embed resized from {height} x {width} to {shape[0]} x {shape[1]} patches"
            )
    return weights


def _fitted_together(
    weights: dict[str, Tensor], old: Config, model: ClimaX, new: Config
) -> dict[str, str]:
    """The terms of the first forecast, where the checkpoint has some that `model` has not: they are
    one fit, and those that are left would say too little alone."""
    days = [f"{day} days" for day in old.data.recent_days if day not in new.data.recent_days]
    lost = [name for name in TERMS if name in weights.keys() - model.state_dict().keys()]
    if not (lost or (days and "recent_rho" in weights)):
        return {}
    why = f"was fitted together with {', '.join(lost or days)}, which the model has not"
    return dict.fromkeys(("rho", *TERMS), why)


def _forecast_as(
    old: Config, model: ClimaX, new: Config, weights: dict[str, Tensor], report: Report
) -> None:
    """Let the terms of the first forecast that the checkpoint has not start at 0 for its lead times
    and targets: its own `rho` was fitted without them."""
    if "rho" not in weights:
        return
    labels, old_labels = _labels(new), _labels(old)["rho"]
    values = model.state_dict()
    for name in (name for name in TERMS if name in values):
        ahead = values[name].dim() - 2  # axes before those of lead times and targets
        both = {ahead + axis: each for axis, each in labels["rho"].items()}
        nothing = torch.zeros(*values[name].shape[:ahead], *weights["rho"].shape)
        there = {ahead + axis: each for axis, each in old_labels.items()}
        if _take(values[name], nothing, both, there) is None and name not in weights:
            report.notes.append(f"{name} starts at 0: the checkpoint forecasts without it")


def _take(value: Tensor, source: Tensor | None, labels: Labels, old_labels: Labels) -> str | None:
    """Copy what `source` has of `value`, in place; the reason where that is nothing."""
    if source is None:
        return "not in the checkpoint"
    found, expected = tuple(source.shape), tuple(value.shape)
    places = []
    for axis, names in labels.items():
        there = {name: at for at, name in enumerate(old_labels[axis])}
        pairs = [(at, there[name]) for at, name in enumerate(names) if name in there]
        if not pairs:
            return "nothing of it has the same name there"
        here, from_there = torch.tensor(pairs).unbind(1)
        source = source.index_select(axis, from_there)
        places.append((axis, here.to(value.device)))
    if any(source.shape[axis] != size for axis, size in enumerate(expected) if axis not in labels):
        return f"shape {list(found)} there, {list(expected)} here"
    value.copy_(_placed(value, source.to(value), places))
    return None


def _placed(value: Tensor, part: Tensor, places: list[tuple[int, Tensor]]) -> Tensor:
    """`value` with `part` at the indices `places` of some axes."""
    if not places:
        return part
    axis, at = places[0]
    return value.index_copy(axis, at, _placed(value.index_select(axis, at), part, places[1:]))


def _labels(config: Config) -> dict[str, Labels]:
    """What the entries of those parameters stand for whose size depends on the data section."""
    data, model = config.data, config.model
    leads = data.lead_times if model.lead_time_mode == "joint" else ("each",)
    outputs = [
        (cell, lead, target)
        for cell in range(model.patch**2)
        for lead in leads
        for target in data.targets
    ]
    quantiles = [(*output, level) for output in outputs for level in model.quantiles]
    # a cell of a patch of another size is another
    cells = [(model.patch, cell) for cell in range(model.patch**2)]
    moved = list(itertools.product(leads, data.targets, cells))
    later = [channel.name for channel in config.input_channels if channel.to_come]
    suns = ["now", *leads]
    calendar = [(time, part) for time in suns for part in ("sine", "cosine", "zenith")]
    calendar += [("year", "sine"), ("year", "cosine")] if model.calendar == "day_and_year" else []
    return {
        "token_embeds.proj_weights": {0: config.token_variables},
        "token_embeds.proj_biases": {0: config.token_variables},
        "var_embed": {1: config.token_variables},
        "weather.embed.weight": {1: [*itertools.product(later, cells), *later]},
        f"{last_layer(config)}.weight": {0: outputs},
        f"{last_layer(config)}.bias": {0: outputs},
        "quantile_head.out.weight": {0: quantiles},
        "quantile_head.out.bias": {0: quantiles},
        "rho": {0: data.lead_times, 1: data.targets},
        "recent_rho": {0: data.recent_days, 1: data.lead_times, 2: data.targets},
        "transport.rho": {0: data.lead_times, 1: data.targets},
        "transport.embed.weight": {1: moved},
        "calendar_embed.weight": {1: calendar},
    }


def last_layer(config: Config) -> str:
    """Name of the head's output layer."""
    return f"head.{2 * config.model.decoder_depth}"


def _unwanted(old: Config, new: Config) -> dict[str, str]:
    """Parameters of `new` that would not mean the same though they fit."""
    unwanted = {"stretch": "measured anew at the first validation"}
    for key in ("quantiles", "patch", "lead_time_mode"):
        if getattr(old.model, key) != getattr(new.model, key):
            why = f"model.{key} was {getattr(old.model, key)}"
            unwanted |= {f"quantile_head.out.{part}": why for part in ("weight", "bias")}
    layers = range(0, 2 * new.model.decoder_depth + 1, 2)
    whole = [f"head.{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    if old.model.decoder_depth != new.model.decoder_depth:
        why = f"model.decoder_depth was {old.model.decoder_depth}"
        return unwanted | dict.fromkeys(whole, why)
    for key in ("patch", "predict", "lead_time_mode"):
        if getattr(old.model, key) != getattr(new.model, key):
            why = f"model.{key} was {getattr(old.model, key)}"
            return unwanted | dict.fromkeys(whole[-2:], why)
    return unwanted


def _name_differences(old: Config, new: Config, loaded: Loaded, report: Report) -> None:
    """Variables, targets and lead times that only one of the two has."""
    imported = loaded.state.get("imported", {}).get("initialised", {})
    for variable in new.input_variables:
        if f"variable {variable}" in imported:  # its rows are there, but not from that source
            report.initialised[f"variable {variable}"] = imported[f"variable {variable}"]
    joint = "joint" in (old.model.lead_time_mode, new.model.lead_time_mode)
    for kind, before, now in (
        ("variable", old.input_variables, new.input_variables),
        ("target", old.data.targets, new.data.targets),
        ("lead time", *((c.data.lead_times if joint else ()) for c in (old, new))),
    ):
        for name in (each for each in now if each not in before):
            report.initialised[f"{kind} {name}"] = "not in the checkpoint"
        for name in (each for each in before if each not in now):
            report.dropped[f"{kind} {name}"] = "not in the config"
