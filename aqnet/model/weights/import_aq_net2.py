"""AQ_NET2 checkpoints: their keys, their variants, the normalisation of that time."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from aqnet.batch import Statistics
from aqnet.config import Config
from aqnet.errors import AqnetError
from aqnet.model.weights.compatibility import HEIGHT
from aqnet.model.weights.transfer import Report, last_layer

# the order of the embeddings, and mean and standard deviation as hard-coded in that code's
# data loader; latitude and longitude entered in degrees
NORMALISATION = {
    "u": (0.0, 10.0),
    "v": (0.0, 10.0),
    "temp": (273.15, 30.0),
    "rh": (50.0, 30.0),
    "psfc": (101325.0, 1000.0),
    "pm10": (50.0, 25.0),
    "so2": (5.0, 5.0),
    "no2": (20.0, 15.0),
    "co": (200.0, 100.0),
    "o3": (40.0, 20.0),
    "lat2d": (0.0, 1.0),
    "lon2d": (0.0, 1.0),
    "pm25": (25.0, 15.0),
    "elevation": (1039.13, 1931.40),
    "population": (13381.20, 67986.97),
}
VARIABLES = tuple(NORMALISATION)
BY_VARIABLE = {"token_embeds.proj_weights": 0, "token_embeds.proj_biases": 0, "var_embed": 1}
TARGETS = ("pm25", "pm10", "so2", "no2", "co", "o3")
UNSUPPORTED = (
    "pollutant_projections",
    "pollutant_cross_attn",
    "cross_attn_fusion",
    "hierarchical_physics",
    "adaptive_wind_memory",
)
_ADDITIONS = ("scan_embed.", "calendar_embed.")  # start at zero: without effect until trained
_BUFFERS = {
    "china_mask": "the domain mask comes with the stores",
    "target_indices": "used to choose the rows of the head",
}
_PREFIXES = ((r"(?:model\.)?(?:climax\.)?(.+)", r"\1"),)
_RENAMED = (
    (r"patch_embed\.(proj_weights|proj_biases)", r"token_embeds.\1"),
    (r"blocks\.(\d+)\.mlp\.0\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"blocks\.(\d+)\.mlp\.[23]\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"head\.(weight|bias)", r"head.0.\1"),
    (r"head_fc1\.(\w+)", r"head.0.\1"),
    (r"head_fc2\.(\w+)", r"head.2.\1"),
    (r"head_fc3\.(\w+)", r"head.4.\1"),
    (r"blocks\.0\.attn\.elevation_barrier_strength", "blocks.0.attn.barrier_strength"),
    (r"blocks\.0\.attn\.elevation_alpha", "blocks.0.attn.alpha"),
    (r"blocks\.0\.attn\.rel_pos_bias(_2d)?\.bias_table", "blocks.0.attn.bias_table"),
)


def statistics() -> Statistics:
    """The hard-coded normalisation."""
    means, deviations = zip(*NORMALISATION.values(), strict=True)
    return Statistics(VARIABLES, means, deviations)


def convert(
    origin: str,
    tensors: dict[str, Tensor],
    settings: dict[str, Any],
    config: Config,
    first: dict[str, Tensor],
    report: Report,
) -> dict[str, Tensor]:
    """The state of the config's model from an AQ_NET2 state dict.

    Args:
        tensors: by the file's keys, `model.` and `climax.` or not.
        settings: the file's hyper_parameters["config"], {} where there are none.
        first: the model's first state.
    Raises:
        AqnetError: a variant that cannot be reproduced exactly, by name; or `config` is another
            model.
    """
    own = _renamed(origin, tensors, _PREFIXES)
    _refuse(origin, own)
    _check_settings(origin, settings, config, report)
    targets = _target_channels(origin, own, settings, config)
    for key, why in _BUFFERS.items():
        if own.pop(key, None) is not None:
            report.dropped[key] = why
    own = _renamed(origin, stacked(origin, own), _RENAMED)
    _check_variant(origin, own, config)
    _fold_height(own, report)
    _check_shapes(origin, own, first, config)
    at = torch.tensor([VARIABLES.index(name) for name in config.data.variables])
    for key, axis in BY_VARIABLE.items():
        own[key] = own[key].index_select(axis, at)
    _choose_head_rows(own, targets, config, report)
    report.taken.update(dict.fromkeys(own, origin))
    for name in first.keys() - own.keys():
        report.initialised[name] = "not in that model; zero, so without effect"
    return {name: own.get(name, value).to(value.dtype) for name, value in first.items()}


def _refuse(origin: str, own: dict[str, Tensor]) -> None:
    present = [name for name in UNSUPPORTED if any(key.startswith(f"{name}.") for key in own)]
    if present:
        raise AqnetError(
            f"{origin}: holds the optional modules {', '.join(present)}, which are not supported; "
            "import a checkpoint that was trained without them"
        )
    norms = [key for key in own if re.match(r"(patch_embed|token_embeds)\.(\d+\.)?norm\.", key)]
    if norms:
        raise AqnetError(
            f"{origin}: has a LayerNorm inside the patch embedding ({norms[0]}: published "
            "TopoFlow), which the folded aggregation cannot reproduce; not supported"
        )


def _check_settings(
    origin: str,
    settings: dict[str, Any],
    config: Config,
    report: Report,
) -> None:
    """Refuse a file whose variables or heads differ, which the weights' shapes do not show."""
    data = config.data
    if set(data.variables) != set(VARIABLES) or data.history_hours != (0,):
        raise AqnetError(
            f"{origin}: was trained on the variables {list(VARIABLES)}, all at the input time; "
            f"the config has data.variables {list(data.variables)} and data.history_hours "
            f"{list(data.history_hours)}. Import with these (in any order), then take the weights "
            "into another model with train.init_from"
        )
    heads = _section(settings, "model").get("num_heads")
    if heads is None:
        report.notes.append(
            f"the file does not say the number of heads: model.num_heads {config.model.num_heads} "
            "is taken on trust"
        )
    elif heads != config.model.num_heads:
        raise AqnetError(
            f"{origin}: was trained with {heads} heads, the config has model.num_heads "
            f"{config.model.num_heads}; set it to {heads}"
        )


def _section(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """A section of the file's config, {} where it has none."""
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def _target_channels(
    origin: str, own: dict[str, Tensor], settings: dict[str, Any], config: Config
) -> list[int]:
    """Channels of that model's head that hold `data.targets`."""
    data = _section(settings, "data")
    order, names = data.get("variables", VARIABLES), data.get("target_variables", TARGETS)
    if not isinstance(order, list | tuple) or list(order) != list(VARIABLES):
        # the head followed the config's order there, the embeddings one of their own
        raise AqnetError(
            f"{origin}: its config has data.variables {order}; only {list(VARIABLES)}, in this "
            "order, is known to mean the same in all parts of that model"
        )
    if not isinstance(names, list | tuple) or not all(name in VARIABLES for name in names):
        raise AqnetError(
            f"{origin}: its config has data.target_variables {names}; expected some of "
            f"{list(VARIABLES)}"
        )
    indices = own.get("target_indices")
    if indices is not None and indices.flatten().tolist() != list(map(VARIABLES.index, names)):
        raise AqnetError(
            f"{origin}: target_indices {indices.flatten().tolist()} are not the places of "
            f"{list(names)} among {list(VARIABLES)}"
        )
    missing = [name for name in config.data.targets if name not in names]
    if missing:
        raise AqnetError(
            f"{origin}: forecasts {list(names)}, not {', '.join(missing)}; leave that out of "
            "data.targets"
        )
    return [VARIABLES.index(name) for name in config.data.targets]


def stacked(origin: str, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """One projection per variable (the row-major variant's, ClimaX's) as one tensor for all."""
    single = re.compile(r"token_embeds\.(\d+)\.proj\.(weight|bias)")
    result: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {"weight": {}, "bias": {}}
    for key, value in own.items():
        if match := single.fullmatch(key):
            parts[match[2]][int(match[1])] = value
        else:
            result[key] = value
    for part, name in (("weight", "proj_weights"), ("bias", "proj_biases")):
        rows = [parts[part][number] for number in sorted(parts[part])]
        if len({row.shape for row in rows}) > 1 or len(rows) != 1 + max(parts[part], default=-1):
            raise AqnetError(
                f"{origin}: token_embeds.*.proj.{part} must be there for all variables, alike"
            )
        if rows:
            result[f"token_embeds.{name}"] = torch.stack(rows)
    return result


def _renamed(
    origin: str, own: dict[str, Tensor], rules: tuple[tuple[str, str], ...]
) -> dict[str, Tensor]:
    """Keys by the first of `rules` that fits the whole of them."""
    result: dict[str, Tensor] = {}
    for key, value in own.items():
        name = key
        for pattern, replacement in rules:
            if re.fullmatch(pattern, key):
                name = re.sub(pattern, replacement, key)
                break
        if name in result:
            raise AqnetError(f"{origin}: holds {name} under two names, one of them {key}")
        result[name] = value
    return result


def _check_variant(origin: str, own: dict[str, Tensor], config: Config) -> None:
    variants = {
        "aq_net2_barrier": "barrier_strength",
        "aq_net2_relative": "bias_table",
        "aq_net2_uphill": "alpha",
    }
    present = [name for name, key in variants.items() if f"blocks.0.attn.{key}" in own]
    height = own.get("blocks.0.attn.H_scale", torch.ones(()))
    if height.numel() != 1 or ("blocks.0.attn.H_scale" in own and "aq_net2_uphill" not in present):
        raise AqnetError(f"{origin}: blocks.0.attn.H_scale must be one number beside an alpha")
    needed = present[0] if present else "aq_net2"
    if config.model.compatibility != needed:
        raise AqnetError(
            f"{origin}: needs model.compatibility: {needed} (and with it model.terrain.enabled: "
            f"false), found {config.model.compatibility}"
        )


def _fold_height(own: dict[str, Tensor], report: Report) -> None:
    """Turn `elevation_alpha` per `H_scale` into one strength per 1000."""
    key, height = "blocks.0.attn.alpha", own.pop("blocks.0.attn.H_scale", None)
    if height is not None:
        own[key] = own[key] * (HEIGHT / height)
        report.dropped["blocks.0.attn.H_scale"] = "folded into alpha, exactly"
    if key in own and own[key].numel() == 1:  # [1] in some
        own[key] = own[key].reshape(())


def _check_shapes(
    origin: str, own: dict[str, Tensor], first: dict[str, Tensor], config: Config
) -> None:
    """Every tensor of the model is there, in its shape, and no other.

    Raises:
        AqnetError: names the first that is not so.
    """
    hidden = len([key for key in own if re.fullmatch(r"head\.\d+\.weight", key)]) - 1
    if hidden != config.model.decoder_depth:
        raise AqnetError(
            f"{origin}: its head has {hidden} hidden layers, the config model.decoder_depth "
            f"{config.model.decoder_depth}; set it to {hidden}"
        )
    unknown = sorted(own.keys() - first.keys())
    if unknown:
        raise AqnetError(
            f"{origin}: {len(unknown)} tensors have no place in the config's model, the first: "
            f"{', '.join(unknown[:3])}; unknown variants are not imported (is model.depth right?)"
        )
    channels = config.model.patch**2 * len(VARIABLES)
    for name, value in first.items():
        shape = tuple(value.shape)
        if name.startswith(last_layer(config)):
            shape = (channels, *shape[1:])  # all variables' there, the targets' here
        if name in own and tuple(own[name].shape) != shape:
            found = tuple(own[name].shape)
            raise AqnetError(f"{origin}: {name} has shape {found}, the config needs {shape}")
        if name not in own and not name.startswith(_ADDITIONS):
            raise AqnetError(f"{origin}: lacks {name}, which the config's model has")


def _choose_head_rows(
    own: dict[str, Tensor], targets: list[int], config: Config, report: Report
) -> None:
    """Of the head's outputs (row, column, variable) keep those of the targets."""
    last = last_layer(config)
    for part in ("weight", "bias"):
        rows = own[f"{last}.{part}"].unflatten(0, (config.model.patch**2, len(VARIABLES)))
        own[f"{last}.{part}"] = rows[:, targets].flatten(0, 1)
    others = [name for at, name in enumerate(VARIABLES) if at not in targets]
    report.dropped[f"{last}, rows of {', '.join(others)}"] = "no targets of this config"
