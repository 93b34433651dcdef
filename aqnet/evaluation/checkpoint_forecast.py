"""A checkpoint as a forecast: its config, its weights, and whether the data suit it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from aqnet import config as configs
from aqnet.batch import Batch, Forecast
from aqnet.checkpoint.files import Loaded
from aqnet.config import Config
from aqnet.distributed import say
from aqnet.errors import AqnetError
from aqnet.grid import Grid


def config_of(loaded: Loaded, path: str | None, overrides: list[str]) -> Config:
    """The checkpoint's config, or the one of `path`, which must describe the same model. Keys and
    values of the checkpoint's that this version refuses are named on the terminal.

    Raises:
        AqnetError: other inputs, targets, lead times or model than it was trained with.
    """
    origin = f"{loaded.path} (state.json)"
    trained, lines = configs.from_checkpoint(loaded.state["config"], origin)
    for line in lines:
        print(line, flush=True)
    if path is not None:
        config = configs.load(path, overrides)
    else:
        config, _ = configs.from_checkpoint(loaded.state["config"], origin, overrides)
    given = ("variables", "history_hours", "weather", "weather_hours", "recent_days")
    for key in (*given, "targets", "lead_times"):
        before, now = getattr(trained.data, key), getattr(config.data, key)
        if before != now:
            raise AqnetError(
                f"{loaded.path}: was trained with data.{key} {list(before)}, not {list(now)}"
            )
    if trained.model != config.model:
        raise AqnetError(f"{loaded.path}: was trained with another `model` section; leave it as is")
    return config


def check_grid(loaded: Loaded, grid: Grid, stores: str) -> None:
    """Refuse stores of another grid than the checkpoint's; one that does not say its grid passes.

    Raises:
        AqnetError: names what differs.
    """
    before, now = loaded.state.get("grid", {}), grid.summary()
    for key in before:
        if before[key] != now.get(key):
            raise AqnetError(
                f"{loaded.path}: was trained on a grid with {key} {before[key]}, but the stores in "
                f"{stores} have {now.get(key)}; set data.stores to those it was trained on"
            )
    ours = grid.to_dict()
    for name, field in (loaded.grid or {}).items():
        if name not in ours or not torch.allclose(
            field.double(), ours[name].double(), atol=1e-3, equal_nan=True
        ):
            raise AqnetError(
                f"{loaded.path}: was trained on a grid of the same corners with another {name} "
                f"than the stores in {stores}; set data.stores to those it was trained on"
            )


def forecaster(
    model: nn.Module, loaded: Loaded, config: Config, grid: Grid, device: torch.device
) -> Callable[[Batch], Forecast]:
    """What makes forecasts with the checkpoint's weights (those of the moving average where there
    is one), in the precision of the training.

    Raises:
        AqnetError: the weights have other names or shapes than the model's; when called, a forecast
            is no number somewhere in the domain.
    """
    weights = loaded.ema if loaded.ema is not None else loaded.model
    for name, value in model.state_dict().items():
        if name not in weights or weights[name].shape != value.shape:
            found = tuple(weights[name].shape) if name in weights else "missing"
            raise AqnetError(
                f"{loaded.path}: {name} is {found}, but the data and the config need "
                f"{tuple(value.shape)}; evaluate on the stores it was trained on"
            )
    model.load_state_dict(weights)
    model.to(device).eval()
    if config.model.quantiles and not weights["stretch"].any():
        say(f"{loaded.path}: its quantiles are as trained, as no validation calibrated them yet")
    bf16, domain = config.train.precision == "bf16", grid.mask.to(device)

    def forecast(batch: Batch) -> Forecast:
        batch = batch.to(device)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            found = Forecast.of(model(batch.fields, batch.time, batch.lead_time))
        broken = torch.zeros_like(batch.time, dtype=torch.bool)
        for values in (found.mean, found.quantiles):
            if values is not None:
                broken |= ~values[..., domain].flatten(1).isfinite().all(1)
        broken = batch.time[broken]
        if len(broken):
            raise AqnetError(
                f"{loaded.path}: its forecast from {np.datetime64(int(broken[0]), 'h')} is no "
                "number somewhere in the domain; take another step_* checkpoint, or "
                "train.precision=fp32"
            )
        return found

    return forecast
