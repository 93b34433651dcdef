"""Microsoft's pre-trained ClimaX (Nguyen et al. 2023, arXiv 2301.10343): what can be taken."""

from __future__ import annotations

import torch
from torch import Tensor

from aqnet.config import Config
from aqnet.errors import AqnetError
from aqnet.model.weights.import_aq_net2 import BY_VARIABLE, stacked
from aqnet.model.weights.transfer import Report, last_layer, resized_positions

NUM_HEADS = 16
_LEVELS = (50, 250, 500, 600, 700, 850, 925)
_AT_LEVELS = (
    "geopotential",
    "u_component_of_wind",
    "v_component_of_wind",
    "temperature",
    "relative_humidity",
    "specific_humidity",
)
VARIABLES = (
    "land_sea_mask",
    "orography",
    "lattitude",
    "2m_temperature",
    "10m_u_component_of_wind",
    "10m_v_component_of_wind",
    *(f"{name}_{level}" for name in _AT_LEVELS for level in _LEVELS),
)
# aqnet's variable: ClimaX's
SAME = {
    "u": "10m_u_component_of_wind",
    "v": "10m_v_component_of_wind",
    "temp": "2m_temperature",
    "rh": "relative_humidity_925",
    "lat2d": "lattitude",
    "elevation": "orography",
}


def convert(
    origin: str,
    tensors: dict[str, Tensor],
    config: Config,
    first: dict[str, Tensor],
    patch_shape: tuple[int, int],
    report: Report,
) -> dict[str, Tensor]:
    """Those tensors of the config's model of which ClimaX has something, by name.

    The others are left to the run that starts from it, which may know better first values.

    Args:
        tensors: by the file's keys, `net.` or not, `channel_` for `var_` or not.
        first: the model's first state; rows of other variables stay.
        patch_shape: (h, w) of the model's patches.
    Raises:
        AqnetError: another width or number of heads, so that nothing can be taken.
    """
    own = {k.removeprefix("net.").replace("channel_", "var_"): v for k, v in tensors.items()}
    own = stacked(origin, own)
    _check(origin, own, config)
    state = {name: value.clone() for name, value in first.items()}
    known = {name: at for at, name in enumerate(VARIABLES)}
    pairs = [
        (at, known[SAME[name]]) for at, name in enumerate(config.token_variables) if name in SAME
    ]
    own["token_embeds.proj_weights"] = resized_kernels(
        own["token_embeds.proj_weights"], config.model.patch
    )
    for name, axis in BY_VARIABLE.items():
        for here, there in pairs:
            state[name].select(axis, here).copy_(own[name].select(axis, there))
        report.taken[name] = f"rows of {', '.join(VARIABLES[there] for _, there in pairs)}"
    rows = own["pos_embed"].shape[1]
    height = _height(rows)
    state["pos_embed"] = resized_positions(own["pos_embed"], (height, rows // height), patch_shape)
    report.taken["pos_embed"] = f"resized from {height} x {rows // height} patches, bicubically"
    _account(own, state, config, report)
    return {name: state[name] for name in report.taken}


def resized_kernels(weights: Tensor, patch: int) -> Tensor:
    """Patch kernels [V, D, 1, p, p] for another patch size, by shares of area.

    Every weight is spread over the cells that it covers, so that a constant field gives the same
    token as before.
    """
    old = weights.shape[-1]
    edge = torch.arange(patch + 1, dtype=weights.dtype) * (old / patch)
    cell = torch.arange(old, dtype=weights.dtype)
    upper, lower = edge[1:, None].minimum(cell + 1), edge[:-1, None].maximum(cell)
    share = (upper - lower).clamp(min=0.0)
    return share @ weights @ share.T


def _check(origin: str, own: dict[str, Tensor], config: Config) -> None:
    table = own.get("var_embed", torch.empty(0))
    if table.ndim != 3 or table.shape[:2] != (1, len(VARIABLES)):
        raise AqnetError(
            f"{origin}: neither AQ_NET2 nor ClimaX: its variable embedding is not [1, 15, width], "
            f"and not [1, {len(VARIABLES)}, width] under the name net.var_embed or "
            "net.channel_embed"
        )
    count, width = table.shape[1:]
    model = config.model
    if (model.embed_dim, model.num_heads) != (width, NUM_HEADS):
        raise AqnetError(
            f"{origin}: a model with model.embed_dim {model.embed_dim} and model.num_heads "
            f"{model.num_heads} can take nothing of ClimaX, which has {width} and {NUM_HEADS}; "
            "use configs/china_climax_1024.yaml"
        )
    for name, before, after in (
        ("token_embeds.proj_weights", (count, width, 1), 2),
        ("token_embeds.proj_biases", (count, width), 0),
        ("pos_embed", (1,), 2),
    ):
        shape = tuple(own[name].shape) if name in own else ()
        if shape[: len(before)] != before or len(shape) != len(before) + after:
            raise AqnetError(f"{origin}: {name} has shape {shape}, expected {before} first")
    rows, columns = own["pos_embed"].shape[1:]
    if columns != width or rows != 2 * _height(rows) ** 2:
        raise AqnetError(
            f"{origin}: pos_embed has shape [1, {rows}, {columns}], expected [1, L, {width}] of a "
            "global grid twice as wide as high"
        )


def _height(rows: int) -> int:
    """Patches from pole to pole of a global grid, twice as wide as high."""
    return int((rows // 2) ** 0.5)


def _account(
    own: dict[str, Tensor], state: dict[str, Tensor], config: Config, report: Report
) -> None:
    """Take what fits under the same name; say of everything else why not."""
    outputs = {f"head.4.{part}" for part in ("weight", "bias")}
    outputs |= {f"{last_layer(config)}.{part}" for part in ("weight", "bias")}
    for name, value in state.items():
        if name in report.taken:
            continue
        if name in outputs:
            report.initialised[name] = "other targets than ClimaX's variables"
        elif name not in own:
            report.initialised[name] = "not in ClimaX"
        elif own[name].shape != value.shape:
            report.initialised[name] = f"shape {list(own[name].shape)} there"
        else:
            state[name] = own[name].to(value.dtype).contiguous()
            report.taken[name] = name
    for name in sorted(own.keys() - report.taken.keys()):
        reason = "outputs of other variables" if name in outputs else "the model has no such tensor"
        report.dropped[name] = report.initialised.get(name, reason)
    for name in config.input_variables:
        if name not in SAME:
            report.initialised[f"variable {name}"] = "not in ClimaX"
    used = {SAME[name] for name in config.input_variables if name in SAME}
    others = [name for name in VARIABLES if name not in used]
    report.dropped[f"variables {', '.join(others)}"] = "not in the config"
    report.notes.append(
        "the normalisation of ClimaX is not in its file: train with train.init_statistics: data"
    )
