"""What only a machine with a GPU can tell: python -m tests.gpu_check (10 minutes, no network).

Whoever has a GPU at hand runs it and sends the table. It ends with status 1 where a check fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aqnet import distributed
from aqnet.model import bias
from aqnet.model.attention import Attention
from aqnet.model.bias import Places
from aqnet.model.biased_attention import biased_attention
from aqnet.model.climax import ClimaX
from benchmarks import model_parts as parts
from benchmarks.model_parts import Part
from tests.model.builders import STATISTICS, config_of, grid, inputs
from tests.reference.attention import dense_attention
from tests.reference.climax import PlainClimaX

FP32 = 3e-5  # norm-wise distance of FP32 on a GPU from FP64


@dataclass(frozen=True)
class Row:
    """A line of the table: what was checked, what was found, whether that is right."""

    name: str
    found: str
    ok: bool


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
    rows = []
    for check in (ranks, terrain, windows, whole, compiled, steps):
        for row in guarded(check, device):
            rows.append(row)
            print(f"| {row.name} | {row.found} | {'ok' if row.ok else 'WRONG'} |", flush=True)
    name = "CPU" if arguments.cpu else torch.cuda.get_device_name()
    good = sum(row.ok for row in rows)
    print(f"\n{name}, torch {torch.__version__}: {good} of {len(rows)} checks are right")
    return int(good < len(rows))


def guarded(check: Callable[[torch.device], Iterator[Row]], device: torch.device) -> Iterator[Row]:
    """The rows of a check; one that says so where it could not end, for the others go on."""
    try:
        yield from check(device)
    except (RuntimeError, AssertionError) as error:
        yield Row(check.__name__, f"{type(error).__name__}: {str(error).splitlines()[:1]}", False)


def distance(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return ((found - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def against(name: str, found: list[Tensor], expected: list[Tensor], limit: float) -> Row:
    worst = max(distance(one, other) for one, other in zip(found, expected, strict=True))
    return Row(name, f"distance {worst:.1e}, at most {limit:.0e}", worst <= limit)


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


def terrain(device: torch.device) -> Iterator[Row]:
    """Output and gradients against the dense form in FP64, and memory without an L x L tensor."""
    length, heads = (512, 2) if device.type == "cpu" else (4096, 8)
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(4, 1, heads, length, 96, generator=generator).to(device)
    z = (5 * torch.rand(1, length, generator=generator)).round(decimals=2).sort().values.to(device)
    costs = (0.1 + torch.rand(2, heads, generator=generator)).to(device)
    for name, kind in (("FP32", torch.float32), ("bf16 autocast", torch.bfloat16)):
        operands = [*normal[:3].to(kind).unbind(0), z, *costs.unbind(0)]
        start_memory(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=kind != torch.float32):
            found = derived(terrain_attention, operands, normal[3])
        peak = peak_memory(device)
        expected = derived(dense_attention, [value.double() for value in operands], normal[3])
        # gradients of bf16 queries are rounded to bf16
        yield against(f"terrain, {name}, output", found[:1], expected[:1], FP32)
        limit = FP32 if kind == torch.float32 else 0.01
        yield against(f"terrain, {name}, gradients", found[1:], expected[1:], limit)
        if device.type == "cuda":
            square = heads * length**2 * 4
            yield Row(f"terrain, {name}, memory", f"{peak / 2**20:.0f} MiB", peak < square)


def terrain_attention(q: Tensor, k: Tensor, v: Tensor, z: Tensor, *costs: Tensor) -> Tensor:
    return biased_attention(q, k, v, bias.terrain(z.float(), *costs))


def derived(attend: Callable[..., Tensor], operands: list[Tensor], seed: Tensor) -> list[Tensor]:
    leaves = [value.detach().requires_grad_(at != 3) for at, value in enumerate(operands)]
    out = attend(*leaves)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return [out, *torch.autograd.grad(out, wanted, seed.to(out.dtype))]


def windows(device: torch.device) -> Iterator[Row]:
    """Attention inside windows is that of each window alone, with a shorter last one."""
    torch.manual_seed(0)
    for has_terrain in (False, True):
        attention = Attention(96, 2, 0.0, has_terrain).to(device)
        x = torch.randn(2, 150, 96, device=device)
        z = torch.linspace(0, 5, 150, device=device).unsqueeze(0)
        found = attention(x, Places(z), window=64)
        alone = [attention(x[:, n : n + 64], Places(z[:, n : n + 64])) for n in range(0, 150, 64)]
        name = "windows with terrain" if has_terrain else "windows"
        yield against(name, [found], [torch.cat(alone, dim=1)], FP32)


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


# --- one training step --------------------------------------------------------------------------


def steps(device: torch.device) -> Iterator[Row]:
    """Time and memory of a training step of the original configuration, drop rates included."""
    domain = {"tokens": "domain"}
    window = {"attention": "window", "window": 1024, "regions": None}
    cases = {
        "original": ((128, 256), {}),
        "domain tokens": ((128, 256), domain),
        "domain tokens, windows": ((128, 256), domain | window),
        "native grid, domain tokens, windows": ((340, 432), domain | window),
    }
    drops = {"drop_rate": 0.1, "drop_path": 0.1}
    for name, (shape, model) in cases.items():
        part = Part("aqnet", "whole", shape, drops | model)
        if device.type == "cpu":
            part = Part("aqnet", "whole", (32, 64), drops | model | {"embed_dim": 32, "depth": 2})
        for precision in ("fp32", "bf16"):
            seconds, memory, value = training_step(part, device, precision == "bf16")
            found = f"{1000 * seconds:.0f} ms, {memory / 2**30:.2f} GiB, loss {value:.4f}"
            yield Row(f"training step, {name}, {precision}", found, value == value)


def training_step(part: Part, device: torch.device, bf16: bool) -> tuple[float, int, float]:
    """Seconds of the fastest of five, peak bytes, last loss."""
    model, config = parts.models(part)
    model.train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    sample = [value.to(device) for value in parts.sample(part, config)]
    start_memory(device)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            value = model(*sample).nan_to_num(0.0).square().mean()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        last = value.item()  # waits for the device
        times.append(time.perf_counter() - start)
    return min(times), peak_memory(device), last


def start_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else 0


if __name__ == "__main__":
    sys.exit(main())
