"""Score a model against simple forecasts: evaluate.py --checkpoint RUN_DIR --output DIR."""

from __future__ import annotations

import argparse
import copy
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aqnet import checkpoint_files, distributed, errors
from aqnet import config as configs
from aqnet.batch import Batch, Statistics
from aqnet.checkpoint_files import Loaded
from aqnet.config import Config
from aqnet.data.dataset import ForecastDataset, loader, target_fields
from aqnet.data.sampler import EvaluationSampler
from aqnet.errors import AqnetError
from aqnet.evaluation import baselines, report, run
from aqnet.model.climax import ClimaX

TIMEOUT_SECONDS = 1800.0


def main() -> int:
    """Parse the command line and evaluate; returns the exit status."""
    options = command_line().parse_args()
    device = distributed.start(TIMEOUT_SECONDS)
    try:
        with distributed.explained():
            evaluate(options, device)
    finally:
        distributed.stop()
    return 0


def command_line() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="run directory, or a step_* directory")
    parser.add_argument("--config", help="instead of the checkpoint's own")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--output", required=True, help="folder for metrics.json and metrics.csv")
    parser.add_argument("--max-samples", type=int, help="draw so many input times, once for all")
    parser.add_argument("--seed", type=int, default=0, help="of that draw")
    parser.add_argument("--regions", help=".npz of named masks, bool [H, W], scored besides all")
    parser.add_argument("--micro-batch", type=int, default=8, help="input times per forward")
    parser.add_argument("--workers", type=int, default=0, help="loader processes per process")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="data.stores=/other/place"
    )
    return parser


def evaluate(options: argparse.Namespace, device: torch.device) -> None:
    """Score the checkpoint on a split and write the results; all ranks call."""
    loaded = distributed.on_main(partial(find, Path(options.checkpoint)))
    config = config_of(loaded, options.config, options.overrides)
    statistics = Statistics.from_dict(loaded.state["statistics"])
    dataset = ForecastDataset(config, options.split, statistics)
    times = dataset.times
    if options.max_samples is not None and options.max_samples < len(times):
        drawn = np.random.default_rng(options.seed).choice(
            len(times), options.max_samples, replace=False
        )
        dataset = copy.copy(dataset)
        dataset.times = times[np.sort(drawn)]
    say(f"{loaded.path}: {options.split}: {len(dataset)} of {len(times)} input times")
    model = make_model(loaded, config, dataset, statistics, device)
    say("fitting the simple forecasts on the training split")
    leads = np.array(config.data.lead_times)
    simple = distributed.on_main(
        partial(
            baselines.fit,
            partial(target_fields, config, "train"),
            dataset.grid.mask.numpy(),
            config.data.lead_times,
            baselines.months_of(dataset.times[:, None] + leads),
        )
    )
    scorer = run.Scorer(config, dataset.grid, statistics, simple, regions(options, dataset))
    sampler = EvaluationSampler(
        len(dataset), options.micro_batch, distributed.rank(), distributed.world_size()
    )
    with torch.inference_mode():
        run.score_all(
            scorer,
            partial(forecast, model, config, device),
            loader(dataset, sampler, options.workers),
            Progress(len(dataset)),
        )
    if distributed.is_main():
        store = dataset.index.stores[0]
        table = run.rows(scorer, {name: store.units[name] for name in config.data.targets})
        output = Path(options.output)
        known = facts(options, loaded, config, scorer)
        run.write(output, known, table)
        page = report.write(output, known, table)
        print(run.skill_table(table))
        print(f"written: {output / 'metrics.csv'}, metrics.json and {page}", flush=True)


def find(path: Path) -> Loaded:
    """The checkpoint of a `step_*` directory, or the best (else the latest) of a run directory."""
    for name in ("best", "latest"):
        pointer = path / "checkpoints" / name
        if pointer.exists():
            return checkpoint_files.read(path / "checkpoints" / pointer.read_text().strip())
    if not (path / "state.json").exists():
        raise AqnetError(
            f"{path}: holds no checkpoint; give a run directory (with checkpoints/best or "
            "checkpoints/latest) or one step_* directory"
        )
    return checkpoint_files.read(path)


def config_of(loaded: Loaded, path: str | None, overrides: list[str]) -> Config:
    """The checkpoint's config, or the one of `path`, which must describe the same model."""
    if path is not None:
        config = configs.load(path, overrides)
    else:
        origin = f"{loaded.path} (state.json)"
        config = configs.from_dict(configs.overridden(loaded.state["config"], overrides), origin)
    trained = configs.from_dict(loaded.state["config"], str(loaded.path))
    for key in ("variables", "targets", "lead_times", "history_hours"):
        before, now = getattr(trained.data, key), getattr(config.data, key)
        if before != now:
            raise AqnetError(
                f"{loaded.path}: was trained with data.{key} {list(before)}, not {list(now)}"
            )
    if trained.model != config.model:
        raise AqnetError(f"{loaded.path}: was trained with another `model` section; leave it as is")
    return config


def make_model(
    loaded: Loaded,
    config: Config,
    dataset: ForecastDataset,
    statistics: Statistics,
    device: torch.device,
) -> ClimaX:
    """The model with the checkpoint's weights (of the moving average where there is one)."""
    model = ClimaX(config, dataset.grid, statistics)
    weights = loaded.ema if loaded.ema is not None else loaded.model
    for name, value in model.state_dict().items():
        if name not in weights or weights[name].shape != value.shape:
            found = tuple(weights[name].shape) if name in weights else "missing"
            raise AqnetError(
                f"{loaded.path}: {name} is {found}, but the data's grid "
                f"{dataset.grid.shape[0]}x{dataset.grid.shape[1]} and the config need "
                f"{tuple(value.shape)}; evaluate on the stores it was trained on"
            )
    model.load_state_dict(weights)
    return model.to(device).eval()


def forecast(model: ClimaX, config: Config, device: torch.device, batch: Batch) -> Tensor:
    """Normalised forecast in the precision of the training."""
    batch = batch.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
        values: Tensor = model(batch.fields, batch.time, batch.lead_time)
    return values


def regions(options: argparse.Namespace, dataset: ForecastDataset) -> dict[str, Any]:
    """Named masks of `--regions`."""
    if options.regions is None:
        return {}
    try:
        with np.load(options.regions, allow_pickle=False) as file:
            masks = {name: file[name].astype(bool) for name in file.files}
    except (OSError, ValueError) as error:
        raise AqnetError(f"{options.regions}: cannot read the regions: {error}") from None
    for name, mask in masks.items():
        if mask.shape != dataset.grid.shape:
            raise AqnetError(
                f"{options.regions}: {name!r} has shape {mask.shape}, the grid {dataset.grid.shape}"
            )
    return masks


def facts(
    options: argparse.Namespace, loaded: Loaded, config: Config, scorer: run.Scorer
) -> dict[str, Any]:
    """What the figures are of."""
    return {
        "checkpoint": str(loaded.path),
        "global_step": loaded.state["global_step"],
        "split": options.split,
        "periods": list(getattr(config.data.split, options.split)),
        "max_samples": options.max_samples,
        "seed": options.seed if options.max_samples is not None else None,
        "samples": scorer.samples,
        "excluded_pairs": scorer.excluded,
        "climatology_filled_from_month": scorer.baselines.filled[0],
        "climatology_filled_from_all_cells": scorer.baselines.filled[1],
        "notes": [
            "all forecasts are scored over the same pairs; excluded_pairs have a truth, but no "
            "value at the input time, which the simple forecasts need",
            "event thresholds are 24-hour limits (O3: 8-hour) applied to hourly values",
            "ioa uses the training mean in place of the sample mean",
            "intervals: 95 %, bootstrap of blocks of 10 days",
        ],
    }


class Progress:
    """Plain lines, at most one every 5 s."""

    def __init__(self, total: int) -> None:
        self._total, self._said = total, time.monotonic()

    def __call__(self, done: int) -> None:
        """Say how many samples are done."""
        if time.monotonic() - self._said > 5.0 or done == self._total:
            self._said = time.monotonic()
            print(f"evaluated {done} of {self._total} input times", flush=True)


def say(line: str) -> None:
    """Print on the main rank."""
    if distributed.is_main():
        print(line, flush=True)


if __name__ == "__main__":
    errors.run(main)
