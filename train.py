"""Train a model: python train.py --config configs/demo.yaml [key=value ...], or under torchrun."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import evaluate as evaluation
from aqnet import config as configs
from aqnet import distributed, errors
from aqnet.batch import Statistics
from aqnet.checkpoint import Checkpoints, Loaded
from aqnet.checkpoint import files as checkpoint_files
from aqnet.config import Config
from aqnet.data import first_forecast
from aqnet.data import statistics as data_statistics
from aqnet.data.dataset import ForecastDataset
from aqnet.data.loader import collate, loader
from aqnet.data.sampler import EMPTY_ITEM, EvaluationSampler, TrainSampler
from aqnet.data.stores.record import open_stores
from aqnet.distributed import say
from aqnet.errors import AqnetError
from aqnet.evaluation.report import results
from aqnet.model.climax import ClimaX
from aqnet.model.weights import transfer
from aqnet.plan import network
from aqnet.plan.flops import item_flops
from aqnet.run_directory import RunDirectory, keep_config
from aqnet.training import loop
from aqnet.training.calibration import check_times
from aqnet.training.maps import Examples
from aqnet.training.reporter import Reporter
from aqnet.training.validation import ValidationData


def main() -> int:
    """Parse the command line and train; returns the exit status."""
    with distributed.by_first_process():
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--config", required=True, help="YAML file, such as configs/demo.yaml")
        parser.add_argument(
            "--profile",
            type=errors.at_least(1),
            default=0,
            metavar="N",
            help="write a torch profiler trace of N steps",
        )
        parser.add_argument("overrides", nargs="*", metavar="key=value", help="train.max_steps=100")
        arguments = parser.parse_args()
        config = configs.load(arguments.config, arguments.overrides)
        configs.accumulation(config, int(os.environ.get("WORLD_SIZE", "1")))
    device = distributed.start(config.train.timeout_seconds)
    try:
        with distributed.explained():
            train(config, device, arguments.profile)
    finally:
        distributed.stop()
    return 0


def train(config: Config, device: torch.device, profile_steps: int) -> None:
    """Train in `config.run_dir`, from its last checkpoint if it holds one, then evaluate."""
    directory = RunDirectory(config.run_dir)
    directory.claim()
    try:
        status = train_on(config, directory, device, profile_steps)
        if status == "finished" and config.train.evaluate_after_training:
            directory.end_on_signals()
            evaluate_once(config, directory, device)
    finally:
        directory.release()


def train_on(
    config: Config, directory: RunDirectory, device: torch.device, profile_steps: int
) -> str:
    """Train until the end or a request to stop; returns the run's status, which is written too."""
    checkpoints = Checkpoints(directory.path / "checkpoints", config.train.keep_best)
    loaded = checkpoints.load_latest()
    distributed.on_main(partial(keep_config, directory.path, config, loaded))
    begun = loaded is None  # a continuation that is refused leaves the status as it was
    try:
        if loaded is not None and nothing_left(config, loop.Position.of(loaded.state)):
            begun = True
            loop.say_doubts(config, loop.Position.of(loaded.state))
            step = loaded.state["global_step"]
            say(f"{directory.path}: finished at step {step}; nothing left to train")
            status = "finished"
        else:
            if begun:
                directory.status("running")
            run = assemble(config, loaded, checkpoints, directory, device)
            begun = True
            directory.status("running")
            say(beginning(run, loaded, device))
            if distributed.num_nodes() > 1:
                say(network.measured(run.state.model, device))
            with profiler(run, profile_steps):
                status = loop.fit(run)
            say(f"{directory.path}: {status} at step {run.state.position.global_step}")
    except BaseException:
        if begun:
            directory.failed()
        raise
    directory.status(status)
    return status


def beginning(run: loop.TrainingRun, loaded: Loaded | None, device: torch.device) -> str:
    """One line: from where a run goes on, and what it is."""
    step = run.state.position.global_step
    origin = "a new run" if loaded is None else f"goes on from step {step}"
    parameters = sum(parameter.numel() for parameter in run.state.model.parameters())
    processes = distributed.world_size()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return (
        f"{run.directory.path}: {origin}; {parameters:,} parameters, {processes} "
        f"process{'es' if processes > 1 else ''} on {name}"
    )


def nothing_left(config: Config, position: loop.Position) -> bool:
    """Whether a run has reached its end and was validated there."""
    validated = position.validated_step == position.global_step
    return validated and loop.is_finished(config, position)


def evaluate_once(config: Config, directory: RunDirectory, device: torch.device) -> None:
    """Score the best checkpoint on the test split in RUN_DIR/evaluation, if that is missing, or
    until a stop is asked for."""
    run_dir = directory.path
    output = run_dir / "evaluation"
    if distributed.on_main(partial(is_scored, run_dir, output)):
        return

    def stop() -> bool:
        return distributed.any_rank(directory.stop_requested())

    left_out = f"{run_dir}: asked to stop before its evaluation was made; the same command makes it"
    if stop():  # also by a signal that came when training looked no more
        say(left_out)
        return
    gc.collect()  # the optimizer's state and gradients: DDP holds them in reference cycles
    if device.type == "cuda":
        torch.cuda.empty_cache()
    # the run's config and not the checkpoint's, which may be older than a move of the stores
    options = ["--checkpoint", str(run_dir), "--config", str(run_dir / "config.yaml")]
    options += ["--output", str(output), "--micro-batch", str(validation_batch(config))]
    if not evaluation.evaluate(evaluation.command_line().parse_args(options), device, stop):
        say(left_out)


def is_scored(run_dir: Path, output: Path) -> bool:
    """Whether `output` holds all results of the run's best checkpoint, and not of one before it."""
    metrics = output / "metrics.json"
    if not metrics.exists() or not (output / results.REPORT).exists():  # which comes last
        return False
    step = json.loads(metrics.read_bytes())["global_step"]
    return checkpoint_files.find(run_dir).name == f"step_{step:08d}"


@dataclass(frozen=True)
class RunData:
    """The samples of a run and what its checkpoints say of them."""

    training: ForecastDataset
    validation: ForecastDataset
    statistics: Statistics
    checksums: dict[str, str]


def assemble(
    config: Config,
    loaded: Loaded | None,
    checkpoints: Checkpoints,
    directory: RunDirectory,
    device: torch.device,
) -> loop.TrainingRun:
    """Join data, model and log to a run of the training loop."""
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS refuses without
        torch.use_deterministic_algorithms(True)
    origin = first_weights(config) if loaded is None else None
    data = open_data(config, loaded, origin)
    model = make_model(config, data, loaded, origin, device)
    state = loop.start(config, model, loaded, device)
    flops = item_flops(model, config) if distributed.is_main() else 0.0  # which alone reports
    layout = data.training.reader.layout
    words = {
        "config": configs.to_dict(config),
        "statistics": data.statistics.to_dict(),
        "data_checksums": data.checksums,
        **layout.words(),
    }
    return loop.TrainingRun(
        state,
        training_data(config, data.training),
        validation_data(config, data),
        Reporter(state, flops, len(data.training)),
        checkpoints,
        directory,
        loop.Constants(words, layout.tensors()),
    )


def open_data(config: Config, loaded: Loaded | None, origin: Loaded | None) -> RunData:
    """The stores' samples, normalised as the checkpoint or the one it starts from wants it."""
    stores = open_stores(config)
    checksums = {store.path.name: store.checksum for store in stores}
    if loaded is not None:
        check_data(loaded, checksums)
        statistics = Statistics.from_dict(loaded.state["statistics"])
    else:
        statistics = data_statistics.read(config, stores)
        if origin is not None:
            statistics = transfer.starting_statistics(config, statistics, origin)
    training, validation = (
        ForecastDataset(config, split, statistics, stores) for split in ("train", "validation")
    )
    for dataset in (training, validation):
        say(dataset.report())
    training = training.thinned(config.train.max_items)
    validation = validation.thinned(config.validation.max_items)
    check_times(len(validation), config.model.quantiles)
    return RunData(training, validation, statistics, checksums)


def make_model(
    config: Config,
    data: RunData,
    loaded: Loaded | None,
    origin: Loaded | None,
    device: torch.device,
) -> ClimaX:
    """The model on `device`; without a checkpoint with its first weights."""
    torch.manual_seed(config.seed)
    model = ClimaX(config, data.training.grid, data.statistics).to(device)
    if loaded is None and (config.model.predict == "change" or config.model.transport != "off"):
        first = distributed.on_main(partial(first_forecast.fit, data.training, device))
        if config.model.transport != "off":
            say(str(first))
        model.start_from(*first)
    if origin is not None:
        for line in transfer.take_weights(model, config, origin).lines():
            say(f"{origin.path}: {line}")
    if config.train.compile:
        model.compile()
    return model


def training_data(config: Config, dataset: ForecastDataset) -> loop.TrainingData:
    """This rank's batches."""
    sampler = TrainSampler(len(dataset), config, distributed.rank(), distributed.world_size())
    batches = loader(dataset, sampler, config.train.workers)
    # as large as all others where its warm-up compiles, or the first of those would compile again
    size = config.train.micro_batch if config.train.compile else 1
    return loop.TrainingData(sampler, batches, collate([dataset[EMPTY_ITEM]] * size))


def validation_data(config: Config, data: RunData) -> ValidationData:
    """This rank's share of the validation items."""
    dataset, size, rank = data.validation, distributed.world_size(), distributed.rank()
    sampler = EvaluationSampler(len(dataset), validation_batch(config), rank, size)
    batches = loader(dataset, sampler, config.train.workers, keep_workers=False)
    shown = examples(dataset, config.validation.maps, data.statistics)
    return ValidationData(batches, data.statistics, shown)


def validation_batch(config: Config) -> int:
    """Input times per forward where nothing is learnt."""
    return config.validation.micro_batch or config.train.micro_batch


def examples(dataset: ForecastDataset, number: int, statistics: Statistics) -> Examples | None:
    """The validation items of which rank 0 draws maps."""
    if number == 0 or not distributed.is_main():
        return None
    few = dataset.thinned(number)
    items = collate([few[item] for item in range(len(few))])
    south_first = bool(dataset.grid.lat[0, 0] < dataset.grid.lat[-1, 0])
    return Examples(items, statistics, dataset.reader.layout.units, south_first)


def first_weights(config: Config) -> Loaded | None:
    """The checkpoint `train.init_from`, which a fresh run starts from."""
    path = config.train.init_from
    return None if path is None else distributed.on_main(partial(checkpoint_files.read, path))


def check_data(loaded: Loaded, checksums: dict[str, str]) -> None:
    """Refuse to go on with other data than the checkpoint's."""
    before = loaded.state["data_checksums"]
    for name in sorted(before.keys() | checksums.keys()):
        if before.get(name) != checksums.get(name):
            raise AqnetError(
                f"{loaded.path}: was trained on another {name} than data.stores holds; put that "
                "back, or choose another run_dir"
            )


@contextlib.contextmanager
def profiler(run: loop.TrainingRun, steps: int) -> Iterator[None]:
    """Inside, steps 3 to `steps` + 2 are traced to RUN_DIR/profile/rank*.json."""
    if steps == 0:
        yield
        return
    folder = run.directory.path / "profile"
    folder.mkdir(exist_ok=True)

    def write(profile: Any) -> None:
        path = folder / f"rank{distributed.rank()}.json"
        profile.export_chrome_trace(str(path))
        say(f"{path}: written; open it in chrome://tracing or ui.perfetto.dev")

    schedule: Callable[[int], Any] = torch.profiler.schedule(
        wait=1, warmup=1, active=steps, repeat=1
    )
    with torch.profiler.profile(schedule=schedule, on_trace_ready=write) as profile:
        run.after_each_step = profile.step
        yield


if __name__ == "__main__":
    errors.run(main)
