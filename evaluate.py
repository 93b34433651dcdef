"""Score a model against simple forecasts: evaluate.py --checkpoint RUN_DIR --output DIR."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
from collections.abc import Callable
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
from aqnet.data import analysis, forecast_files
from aqnet.data.dataset import ForecastDataset, target_fields
from aqnet.data.loader import collate, loader
from aqnet.data.sampler import EvaluationSampler
from aqnet.errors import AqnetError
from aqnet.evaluation import (
    baselines,
    compare,
    daily,
    forecasts,
    report,
    run,
    stations,
    table,
    trained,
)
from aqnet.model.climax import ClimaX

TIMEOUT_SECONDS = 1800.0


def main() -> int:
    """Parse the command line and evaluate; returns the exit status."""
    options = command_line().parse_args()
    if options.compare:
        first, second = map(Path, options.compare)
        return compare_runs(first, second, Path(options.output))
    if options.checkpoint is None:
        raise AqnetError("give --checkpoint RUN_DIR, or --compare RUN_A RUN_B")
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
    parser.add_argument("--checkpoint", help="run directory, or a step_* directory")
    parser.add_argument("--config", help="instead of the checkpoint's own")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--output", required=True, help="folder for metrics.json and metrics.csv")
    parser.add_argument("--max-samples", type=int, help="draw so many input times, once for all")
    parser.add_argument("--seed", type=int, default=0, help="of that draw")
    parser.add_argument("--forecast", metavar="TIME", help="only forecast from this time, UTC")
    parser.add_argument(
        "--source", metavar="GLOB", help="with --forecast: source files instead of the stores"
    )
    parser.add_argument(
        "--forecast-file",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="score a forecast made elsewhere on the same samples (forecasts.zarr, CAMS NetCDF)",
    )
    parser.add_argument(
        "--stations",
        metavar="CSV",
        help="score at stations as well: id, lat, lon, time, pollutant, value",
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("RUN_A", "RUN_B"),
        help="only compare two runs that were scored (their --output, or run directories)",
    )
    parser.add_argument("--regions", help=".npz of named masks, bool [H, W], scored besides all")
    parser.add_argument("--no-pictures", action="store_true", help="tables alone, which is quicker")
    parser.add_argument("--micro-batch", type=int, default=8, help="input times per forward")
    parser.add_argument(
        "--save-forecasts",
        type=int,
        default=16,
        metavar="N",
        help="keep the forecasts of the first N times in OUTPUT/forecasts.zarr",
    )
    parser.add_argument("--workers", type=int, default=0, help="loader processes per process")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="data.stores=/other/place"
    )
    return parser


def compare_runs(first: Path, second: Path, output: Path) -> int:
    """Paired differences of two scored runs, in `output`/compare.csv."""
    rows = compare.compare(first, second)
    output.mkdir(parents=True, exist_ok=True)
    table.write_csv(output / "compare.csv", rows)
    print(f"A: {first}\nB: {second}\n{compare.text(rows)}\nwritten: {output / 'compare.csv'}")
    return 0


def evaluate(options: argparse.Namespace, device: torch.device) -> None:
    """Score the checkpoint on a split, or make one forecast, and write the results; all ranks
    call."""
    loaded = distributed.on_main(partial(checkpoint_files.read, options.checkpoint))
    config = trained.config_of(loaded, options.config, options.overrides)
    statistics = Statistics.from_dict(loaded.state["statistics"])
    dataset = ForecastDataset(config, options.split, statistics)
    trained.check_grid(loaded, dataset.grid, config.data.stores)
    model = ClimaX(config, dataset.grid, statistics)
    forecast = trained.forecaster(model, loaded, config, device)
    if options.forecast is None:
        score(options, loaded, dataset, statistics, forecast)
    elif distributed.is_main():
        forecast_once(options, dataset, statistics, forecast)


def forecast_once(
    options: argparse.Namespace,
    dataset: ForecastDataset,
    statistics: Statistics,
    forecast: Callable[[Batch], Tensor],
) -> None:
    """One forecast, whether or not its truth exists, as Zarr and maps."""
    hour = forecasts.hour_of(options.forecast)
    store = dataset.index.stores[0]
    source = analysis.Analysis(options.source, dataset.config, store) if options.source else None
    dataset = dataset.at(np.array([hour]), source)
    batch = collate([dataset[0]])
    for name, share in forecasts.missing(batch, dataset.config, dataset.grid).items():
        print(f"{options.forecast}: {name} is missing in {share:.1%} of the domain", flush=True)
    path = Path(options.output) / f"forecast_{np.datetime64(hour, 'h')}.zarr"
    saver(path, dataset, statistics).write(batch, forecast(batch))
    forecasts.commit(path)
    print(f"written: {path}", flush=True)
    if wants_pictures(options):
        draw_once(path, dataset, example(dataset, hour, statistics, forecast))


def score(
    options: argparse.Namespace,
    loaded: Loaded,
    dataset: ForecastDataset,
    statistics: Statistics,
    forecast: Callable[[Batch], Tensor],
) -> None:
    """Score the model, the simple forecasts and others over the same samples."""
    config = dataset.config
    everything = len(dataset)
    dataset = dataset.at(run.drawn(dataset.times, options.max_samples, options.seed))
    regions = run.read_regions(options.regions, dataset.grid.shape)
    say(f"{loaded.path}: {options.split}: {len(dataset)} of {everything} input times")
    say("fitting the simple forecasts on the training split")
    simple = fit(config, dataset)
    others = [elsewhere(text, dataset) for text in options.forecast_file]
    observed = distributed.on_main(partial(observations, options.stations, dataset))
    scorer = run.Scorer(
        config, dataset.grid, statistics, simple, dataset.observed, regions, others, observed
    )
    rank, size = distributed.rank(), distributed.world_size()
    sampler = EvaluationSampler(len(dataset), options.micro_batch, rank, size)
    batches = loader(dataset, sampler, options.workers)
    units = dataset.index.stores[0].units
    saved = Path(options.output) / "forecasts.zarr"
    writer = saver(saved, dataset.at(dataset.times[: options.save_forecasts]), statistics)
    run.score_all(scorer, forecast, batches, len(dataset), writer.write)
    if distributed.is_main():
        forecasts.commit(saved)
        rows = table.rows(scorer, {name: units[name] for name in config.data.targets})
        output = Path(options.output)
        known = facts(options, loaded, config, scorer)
        table.write(output, known, rows)
        daily.write(output / "days.npz", daily.of(scorer))
        if scorer.stations is not None:
            at_stations = table.rows(scorer.stations, units)
            table.write_csv(output / "stations.csv", at_stations)
            print(f"written: {output / 'stations.csv'}", flush=True)
        drawn = []
        if wants_pictures(options):
            shown = example(dataset, scorer.records.typical_time(), statistics, forecast)
            drawn = draw(output, loaded, dataset, scorer, rows, shown)
        page = report.write(output, known, rows, configs.to_dict(config), drawn)
        print(table.skill_table(rows))
        print(f"written: {output / 'metrics.csv'}, metrics.json and {page}", flush=True)


def wants_pictures(options: argparse.Namespace) -> bool:
    """Whether to draw; where matplotlib is missing, that is said."""
    missing = importlib.util.find_spec("matplotlib") is None
    if missing and not options.no_pictures:
        say("no pictures, because matplotlib is missing: pip install 'aqnet[maps]'")
    return not (missing or options.no_pictures)


def example(
    dataset: ForecastDataset,
    time: int,
    statistics: Statistics,
    forecast: Callable[[Batch], Tensor],
) -> Any:
    """The `maps.Example` of one of the input times."""
    from aqnet.evaluation import maps

    names = dataset.index.stores[0].names

    def wind_at(hour: int) -> Any:
        fields = dataset.index.read(hour)
        return None if fields is None else fields[[names.index("u"), names.index("v")]]

    item = collate([dataset[int(np.searchsorted(dataset.times, time))]])
    values = forecast(item).double().cpu().numpy()
    return maps.example(item, values, statistics, dataset.config, wind_at)


def draw_once(path: Path, dataset: ForecastDataset, shown: Any) -> None:
    """Maps of one forecast beside its Zarr store `path`, a file per target."""
    from aqnet.evaluation import maps, pictures

    chart, units = maps.Chart(dataset.grid), dataset.index.stores[0].units
    for target, name in enumerate(dataset.config.data.targets):
        picture = path.with_name(f"{path.stem}_{name}.png")
        pictures.save(maps.draw(chart, shown, target, dataset.config, units[name]), picture)
        print(f"written: {picture}", flush=True)


def draw(
    output: Path,
    loaded: Loaded,
    dataset: ForecastDataset,
    scorer: run.Scorer,
    rows: list[dict[str, Any]],
    shown: Any,
) -> list[Any]:
    """All pictures of a scored model, in `output`/pictures."""
    from aqnet.evaluation import pictures

    path = loaded.path.resolve().parents[1] / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    history = [json.loads(line) for line in lines]
    folder, units = output / "pictures", dataset.index.stores[0].units
    about = dataset.config, dataset.grid, scorer.records, rows
    return pictures.draw_all(folder, *about, units, shown, history)


def elsewhere(option: str, dataset: ForecastDataset) -> forecasts.Elsewhere:
    """The forecast of NAME=PATH."""
    name, _, path = option.partition("=")
    if not re.fullmatch(r"[\w.-]+", name) or not path or name in run.FORECASTS:
        raise AqnetError(f"--forecast-file {option!r}: expected NAME=PATH, NAME not one of aqnet's")
    files = forecast_files.ForecastFiles(path, dataset.config)
    found = files.count(dataset.times, dataset.config.data.lead_times)
    say(f"{name}: {', '.join(files.names)} of {found} in {path}")
    return forecasts.Elsewhere(
        name, files.read, (files.lat, files.lon), dataset.config, dataset.grid
    )


def observations(path: str | None, dataset: ForecastDataset) -> stations.Observations | None:
    """The file of stations, if any, for the target times of `dataset`; what is left out is said."""
    if path is None:
        return None
    wanted = np.unique(dataset.times[:, None] + np.array(dataset.config.data.lead_times))
    found = stations.read(path, dataset.config, dataset.grid, wanted)
    print(f"{path}: {len(found.names)} stations in the domain", flush=True)
    for reason, number in found.left_out.items():
        print(f"{path}: {number} lines left out: {reason}", flush=True)
    return found


def saver(path: Path, dataset: ForecastDataset, statistics: Statistics) -> forecasts.Writer:
    """What writes the forecasts of the input times of `dataset`; all ranks call."""
    about = path, dataset.times, dataset.config, dataset.grid
    distributed.on_main(partial(forecasts.create, *about, dataset.index.stores[0].units))
    return forecasts.Writer(*about, statistics)


def fit(config: Config, dataset: ForecastDataset) -> baselines.Baselines:
    """The simple forecasts of the training split, for the times of `dataset`; all ranks call."""
    leads = np.array(config.data.lead_times)
    return baselines.fit(
        partial(target_fields, config, "train"),
        dataset.grid.mask.numpy(),
        len(config.data.targets),
        config.data.lead_times,
        baselines.months_of(dataset.times[:, None] + leads),
    )


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
        "forecast_files": ", ".join(options.forecast_file) or None,
        "stations": options.stations,
        "station_lines_left_out": scorer.stations and scorer.stations.observations.left_out,
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


def say(line: str) -> None:
    """Print on the main rank."""
    if distributed.is_main():
        print(line, flush=True)


if __name__ == "__main__":
    errors.run(main)
