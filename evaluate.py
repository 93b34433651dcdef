"""Score a model against simple forecasts: evaluate.py --checkpoint RUN_DIR --output DIR."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from aqnet import distributed, errors
from aqnet.batch import Batch, Forecast, Statistics
from aqnet.checkpoint import files as checkpoint_files
from aqnet.checkpoint.files import Loaded
from aqnet.config import Config, channel, periods
from aqnet.data.dataset import ForecastDataset, target_fields
from aqnet.data.items import ItemReader
from aqnet.data.loader import collate, loader
from aqnet.data.on_grid import analysis
from aqnet.data.on_grid.weather_forecast import WeatherForecast
from aqnet.data.sampler import EvaluationSampler
from aqnet.data.sources import forecast_files, limits
from aqnet.data.stores.layout import Layout
from aqnet.data.stores.record import Fields, TimeIndex, open_stores
from aqnet.data.stores.store import Store
from aqnet.data.weather import STORED, Stored
from aqnet.distributed import say
from aqnet.errors import AqnetError
from aqnet.evaluation import baselines, checkpoint_forecast, run
from aqnet.evaluation.baselines import distributions
from aqnet.evaluation.forecasts import zarr_files as forecasts
from aqnet.evaluation.options import check, command_line
from aqnet.evaluation.report import example_forecast, page, places, results
from aqnet.evaluation.stations import stations
from aqnet.evaluation.studies import compare
from aqnet.grid import Grid
from aqnet.model.climax import ClimaX
from aqnet.run_directory import RunDirectory

TIMEOUT_SECONDS = 1800.0


def main() -> int:
    """Parse the command line and evaluate; returns the exit status."""
    with distributed.by_first_process():
        options = command_line().parse_args()
        check(options, STORED)
    if options.compare:
        if distributed.is_first_process():
            compare.run(*map(Path, (*options.compare, options.output)))
        return 0
    device = distributed.start(TIMEOUT_SECONDS)
    try:
        with distributed.explained():
            evaluate(options, device)
    finally:
        distributed.stop()
    return 0


def evaluate(
    options: argparse.Namespace, device: torch.device, stop: Callable[[], bool] = lambda: False
) -> bool:
    """Score the checkpoint on a split, or only forecast, and write the results; all ranks call.

    Args:
        stop: whether a stop was asked for; the ranks agree in it. Only scores are asked to stop.
    Returns:
        Whether this came to its end; False where stopped, and nothing was written.
    """
    if options.forecast is None:
        trained = distributed.on_main(partial(Trained.read, options))
        stores = distributed.on_main(partial(stores_of, trained))
        given = partial(weather_of, options, trained, Layout.of(stores[0]))
        dataset = ForecastDataset(
            trained.config, options.split, trained.statistics, stores, distributed.on_main(given)
        )
        forecast = trained.forecaster(dataset.grid, device)
        return score(options, trained, stores, dataset, forecast, stop)
    if distributed.is_main():
        forecast_only(options, Trained.read(options), device)
    return True


class Trained(NamedTuple):
    """What a checkpoint holds of its model."""

    loaded: Loaded
    config: Config
    statistics: Statistics

    @classmethod
    def read(cls, options: argparse.Namespace) -> Trained:
        """The checkpoint that the options name, with the config that they may change."""
        loaded = checkpoint_files.read(options.checkpoint)
        config = checkpoint_forecast.config_of(loaded, options.config, options.overrides)
        return cls(loaded, config, Statistics.from_dict(loaded.state["statistics"]))

    def forecaster(self, grid: Grid, device: torch.device) -> Callable[[Batch], Forecast]:
        """The trained model: a batch to its forecasts."""
        model = ClimaX(self.config, grid, self.statistics)
        return checkpoint_forecast.forecaster(model, self.loaded, self.config, grid, device)


def stores_of(trained: Trained, years: Sequence[int] | None = None) -> list[Store]:
    """The stores of the checkpoint's config, which must have its grid."""
    stores = open_stores(trained.config, years)
    checkpoint_forecast.check_grid(trained.loaded, stores[0].grid, trained.config.data.stores)
    return stores


def weather_of(
    options: argparse.Namespace, trained: Trained, layout: Layout
) -> Stored | WeatherForecast:
    """The weather to come that a model is given.

    Raises:
        AqnetError: one was asked for by --weather, but the model takes none, or see
            `WeatherForecast`.
    """
    config = trained.config
    if options.weather and not config.data.weather:
        raise AqnetError(
            f"--weather: {trained.loaded.path} was trained without data.weather and takes no "
            "weather to come; leave the option out"
        )
    named = [which for which in STORED if [which] == options.weather]
    if options.weather and not named:
        return WeatherForecast(options.weather, config, layout)
    return named[0] if named else "none" if options.forecast else "analysed"


def weather_name(options: argparse.Namespace, config: Config) -> str | None:
    """The weather to come that was given, as results name it; None for a model that takes none."""
    if not config.data.weather:
        return None
    return " ".join(options.weather) or ("none" if options.forecast else "analysed")


def reader_at(
    hours: NDArray[np.int64], options: argparse.Namespace, trained: Trained
) -> ItemReader:
    """What reads the inputs of forecasts: source files, which need no store, or the stores of the
    hours that they read.

    Raises:
        AqnetError: of none of the hours there are fields; the first one lacking is named.
    """
    data, source = trained.config.data, options.source
    if source is not None:
        layout = Layout.of_checkpoint(trained.loaded) or Layout.of(stores_of(trained)[0])
        weather = weather_of(options, trained, layout)
        own = weather in ("analysed", "persisted")
        fields: Fields = analysis.Analysis(source, trained.config, layout, own)
    else:
        years = years_of(hours, data.history_hours)
        helpful = years_of(hours, (*data.lead_times, *(-24 * days for days in data.recent_days)))
        known = {year for year in helpful if (Path(data.stores) / f"{year}.zarr").exists()}
        stores = stores_of(trained, sorted(years | known))
        layout, fields = Layout.of(stores[0]), TimeIndex(stores)
        weather = weather_of(options, trained, layout)
    reader = ItemReader(trained.config, trained.statistics, layout, fields, weather)
    if len(reader.known(hours)) == 0:
        reader.check(hours[:1])
    return reader


def years_of(hours: NDArray[np.int64], away: Sequence[int]) -> set[int]:
    """Calendar years of all times so many hours away from `hours`."""
    return {periods.year_of(hour) for hour in (hours[:, None] + np.array(away)).ravel().tolist()}


def made_at(
    hours: Sequence[int],
    reader: ItemReader,
    forecast: Callable[[Batch], Forecast],
    micro_batch: int,
) -> Iterator[tuple[Batch, Forecast]]:
    """Batches of the items of input times, with their forecasts."""
    for first in range(0, len(hours), micro_batch):
        batch = collate([reader.item(hour) for hour in hours[first : first + micro_batch]])
        yield batch, forecast(batch)


def forecast_only(options: argparse.Namespace, trained: Trained, device: torch.device) -> None:
    """The forecast of one hour, or those of a range, whether or not their truth exists, as Zarr;
    of one hour maps as well. Rank 0 alone."""
    config, statistics = trained.config, trained.statistics
    first, last = forecasts.hours_of(options.forecast)
    hours = np.arange(first, last + 1)
    reader, weather = reader_at(hours, options, trained), weather_name(options, config)
    times = reader.known(hours)
    grid, units = reader.grid, reader.layout.units
    if weather is not None:
        print(f"{options.forecast}: {page.given(weather)}", flush=True)
    if isinstance(reader.weather, WeatherForecast):
        print(f"{options.forecast}: {reader.weather.report(times)}", flush=True)
    if len(times) < len(hours):
        lacking = f"{len(hours) - len(times)} of {len(hours)} hours have no fields"
        print(f"{options.forecast}: {lacking} and are left out", flush=True)
    ends = "_".join(str(np.datetime64(hour, "h")) for hour in dict.fromkeys((first, last)))
    path = Path(options.output) / f"forecast_{ends}.zarr"
    forecast, progress = trained.forecaster(grid, device), run.Progress(len(times), "forecast from")
    made = made_at(times.tolist(), reader, forecast, options.micro_batch)
    own = path.with_name(f"{path.name}.{os.getpid()}")  # two processes may make the same forecast
    lost: dict[str, float] = {}
    writer, done, below = None, 0, 0
    try:
        for batch, values in made:
            if writer is None:  # only now, as inputs that cannot be read leave no folder behind
                forecasts.create(own, times, config, grid, units, weather)
                writer = forecasts.Writer(own, times, config, grid, statistics)
            below += writer.write(batch, values)
            for name, share in forecasts.missing(batch, config, grid).items():
                lost[name] = max(share, lost.get(name, 0.0))
            done += len(batch.time)
            if len(times) > 1:
                progress(done)
        results.remove_maps(path)
        forecasts.commit(own, path)
    finally:
        forecasts.discard(own)
    for name, share in lost.items():
        if weather != "none" or not channel(name).to_come:
            most = "" if len(times) == 1 else "up to "
            text = f"{name} is missing in {most}{share:.1%} of the domain"
            print(f"{options.forecast}: {text}", flush=True)
    if below:
        print(f"{options.forecast}: {below} values were below 0 and are 0", flush=True)
    print(f"written: {path}", flush=True)
    if first == last and results.can_draw(not options.no_pictures):
        shown = example_forecast.of(batch, values, statistics, config, reader.wind)
        results.draw_maps(path, config, grid, units, shown, weather)


def score(
    options: argparse.Namespace,
    trained: Trained,
    stores: Sequence[Store],
    dataset: ForecastDataset,
    forecast: Callable[[Batch], Forecast],
    stop: Callable[[], bool],
) -> bool:
    """Score the model, the simple forecasts and others over the same samples; all ranks call.
    Returns whether that came to its end, and False where stopped."""
    output, everything = Path(options.output), dataset.times
    dataset = dataset.at(run.drawn(everything, options.max_samples, options.seed))
    named = distributed.on_main(partial(places.named, trained.config, dataset.grid))
    directory = RunDirectory(output)  # results of two evaluations would mix
    directory.claim()
    directory.end_on_signals()
    try:
        number = f"{len(dataset)} of {len(everything)}"
        say(f"{trained.loaded.path}: {options.split}: {number} input times")
        if isinstance(dataset.reader.weather, WeatherForecast):
            say(distributed.on_main(partial(dataset.reader.weather.report, dataset.times)))
        scorer = scorer_of(options, trained, stores, dataset)
        with results.beside(output) if distributed.is_main() else nullcontext(output) as place:
            return write_scores(
                options, trained, dataset, scorer, forecast, stop, place, everything, named
            )
    finally:
        directory.release()


def write_scores(
    options: argparse.Namespace,
    trained: Trained,
    dataset: ForecastDataset,
    scorer: run.Scorer,
    forecast: Callable[[Batch], Forecast],
    stop: Callable[[], bool],
    place: Path,
    everything: NDArray[np.int64],
    named: list[places.Place],
) -> bool:
    """Score the samples, write the results to rank 0's folder `place`, and publish them; pictures
    may show any of the split's input times, `everything`, and places `named` in the config.
    Returns False, and publishes nothing, where stopped while it scored."""
    loaded, config, statistics = trained
    place, reader = distributed.broadcast_object(place), dataset.reader
    layout, saved = reader.layout, place / "forecasts.zarr"
    keep: Callable[[Batch, Forecast], object] | None = None
    if options.save_forecasts:
        times = dataset.times[: options.save_forecasts]
        what = config, layout.grid, layout.units, weather_name(options, config)
        create = partial(forecasts.create, saved, times, *what)
        distributed.on_main(create)
        keep = forecasts.Writer(saved, times, config, layout.grid, statistics).write
    rank, size = distributed.rank(), distributed.world_size()
    sampler = EvaluationSampler(len(dataset), options.micro_batch, rank, size)
    batches = loader(dataset, sampler, options.workers)
    if not run.score_all(scorer, forecast, batches, len(dataset), keep, stop):
        return False
    if not distributed.is_main():
        return True
    if keep is not None:
        forecasts.commit(saved)

    def make(hours: Sequence[int]) -> Iterator[tuple[Batch, Forecast]]:
        return made_at(hours, reader, forecast, options.micro_batch)

    def example(hour: int) -> example_forecast.Example:
        (made,) = make([hour])
        return example_forecast.of(*made, statistics, config, reader.wind)

    def series(hours: NDArray[np.int64], lead: int, chosen: list[places.Place]) -> places.Series:
        return places.series(hours, lead, everything, chosen, config, statistics, make)

    drawing = None
    if results.can_draw(not options.no_pictures):
        drawing = results.Drawing(example, everything, named, series)
    about = samples_scored(options, config)
    results.write(place, loaded, scorer, layout.units, about, drawing)
    results.publish(place, Path(options.output))
    return True


def scorer_of(
    options: argparse.Namespace,
    trained: Trained,
    stores: Sequence[Store],
    dataset: ForecastDataset,
) -> run.Scorer:
    """What scores forecasts of the dataset's samples; fits the simple forecasts, so all ranks
    call."""
    _, config, statistics = trained
    grid, on_main = dataset.grid, distributed.on_main
    regions = on_main(partial(run.read_regions, options.regions, grid.mask.numpy()))
    others = [external_forecast(text, dataset) for text in options.forecast_file]
    observed = on_main(
        partial(stations.read_if, options.stations, config, grid, dataset.times, limits.in_our_unit)
    )
    say("fitting the simple forecasts on the training split")

    def known(time: int) -> baselines.Observed:
        reader = dataset.reader
        recent = reader.recent(time, baselines.RECENT_DAYS)
        return baselines.Observed(reader.observed(time), reader.wind(time), recent)

    training = ForecastDataset(config, "train", statistics, stores).times
    hours = partial(target_fields, config, stores, "train")
    simple = baselines.fit(
        hours,
        run.drawn(training, baselines.TIMES, seed=0),
        known,
        dataset.reader.observed,
        grid,
        config.data.lead_times,
        dataset.times[:, None] + np.array(config.data.lead_times),
    )
    odds = None
    if levels := config.model.quantiles:
        times = run.drawn(training, distributions.ERROR_TIMES, seed=0)
        std = statistics.of(config.data.targets)[1].numpy()
        odds = distributions.fit(hours, times, dataset.reader.observed, simple, std, levels)
    besides = run.Besides(regions, others, observed, odds)
    return run.Scorer(config, grid, statistics, simple, known, besides)


def samples_scored(options: argparse.Namespace, config: Config) -> dict[str, Any]:
    """Which samples were scored against what, for metrics.json and the report."""
    return {
        "split": options.split,
        "periods": list(getattr(config.data.split, options.split)),
        "max_samples": options.max_samples,
        "seed": options.seed if options.max_samples is not None else None,
        "forecast_files": ", ".join(options.forecast_file) or None,
        "stations": options.stations,
        "weather": weather_name(options, config),
    }


def external_forecast(option: str, dataset: ForecastDataset) -> forecasts.ExternalForecast:
    """The forecast of NAME=PATH."""
    name, _, path = option.partition("=")
    if not re.fullmatch(r"[\w.-]+", name) or not path or name in ("aqnet", *baselines.SIMPLE):
        raise AqnetError(f"--forecast-file {option!r}: expected NAME=PATH, NAME not one of aqnet's")
    config, grid = dataset.config, dataset.grid
    files = distributed.on_main(partial(forecast_files.ForecastFiles, path, config))
    found = files.count(dataset.times, config.data.lead_times)
    other = forecasts.ExternalForecast(name, files.read, (files.lat, files.lon), config, grid)
    if other.coverage == 0.0:
        raise AqnetError(f"{path}: its grid covers no cell of the domain")
    say(f"{name}: {', '.join(files.names)} of {found}, {other.coverage:.0%} of the cells")
    return other


if __name__ == "__main__":
    errors.run(main)
