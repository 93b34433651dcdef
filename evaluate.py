"""Score a model against simple forecasts: evaluate.py --checkpoint RUN_DIR --output DIR."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aqnet import distributed, errors
from aqnet.batch import Batch, Statistics
from aqnet.checkpoint import files as checkpoint_files
from aqnet.checkpoint.files import Loaded
from aqnet.data.dataset import ForecastDataset, target_fields
from aqnet.data.loader import collate, loader
from aqnet.data.regridding import analysis
from aqnet.data.sampler import EvaluationSampler
from aqnet.data.sources import forecast_files, limits
from aqnet.distributed import say
from aqnet.errors import AqnetError
from aqnet.evaluation import baselines, checkpoint_forecast, run, stations
from aqnet.evaluation.forecasts import zarr_files as forecasts
from aqnet.evaluation.report import example_forecast, results
from aqnet.evaluation.studies import compare
from aqnet.model.climax import ClimaX

TIMEOUT_SECONDS = 1800.0


def main() -> int:
    """Parse the command line and evaluate; returns the exit status."""
    options = command_line().parse_args()
    if options.compare and options.checkpoint:
        raise AqnetError("give --checkpoint RUN_DIR or --compare RUN_A RUN_B, not both")
    if options.source and not options.forecast:
        raise AqnetError("--source needs --forecast TIME; a split is scored on the stores")
    names = [text.partition("=")[0] for text in options.forecast_file]
    if len(set(names)) < len(names):
        raise AqnetError(f"--forecast-file: {', '.join(names)}: each needs a NAME of its own")
    if options.compare:
        compare.run(*map(Path, (*options.compare, options.output)))
        return 0
    if options.checkpoint is None:
        raise AqnetError("give --checkpoint RUN_DIR, or --compare RUN_A RUN_B")
    device = distributed.start(TIMEOUT_SECONDS)
    try:
        with distributed.explained():
            evaluate(options, device)
    finally:
        distributed.stop()
    return 0


def counted(text: str) -> int:
    """A number of things, at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def command_line() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", help="run directory, or a step_* directory")
    parser.add_argument("--config", help="instead of the checkpoint's own")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--output", required=True, help="folder for metrics.json and metrics.csv")
    parser.add_argument(
        "--max-samples", type=counted, help="draw so many input times, once for all"
    )
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
        metavar="CSV[,CSV]",
        help="score at stations as well: id, lat, lon, time, pollutant, value, or OpenAQ's, EEA's",
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("RUN_A", "RUN_B"),
        help="only compare two runs that were scored (their --output, or run directories)",
    )
    parser.add_argument("--regions", help=".npz of named masks, bool [H, W], scored besides all")
    parser.add_argument("--no-pictures", action="store_true", help="tables alone, which is quicker")
    parser.add_argument("--micro-batch", type=counted, default=8, help="input times per forward")
    parser.add_argument(
        "--save-forecasts",
        type=counted,
        default=16,
        metavar="N",
        help="keep the forecasts of the first N times in OUTPUT/forecasts.zarr",
    )
    parser.add_argument("--workers", type=int, default=0, help="loader processes per process")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="data.stores=/other/place"
    )
    return parser


def evaluate(options: argparse.Namespace, device: torch.device) -> None:
    """Score the checkpoint on a split, or make one forecast, and write the results; all ranks
    call."""
    loaded, statistics, dataset = distributed.on_main(partial(opened, options))
    model = ClimaX(dataset.config, dataset.grid, statistics)
    forecast = checkpoint_forecast.forecaster(model, loaded, dataset.config, dataset.grid, device)
    if options.forecast is None:
        score(options, loaded, dataset, statistics, forecast)
    elif distributed.is_main():
        forecast_once(options, dataset, statistics, forecast)


def opened(options: argparse.Namespace) -> tuple[Loaded, Statistics, ForecastDataset]:
    """The checkpoint, its statistics, and the data that suit it."""
    loaded = checkpoint_files.read(options.checkpoint)
    config = checkpoint_forecast.config_of(loaded, options.config, options.overrides)
    statistics = Statistics.from_dict(loaded.state["statistics"])
    dataset = ForecastDataset(config, options.split, statistics)
    checkpoint_forecast.check_grid(loaded, dataset.grid, config.data.stores)
    return loaded, statistics, dataset


def forecast_once(
    options: argparse.Namespace,
    dataset: ForecastDataset,
    statistics: Statistics,
    forecast: Callable[[Batch], Tensor],
) -> None:
    """One forecast, whether or not its truth exists, as Zarr and maps; rank 0 alone."""
    hour, config, grid = forecasts.hour_of(options.forecast), dataset.config, dataset.grid
    store = dataset.index.stores[0]
    source = analysis.Analysis(options.source, config, store) if options.source else None
    dataset = dataset.at(np.array([hour]), source)
    batch = collate([dataset[0]])
    for name, share in forecasts.missing(batch, config, grid).items():
        print(f"{options.forecast}: {name} is missing in {share:.1%} of the domain", flush=True)
    path = Path(options.output) / f"forecast_{np.datetime64(hour, 'h')}.zarr"
    forecasts.create(path, dataset.times, config, grid, store.units)
    writer = forecasts.Writer(path, dataset.times, config, grid, statistics)
    values = forecast(batch)
    writer.write(batch, values)
    forecasts.commit(path)
    print(f"written: {path}", flush=True)
    if results.can_draw(not options.no_pictures):
        shown = example_forecast.of(batch, values, statistics, config, dataset.wind)
        results.draw_maps(path, config, grid, store.units, shown)


def score(
    options: argparse.Namespace,
    loaded: Loaded,
    dataset: ForecastDataset,
    statistics: Statistics,
    forecast: Callable[[Batch], Tensor],
) -> None:
    """Score the model, the simple forecasts and others over the same samples; all ranks call."""
    config, grid, output = dataset.config, dataset.grid, Path(options.output)
    everything, units = len(dataset), dataset.index.stores[0].units
    dataset = dataset.at(run.drawn(dataset.times, options.max_samples, options.seed))
    on_main = distributed.on_main
    regions = on_main(partial(run.read_regions, options.regions, grid.mask.numpy()))
    others = [elsewhere(text, dataset) for text in options.forecast_file]
    observed = on_main(
        partial(stations.read_if, options.stations, config, grid, dataset.times, limits.in_our_unit)
    )
    say(f"{loaded.path}: {options.split}: {len(dataset)} of {everything} input times")
    say("fitting the simple forecasts on the training split")
    simple = baselines.fit(
        partial(target_fields, config, "train"),
        grid.mask.numpy(),
        len(config.data.targets),
        config.data.lead_times,
        baselines.months_of(dataset.times[:, None] + np.array(config.data.lead_times)),
    )
    scorer = run.Scorer(
        config, grid, statistics, simple, dataset.observed, regions, others, observed
    )
    saved, times = output / "forecasts.zarr", dataset.times[: options.save_forecasts]
    on_main(partial(forecasts.create, saved, times, config, grid, units))
    writer = forecasts.Writer(saved, times, config, grid, statistics)
    rank, size = distributed.rank(), distributed.world_size()
    sampler = EvaluationSampler(len(dataset), options.micro_batch, rank, size)
    batches = loader(dataset, sampler, options.workers)
    run.score_all(scorer, forecast, batches, len(dataset), writer.write)
    if distributed.is_main():
        forecasts.commit(saved)

        def shown(time: int) -> example_forecast.Example:
            batch = collate([dataset.at(np.array([time]))[0]])
            return example_forecast.of(batch, forecast(batch), statistics, config, dataset.wind)

        about = {
            "split": options.split,
            "periods": list(getattr(config.data.split, options.split)),
            "max_samples": options.max_samples,
            "seed": options.seed if options.max_samples is not None else None,
            "forecast_files": ", ".join(options.forecast_file) or None,
            "stations": options.stations,
        }
        draw = results.can_draw(not options.no_pictures)
        results.write(output, loaded, scorer, units, about, shown if draw else None)


def elsewhere(option: str, dataset: ForecastDataset) -> forecasts.Elsewhere:
    """The forecast of NAME=PATH."""
    name, _, path = option.partition("=")
    if not re.fullmatch(r"[\w.-]+", name) or not path or name in run.FORECASTS:
        raise AqnetError(f"--forecast-file {option!r}: expected NAME=PATH, NAME not one of aqnet's")
    config, grid = dataset.config, dataset.grid
    files = distributed.on_main(partial(forecast_files.ForecastFiles, path, config))
    found = files.count(dataset.times, config.data.lead_times)
    other = forecasts.Elsewhere(name, files.read, (files.lat, files.lon), config, grid)
    if other.coverage == 0.0:
        raise AqnetError(f"{path}: its grid covers no cell of the domain")
    say(f"{name}: {', '.join(files.names)} of {found}, {other.coverage:.0%} of the cells")
    return other


if __name__ == "__main__":
    errors.run(main)
