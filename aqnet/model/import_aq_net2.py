"""AQ_NET2 checkpoints: their keys, their variants, the normalisation of that time."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from aqnet.batch import Statistics
from aqnet.config import Config
from aqnet.errors import AqnetError
from aqnet.model.compatibility import HEIGHT
from aqnet.model.transfer import Report

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
TARGETS = ("pm25", "pm10", "so2", "no2", "co", "o3")
UNSUPPORTED = (
    "pollutant_projections",
    "pollutant_cross_attn",
    "cross_attn_fusion",
    "hierarchical_physics",
    "adaptive_wind_memory",
)
_BUFFERS = {
    "china_mask": "the domain mask comes with the stores",
    "target_indices": "used to choose the rows of the head",
}
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
    report: Report,
) -> dict[str, Tensor]:
    """aqnet's names and layouts for an AQ_NET2 state dict.

    Args:
        tensors: by the file's keys, `model.` and `climax.` or not.
        settings: the file's hyper_parameters["config"], {} where there are none.
        report: what is dropped is added.
    Raises:
        AqnetError: a variant that cannot be reproduced exactly, by name; or `config` is another
            model.
    """
    own = {re.sub(r"^(model\.)?(climax\.)?", "", key): value for key, value in tensors.items()}
    _refuse(origin, own)
    _check_settings(origin, settings, config, report)
    targets = _target_channels(origin, own, settings, config)
    for key, why in _BUFFERS.items():
        if own.pop(key, None) is not None:
            report.dropped[key] = why
    own = _renamed(stacked(own))
    if (scale := own.pop("blocks.0.attn.H_scale", None)) is not None:
        own["blocks.0.attn.alpha"] *= HEIGHT / scale
        report.dropped["blocks.0.attn.H_scale"] = "folded into alpha, exactly"
    if (alpha := own.get("blocks.0.attn.alpha")) is not None:
        own["blocks.0.attn.alpha"] = alpha.reshape(())
    _check_variant(origin, own, config)
    at = torch.tensor([VARIABLES.index(name) for name in config.data.variables])
    for key, axis in (
        ("token_embeds.proj_weights", 0),
        ("token_embeds.proj_biases", 0),
        ("var_embed", 1),
    ):
        if key in own and own[key].shape[axis] == len(VARIABLES):
            own[key] = own[key].index_select(axis, at)
    _choose_head_rows(origin, own, targets, config, report)
    return own


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
    """What the weights' shapes do not show."""
    data = config.data
    if set(data.variables) != set(VARIABLES) or data.history_hours != (0,):
        raise AqnetError(
            f"{origin}: was trained on the variables {list(VARIABLES)}, all at the input time; "
            f"the config has data.variables {list(data.variables)} and data.history_hours "
            f"{list(data.history_hours)}. Import with these (in any order), then take the weights "
            "into another model with train.init_from"
        )
    heads = settings.get("model", {}).get("num_heads")
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


def _target_channels(
    origin: str, own: dict[str, Tensor], settings: dict[str, Any], config: Config
) -> list[int]:
    """Channels of that model's head that hold `data.targets`."""
    names = tuple(settings.get("data", {}).get("target_variables", TARGETS))
    order = tuple(settings.get("data", {}).get("variables", VARIABLES))
    indices = own.get("target_indices")
    channels = [order.index(name) for name in names] if indices is None else indices.tolist()
    found = dict(zip(names, channels, strict=False))
    if len(names) != len(channels) or any(
        channel >= len(order) or order[channel] != name for name, channel in found.items()
    ):
        raise AqnetError(
            f"{origin}: target_indices {channels} are not the places of {list(names)} among "
            f"{list(order)}"
        )
    missing = [name for name in config.data.targets if name not in found]
    if missing:
        raise AqnetError(
            f"{origin}: forecasts {list(names)}, not {', '.join(missing)}; leave that out of "
            "data.targets"
        )
    return [found[name] for name in config.data.targets]


def stacked(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """One projection per variable (the row-major variant's, ClimaX's) as one tensor for all."""
    single = re.compile(r"token_embeds\.(\d+)\.proj\.(weight|bias)")
    result, parts = {}, {}
    for key, value in own.items():
        if match := single.fullmatch(key):
            parts[int(match[1]), match[2]] = value
        else:
            result[key] = value
    count = 1 + max((number for number, _ in parts), default=-1)
    for part, name in (("weight", "proj_weights"), ("bias", "proj_biases")):
        rows = [parts[n, part] for n in range(count) if (n, part) in parts]
        if rows:
            result[f"token_embeds.{name}"] = torch.stack(rows)
    return result


def _renamed(own: dict[str, Tensor]) -> dict[str, Tensor]:
    result = {}
    for key, value in own.items():
        for pattern, name in _RENAMED:
            if re.fullmatch(pattern, key):
                key = re.sub(pattern, name, key)
                break
        result[key] = value
    return result


def _check_variant(origin: str, own: dict[str, Tensor], config: Config) -> None:
    variants = {
        "aq_net2_barrier": "barrier_strength",
        "aq_net2_relative": "bias_table",
        "aq_net2_uphill": "alpha",
    }
    present = [name for name, key in variants.items() if f"blocks.0.attn.{key}" in own]
    needed = present[0] if present else "aq_net2"
    if config.model.compatibility != needed:
        raise AqnetError(
            f"{origin}: needs model.compatibility: {needed} (and with it model.terrain.enabled: "
            f"false), found {config.model.compatibility}"
        )


def _choose_head_rows(
    origin: str, own: dict[str, Tensor], targets: list[int], config: Config, report: Report
) -> None:
    """Of the head's outputs (row, column, variable) keep those of the targets."""
    last = f"head.{2 * config.model.decoder_depth}"
    hidden = [key for key in own if re.fullmatch(r"head\.\d+\.weight", key)]
    if f"{last}.weight" not in own or len(hidden) != config.model.decoder_depth + 1:
        raise AqnetError(
            f"{origin}: its head has {len(hidden) - 1} hidden layers, the config "
            f"model.decoder_depth {config.model.decoder_depth}; set it to {len(hidden) - 1}"
        )
    cells = config.model.patch**2
    for part in ("weight", "bias"):
        value = own[f"{last}.{part}"]
        if value.shape[0] != cells * len(VARIABLES):
            raise AqnetError(
                f"{origin}: {last}.{part} has {value.shape[0]} rows, expected {cells} cells of a "
                f"patch x {len(VARIABLES)} variables"
            )
        rows = value.unflatten(0, (cells, len(VARIABLES)))[:, targets]
        own[f"{last}.{part}"] = rows.flatten(0, 1).clone()
    others = [name for at, name in enumerate(VARIABLES) if at not in targets]
    report.dropped[f"{last}, rows of {', '.join(others)}"] = "no targets of this config"
