"""What only a machine with a GPU can tell: python -m tests.gpu_check (10 minutes, no network).

Whoever has a GPU at hand runs it and sends the table. It ends with status 1 where a check fails
or, after ten minutes, was not made.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from aqnet import config as configs
from aqnet import distributed
from aqnet.batch import Batch
from aqnet.config import Config
from aqnet.errors import one_line
from aqnet.model.attention.biased_attention import biased_attention
from aqnet.model.climax import ClimaX
from aqnet.plan.flops import item_flops
from aqnet.plan.machine import PEAKS
from aqnet.training.optimizer import make_optimizer
from aqnet.training.step import TrainingState, optimizer_step
from benchmarks import model_parts as parts
from benchmarks.model_parts import Part
from tests.conftest import prepared
from tests.gpu_attention import (
    FP32,
    Row,
    against,
    alternatives,
    dense_bias,
    fastest,
    kernels,
    peak_memory,
    start_memory,
)
from tests.model.builders import LEADS, STATISTICS, TARGETS, config_of, grid, inputs
from tests.model.test_precision import trains
from tests.reference.climax import PlainClimaX

CONFIG = "configs/lumi_800.yaml"
DETERMINISTIC = (
    "train.deterministic=true",
    "train.decay_steps=4",
    "train.evaluate_after_training=false",
)
LIMIT_SECONDS = 600.0  # of all checks; a row that has begun ends
PRESETS = {"MI250X": "lumi-g", "A100": "a100", "H100": "h100", "H200": "h100"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--cpu", action="store_true", help="small, on the CPU: tries this program")
    arguments = parser.parse_args()
    if not arguments.cpu and not torch.cuda.is_available():
        print("no GPU")
        return 0
    device = torch.device("cpu" if arguments.cpu else "cuda")
    if arguments.worker:
        return worker()
    rows, end = [], time.monotonic() + LIMIT_SECONDS
    for check in (ranks, kernels, whole, compiled, waits, resumed, alternatives, steps):
        for row in guarded(check, device, end):
            rows.append(row)
            print(f"| {row.name} | {row.found} | {'ok' if row.ok else 'WRONG'} |", flush=True)
    name = "CPU" if arguments.cpu else torch.cuda.get_device_name()
    good = sum(row.ok for row in rows)
    print(f"\n{name}, torch {torch.__version__}: {good} of {len(rows)} checks are right")
    return int(good < len(rows))


def guarded(
    check: Callable[[torch.device], Iterator[Row]], device: torch.device, end: float
) -> Iterator[Row]:
    """The rows of a check that begin before the time `end`; one that says so where it could not end
    or came too late, for the others go on."""
    rows = check(device)
    while time.monotonic() < end:
        try:
            row = next(rows, None)
        except Exception as error:  # whatever it is: a check that fails is a row like any other
            row = Row(check.__name__, f"{type(error).__name__}: {one_line(error)}", False)
        if row is None:
            return
        yield row
    yield Row(check.__name__, "the rest of it not made, out of time", False)


# --- several processes --------------------------------------------------------------------------


def ranks(device: torch.device) -> Iterator[Row]:
    """Gradients of DDP over all GPUs are those of one process with all samples."""
    count = 2 if device.type == "cpu" else torch.cuda.device_count()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={count}", "-m", "tests.gpu_check", "--worker"]
    command += ["--cpu"] if device.type == "cpu" else []
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = [line for line in result.stdout.splitlines() if line.startswith("distance")]
    text = found[0] if found else (result.stderr.strip().splitlines() or ["no output"])[-1]
    name = {"cpu": "gloo"}.get(device.type, "RCCL" if torch.version.hip else "NCCL")
    yield Row(f"DDP over {name}, {count} processes", text, result.returncode == 0)


def worker() -> int:
    device = distributed.start(120)
    if not torch.distributed.is_initialized():  # one GPU: a group of one, to meet its library
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    alone, shared = (small_model(device) for _ in range(2))
    parallel = nn.parallel.DistributedDataParallel(shared, broadcast_buffers=False)
    samples = [shifted(number, device) for number in range(size)]
    loss(parallel(*samples[rank])).backward()
    torch.stack([loss(alone(*sample)) for sample in samples]).mean().backward()
    row = against("", gradients(shared), gradients(alone), FP32)
    if rank == 0:
        print(row.found, flush=True)
    torch.distributed.barrier()
    distributed.stop()
    return int(not row.ok)


def small_model(device: torch.device, **settings: Any) -> ClimaX:
    torch.manual_seed(0)
    model = ClimaX(config_of(**settings), grid(), STATISTICS)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval().to(device)


def shifted(number: int, device: torch.device) -> tuple[Tensor, ...]:
    fields, time, lead_time = inputs()
    return (fields.float() + 0.1 * number).to(device), time.to(device), lead_time.to(device)


def loss(forecast: Tensor) -> Tensor:
    return forecast.nan_to_num(0.0).square().sum()


def gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def gradients(model: nn.Module) -> list[Tensor]:
    return [gradient(parameter) for parameter in model.parameters()]


# --- the parts of the model ---------------------------------------------------------------------


SETTINGS: dict[str, dict[str, Any]] = {
    "global": {},
    "windows": {"attention": "window"},
    "conditioned, regions, all tokens": {
        "lead_time_mode": "conditioned",
        "regions": [2, 3],
        "tokens": "all",
    },
}


def whole(device: torch.device) -> Iterator[Row]:
    """A small model on the device against the plain one in FP64 on the CPU."""
    for name, settings in SETTINGS.items():
        model = small_model(device, **settings)
        plain = PlainClimaX(config_of(**settings), grid(), STATISTICS).double()
        plain.load_state_dict(model.state_dict())
        fields, *times = inputs()
        found = model(*shifted(0, device))
        expected = plain(fields.float().double(), *times)
        loss(found).backward()
        loss(expected).backward()
        references = dict(plain.named_parameters())
        parameters = dict(model.named_parameters())
        yield against(
            f"whole model, {name}",
            [found.nan_to_num(0.0), *(gradient(parameters[n]) for n in parameters)],
            [expected.nan_to_num(0.0), *(gradient(references[n]) for n in parameters)],
            1e-4,
        )
        with torch.autocast(device.type, torch.bfloat16):
            found = model(*shifted(0, device))
        yield against(
            f"whole model in bf16, {name}",
            *([part.nan_to_num(0.0)] for part in (found, expected)),
            0.05,
        )


def compiled(device: torch.device) -> Iterator[Row]:
    """torch.compile of the whole forward, as one graph, gives what eager gives."""
    backend = "aot_eager" if device.type == "cpu" else "inductor"
    for name, settings in SETTINGS.items():
        models = [small_model(device, **settings) for _ in range(2)]
        torch._dynamo.reset()
        models[0].compile(fullgraph=True, backend=backend)
        out = [model(*shifted(0, device)).nan_to_num(0.0) for model in models]
        for value in out:
            loss(value).backward()
        found, expected = ([value, *gradients(m)] for value, m in zip(out, models, strict=True))
        yield against(f"compiled by {backend}, {name}", found, expected, 1e-4)


# --- training -----------------------------------------------------------------------------------


def waits(device: torch.device) -> Iterator[Row]:
    """The host waits for the device once in an optimizer step, of three micro-batches here."""
    settings = config_of(quantiles=[0.25, 0.75])
    model = ClimaX(settings, grid(), STATISTICS).to(device)
    state = TrainingState(settings, model, model, make_optimizer(model, settings.train), device)
    fields, *times = inputs()
    targets = torch.zeros(2, len(LEADS), len(TARGETS), *grid().shape)
    batch = Batch(fields.float(), *times, targets, grid().mask.expand_as(targets))
    batch = batch.pin_memory() if device.type == "cuda" else batch
    for _ in range(2):  # the first makes what later ones have
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("warn")
            assert optimizer_step(state, iter([batch] * 3), 3, 0, [0.0, 0.0]).updated
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    number = sum("synchroniz" in str(warning.message) for warning in found)
    yield Row("waits of the host in a step", str(number), number == int(device.type == "cuda"))


def resumed(device: torch.device) -> Iterator[Row]:
    """With `deterministic: true` a run continued from a checkpoint has the bits of another."""
    with tempfile.TemporaryDirectory() as name:
        tree = prepared(Path(name) / "world")
        for precision in ("fp32",) if device.type == "cpu" else ("fp32", "bf16"):
            weights = []
            for case, stops in (("whole", (4,)), ("parts", (2, 4))):
                folder = Path(name) / f"{precision}_{case}"
                folder.mkdir()
                for steps in stops:
                    settings = (f"train.precision={precision}", f"train.max_steps={steps}")
                    found = trains(tree, folder, *settings, *DETERMINISTIC)
                weights.append(found)
            same = all(torch.equal(weights[0][key], value) for key, value in weights[1].items())
            yield Row(f"deterministic and resumed, {precision}", "same bits" if same else "-", same)


def steps(device: torch.device) -> Iterator[Row]:
    """Time and memory of a training step of one item of lumi_800.yaml, drop rates included."""
    shape = (32, 64) if device.type == "cpu" else (128, 256)
    tree = configs.to_dict(configs.load(CONFIG))
    if device.type == "cpu":
        tree["model"] |= {"embed_dim": 32, "depth": 2}
    config = configs.from_dict(tree, CONFIG)
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else ""
    kinds = [kind for kind in PRESETS if kind in gpu]
    flops = item_flops(lumi_model(config, shape), config)
    for precision in ("fp32", "bf16"):
        for how in ("eager", "compiled", "dense bias"):
            attend = dense_bias if how == "dense bias" else biased_attention
            with mock.patch("aqnet.model.attention.attention.biased_attention", attend):
                seconds, memory, value = training_step(
                    config, shape, device, precision, how == "compiled"
                )
            found = f"{1000 * seconds:.0f} ms, {memory / 2**30:.2f} GiB, loss {value:.3g}, "
            found += f"{flops / seconds / 1e12:.3g} TFLOP/s"
            for kind in kinds:
                peak = PEAKS[PRESETS[kind]][int(precision == "bf16")]
                found += f", {flops / seconds / peak:.0%} of the peak"
            yield Row(f"step of lumi_800.yaml, {precision}, {how}", found, value == value)


def training_step(
    config: Config, shape: tuple[int, int], device: torch.device, precision: str, compiles: bool
) -> tuple[float, int, float]:
    """Seconds of the fastest of five, peak bytes, last loss."""
    model = lumi_model(config, shape).train().to(device)
    if compiles:
        torch._dynamo.reset()
        model.compile(backend="aot_eager" if device.type == "cpu" else "inductor")
    optimizer = make_optimizer(model, config.train)
    part = Part("aqnet", "whole", shape, leads=len(config.data.lead_times))
    sample = [value.to(device) for value in parts.sample(part, config)]
    last = torch.zeros(())

    def step() -> None:
        nonlocal last
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            last = model(*sample).nan_to_num(0.0).square().mean()
        last.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    start_memory(device)
    return fastest(step, device), peak_memory(device), last.item()


def lumi_model(config: Config, shape: tuple[int, int]) -> ClimaX:
    torch.manual_seed(0)
    model = ClimaX(config, parts.grid_of(shape), parts.statistics_of(config))
    for parameter in model.parameters():
        if not bool(parameter.any()):  # what starts without an effect
            nn.init.normal_(parameter, std=0.02)
    return model


if __name__ == "__main__":
    sys.exit(main())
