"""Train a model: python train.py --config configs/demo.yaml [key=value ...], or under torchrun."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
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
from aqnet.data import statistics as data_statistics
from aqnet.data.dataset import ForecastDataset, open_stores
from aqnet.data.loader import collate, loader
from aqnet.data.sampler import EMPTY_ITEM, EvaluationSampler, TrainSampler
from aqnet.distributed import say
from aqnet.errors import AqnetError
from aqnet.model.climax import ClimaX
from aqnet.model.weights import transfer
from aqnet.plan import network
from aqnet.plan.flops import item_flops
from aqnet.run_directory import RunDirectory, keep_config
from aqnet.training import loop
from aqnet.training.loss import loss_sums
from aqnet.training.maps import Examples
from aqnet.training.step import forward
from aqnet.training.validation import validate


def main() -> int:
    """Parse the command line and train; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file, such as configs/demo.yaml")
    parser.add_argument(
        "--profile",
        type=evaluation.counted,
        default=0,
        metavar="N",
        help="write a torch profiler trace of N steps",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="train.max_steps=100")
    arguments = parser.parse_args()
    try:
        config = configs.load(arguments.config, arguments.overrides)
        configs.accumulation(config, int(os.environ.get("WORLD_SIZE", "1")))
    except AqnetError:
        if os.environ.get("RANK", "0") != "0":
            sys.exit(2)  # rank 0 says it
        raise
    device = distributed.start(config.train.timeout_seconds)
    try:
        with distributed.explained():
            train(config, device, arguments.profile)
    finally:
        distributed.stop()
    return 0


def train(config: Config, device: torch.device, profile_steps: int) -> None:
    """Train in `config.run_dir`, from its last checkpoint if it holds one."""
    directory = RunDirectory(config.run_dir)
    directory.claim()
    status: str | None = None  # a run that is refused leaves the word that stands there
    try:
        checkpoints = Checkpoints(directory.path / "checkpoints", config.train.keep_best)
        loaded = checkpoints.load_latest()
        distributed.on_main(partial(keep_config, directory.path, config, loaded))
        status = "failed"
        progress = loop.Progress.of(loaded.state) if loaded is not None else loop.Progress()
        if loop.is_finished(config, progress) and progress.validated_step == progress.global_step:
            say(f"{directory.path}: finished at step {progress.global_step}; nothing left to train")
            status = "finished"
        else:
            directory.status("running")
            run = assemble(config, loaded, checkpoints, directory, device)
            if distributed.num_nodes() > 1:
                say(network.measured(run.trainee.model, device))
            with profiler(run, profile_steps):
                status = loop.fit(run)
            say(f"{directory.path}: {status} at step {run.progress.global_step}")
        directory.status(status)
        if status == "finished" and config.train.evaluate_after_training:
            evaluate_once(directory.path, device)
    finally:
        if status is not None:
            directory.status(status)
        directory.release()


def evaluate_once(run_dir: Path, device: torch.device) -> None:
    """Score the best checkpoint on the test split in RUN_DIR/evaluation, if that is missing."""
    output = run_dir / "evaluation"
    if not distributed.on_main(partial(is_scored, run_dir, output)):
        options = ["--checkpoint", str(run_dir), "--output", str(output)]
        evaluation.evaluate(evaluation.command_line().parse_args(options), device)


def is_scored(run_dir: Path, output: Path) -> bool:
    """Whether `output` holds all results of the run's best checkpoint, and not of one before it."""
    metrics = output / "metrics.json"
    if not metrics.exists() or not (output / "report.html").exists():  # which is written last
        return False
    step = json.loads(metrics.read_bytes())["global_step"]
    return checkpoint_files.find(run_dir).name == f"step_{step:08d}"


def assemble(
    config: Config,
    loaded: Loaded | None,
    checkpoints: Checkpoints,
    directory: RunDirectory,
    device: torch.device,
) -> loop.Run:
    """Join data, model and evaluation to a run of the training loop."""
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS refuses without
        torch.use_deterministic_algorithms(True)
    stores = open_stores(config)
    checksums = {store.path.name: store.checksum for store in stores}
    origin = first_weights(config) if loaded is None else None
    if loaded is None:
        statistics = data_statistics.read(config, stores)
        if origin is not None:
            statistics = transfer.starting_statistics(config, statistics, origin)
    else:
        check_data(loaded, checksums)
        statistics = Statistics.from_dict(loaded.state["statistics"])
    train_data = ForecastDataset(config, "train", statistics)
    validation_data = ForecastDataset(config, "validation", statistics)
    for dataset in (train_data, validation_data):
        say(dataset.report())
    train_data = train_data.thinned(config.train.max_items)
    validation_data = validation_data.thinned(config.validation.max_items)
    torch.manual_seed(config.seed)
    model = ClimaX(config, train_data.grid, statistics).to(device)
    if loaded is None and config.model.predict == "change":
        model.set_rho(distributed.on_main(partial(data_statistics.initial_rho, train_data)))
    if origin is not None:
        for line in transfer.take_weights(model, config, origin).lines():
            say(f"{origin.path}: {line}")
    if config.train.compile:
        model.compile()
    size, rank = distributed.world_size(), distributed.rank()
    sampler = TrainSampler(len(train_data), config, rank, size)
    batch = config.validation.micro_batch or config.train.micro_batch
    validation_sampler = EvaluationSampler(len(validation_data), batch, rank, size)
    workers = config.train.workers
    run = loop.start(
        config,
        model,
        loaded,
        device,
        item_flops(model, config) if distributed.is_main() else 0.0,  # which alone reports
        sampler=sampler,
        loader=loader(train_data, sampler, workers),
        empty=collate([train_data[EMPTY_ITEM]]),
        validate=lambda stop: {},
        checkpoints=checkpoints,
        directory=directory,
        constants={
            "config": configs.to_dict(config),
            "statistics": statistics.to_dict(),
            "data_checksums": checksums,
            "grid": train_data.grid.summary(),
        },
        grid=train_data.grid,
        examples=examples(validation_data, config.validation.maps),
    )
    run.validate = partial(
        validate,
        partial(forward, run.trainee, model),
        loss_sums,
        run.trainee.weights,
        loader(validation_data, validation_sampler, workers),
        statistics,
        config,
    )
    return run


def examples(dataset: ForecastDataset, number: int) -> Examples | None:
    """The validation items of which rank 0 draws maps."""
    if number == 0 or not distributed.is_main():
        return None
    few = dataset.thinned(number)
    items = collate([few[item] for item in range(len(few))])
    return Examples(items, bool(dataset.grid.lat[0, 0] < dataset.grid.lat[-1, 0]))


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
def profiler(run: loop.Run, steps: int) -> Iterator[None]:
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
