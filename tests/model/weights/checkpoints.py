"""Generated checkpoints with the keys of AQNET2_CHECKPOINT.md, at reduced width."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aqnet import config as configs

# fmt: off
VARIABLES = ["u", "v", "temp", "rh", "psfc", "pm10", "so2", "no2", "co", "o3", "lat2d", "lon2d",
             "pm25", "elevation", "population"]
# fmt: on
TARGETS = ["pm25", "pm10", "so2", "no2", "co", "o3"]
SHAPE = (8, 16)
DIM, HEADS, DEPTH = 16, 8, 6


def aq_net2_state(variant: str = "plain") -> dict[str, Tensor]:
    """State dict without `model.`; `variant` as in the tests below."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int, std: float = 0.3) -> Tensor:
        return torch.randn(*shape, generator=generator) * std

    state = {
        "target_indices": torch.tensor([12, 5, 6, 7, 8, 9]),
        "climax.var_embed": random(1, 15, DIM),
        "climax.var_query": random(1, 1, DIM),
        "climax.pos_embed": random(1, SHAPE[0] * SHAPE[1] // 4, DIM),
        "climax.token_embeds.proj_weights": random(15, DIM, 1, 2, 2),
        "climax.token_embeds.proj_biases": random(15, DIM),
        "climax.var_agg.in_proj_weight": random(3 * DIM, DIM),
        "climax.var_agg.in_proj_bias": random(3 * DIM),
        "climax.var_agg.out_proj.weight": random(DIM, DIM),
        "climax.var_agg.out_proj.bias": random(DIM),
        "climax.lead_time_embed.weight": random(DIM, 1, std=0.02),
        "climax.lead_time_embed.bias": random(DIM),
        "climax.norm.weight": 1 + random(DIM),
        "climax.norm.bias": random(DIM),
    }
    # these enter in degrees, and would drown the others
    state["climax.token_embeds.proj_weights"][10:12] *= 0.01
    for number in range(DEPTH):
        block = f"climax.blocks.{number}."
        for norm in ("norm1", "norm2"):
            state |= {f"{block}{norm}.weight": 1 + random(DIM), f"{block}{norm}.bias": random(DIM)}
        for name, rows, columns in (
            ("attn.qkv", 3 * DIM, DIM),
            ("attn.proj", DIM, DIM),
            ("mlp.fc1", 4 * DIM, DIM),
            ("mlp.fc2", DIM, 4 * DIM),
        ):
            if number == 0 and variant in ("barrier", "alpha"):
                last = "2" if variant == "barrier" else "3"  # a dropout stood between
                name = name.replace("fc1", "0").replace("fc2", last)
            std = 0.6 if name == "attn.qkv" else 0.3  # for weights that differ between tokens
            state |= {
                f"{block}{name}.weight": random(rows, columns, std=std),
                f"{block}{name}.bias": random(rows),
            }
    head = {"single": ["head"], "named": ["head_fc1", "head_fc2", "head_fc3"]}.get(
        variant, ["head.0", "head.2", "head.4"]
    )
    for name in head:
        rows = 60 if name == head[-1] else DIM
        state |= {f"climax.{name}.weight": random(rows, DIM), f"climax.{name}.bias": random(rows)}
    attention = "climax.blocks.0.attn."
    if variant == "barrier":
        state[f"{attention}elevation_barrier_strength"] = torch.tensor(3.3)
    if variant == "uphill":  # a small height, or nothing would be seen of it
        state |= {
            f"{attention}elevation_alpha": torch.tensor(1.4),
            f"{attention}H_scale": torch.tensor(0.5),
        }
    if variant == "alpha":
        state[f"{attention}alpha"] = torch.tensor([700.0])
    if variant == "relative":
        state |= {f"{attention}rel_pos_bias_2d.bias_table": random(1024, HEADS, std=1.0)}
        state |= {f"{attention}alpha": torch.tensor([900.0])}
    if variant == "published":
        state |= {f"{attention}rel_pos_bias.bias_table": random(1024, HEADS, std=1.0)}
        state |= {f"{attention}alpha": torch.tensor([900.0])}
        state = {key.removeprefix("climax."): value for key, value in state.items()}
        state = {key.replace("token_embeds", "patch_embed"): value for key, value in state.items()}
    if variant == "row_major":
        weights = state.pop("climax.token_embeds.proj_weights")
        biases = state.pop("climax.token_embeds.proj_biases")
        for v in range(15):
            state |= {f"climax.token_embeds.{v}.proj.weight": weights[v]}
            state |= {f"climax.token_embeds.{v}.proj.bias": biases[v]}
    return state


def lightning(state: dict[str, Tensor]) -> dict[str, Any]:
    """The top level of a Lightning checkpoint around `state`."""
    config = {
        "data": {"variables": VARIABLES, "target_variables": TARGETS},
        "model": {"num_heads": HEADS, "img_size": list(SHAPE)},
    }
    groups = [{"params": [0], "lr": 1e-4}]
    return {
        "epoch": 1,
        "global_step": 311,
        "pytorch-lightning_version": "2.0.0",
        "state_dict": {
            "china_mask": torch.ones(SHAPE),
            **{f"model.{key}": value for key, value in state.items()},
        },
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": groups}],
        "lr_schedulers": [{"T_max": 7}],
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': 'val_loss'}": {"best_model_score": torch.ones(())}
        },
        "hyper_parameters": {"config": config},
    }


def config(**model: Any) -> configs.Config:
    """The model of `aq_net2_state`; `variables`, `targets` go to the data section."""
    data = {
        key: model.pop(key) for key in ("variables", "targets", "shape", "resample") if key in model
    }
    tree = {
        "run_dir": "run",
        "data": {
            "stores": "stores",
            "variables": VARIABLES,
            "targets": TARGETS,
            "split": {"train": ["2013"], "validation": ["2014"], "test": ["2015"]},
            **data,
        },
        "model": {
            "embed_dim": DIM,
            "depth": DEPTH,
            "num_heads": HEADS,
            "tokens": "all",
            "missing": "fill",
            "lead_time_mode": "conditioned",
            "scan": "raster",
            "transport": "off",
            "scan_embedding": False,
            "terrain": {"enabled": False},
            "calendar": "off",
            "predict": "value",
            "compatibility": "aq_net2",
            **model,
        },
        "train": {"max_steps": 1},
    }
    return configs.from_dict(tree, "test")
