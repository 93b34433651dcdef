"""One training step of the model beside the plain form: agreement, time, memory, arithmetic.

    python -m benchmarks.model_step [--quick] [--json FILE] [--only NAME ...]

Every measurement runs in a process of its own, one after another, so that its peak memory is its
own. benchmarks/README.md explains the figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aqnet.distributed.launch import peak_bytes
from aqnet.model.attention.bias import Places
from aqnet.model.block import Blocks
from aqnet.model.tokens.positions import patches_of
from aqnet.model.tokens.wind_scan import WindScan
from benchmarks import model_parts as parts
from benchmarks.model_parts import Part
from benchmarks.model_tables import short, tables

ORIGINAL, NATIVE = (128, 256), (340, 432)
DOMAIN = {"tokens": "domain"}
JOINT = {"lead_time_mode": "joint"}
FLAT = {"terrain": {"enabled": False}}
HILLY = {"terrain": {"enabled": True, "blocks": None}}  # aqnet's default
GIB = 2**30


def window(size: int) -> dict[str, Any]:
    return {"attention": "window", "window": size, "regions": None}


def sections(quick: bool) -> dict[str, dict[str, Part]]:
    """Names of the measurements, in the order of the tables."""
    whole: dict[str, Part] = {}
    for grid in ((32, 64),) if quick else ((32, 64), (64, 128)):
        length = grid[0] * grid[1] // 4
        variants = {
            "all tokens, global": {},
            "domain tokens, windows": DOMAIN | window(length // 8),
        }
        if not quick:
            variants |= {"all tokens, no terrain": FLAT, "domain tokens, global": DOMAIN}
        for name, model in variants.items():
            for what in ("plain", "aqnet"):
                row = f"{grid[0]}x{grid[1]}, {name}, {what}"
                whole[row] = Part(what, "whole", grid, model, runs=2 if quick else 3)
    if quick:
        blocks = {
            f"64x128, {piece}, {what}": Part(what, piece, (64, 128))
            for piece in ("embedding", "terrain block", "block")
            for what in ("plain", "aqnet")
        }
        return {"whole": whole, "parts": blocks}
    pieces = {
        f"{piece}, {what}": Part(what, piece, ORIGINAL)
        for piece in ("embedding", "block")
        for what in ("plain", "aqnet")
    }
    pieces["terrain block, aqnet"] = Part("aqnet", "terrain block", ORIGINAL)
    pieces["terrain block, plain"] = Part("plain", "terrain block", ORIGINAL, runs=1, memory=12.0)
    return {
        "whole": whole,
        "parts": pieces,
        "step": {
            "all tokens, global": Part("aqnet", "whole", ORIGINAL),
            "domain tokens, global": Part("aqnet", "whole", ORIGINAL, DOMAIN),
            "domain tokens, window 1,024": Part("aqnet", "whole", ORIGINAL, DOMAIN | window(1024)),
            "all tokens, window 1,024": Part("aqnet", "whole", ORIGINAL, window(1024)),
            "domain tokens, global, joint, 4 lead times": Part(
                "aqnet", "whole", ORIGINAL, DOMAIN | JOINT, leads=4
            ),
        },
        "native": {
            "all tokens, window 1,024": Part("aqnet", "whole", NATIVE, window(1024), memory=17.0),
            "domain tokens, window 1,024": Part("aqnet", "whole", NATIVE, DOMAIN | window(1024)),
            "domain tokens, global": Part("aqnet", "whole", NATIVE, DOMAIN),
        },
        "compiled": {
            f"128x256, domain tokens, window 1,024, {how}": Part(
                "aqnet", "whole", ORIGINAL, DOMAIN | window(1024), runs=3, compile=how == "compiled"
            )
            for how in ("eager", "compiled")
        },
        "transport": transport(ORIGINAL, DOMAIN | JOINT | HILLY | {"predict": "change"})
        | transport(NATIVE, DOMAIN | JOINT | HILLY | window(1024) | {"predict": "change"}),
    }


def transport(grid: tuple[int, int], model: dict[str, Any]) -> dict[str, Part]:
    """All lead times of a sample with and without transport, its halves, and the paths alone."""
    name = f"{grid[0]}x{grid[1]}"
    rows = {
        f"{name}, transport {value}": Part(
            "aqnet", "whole", grid, model | {"transport": value}, leads=4, runs=3
        )
        for value in ("off", "fields", "attention", "wind")
    }
    paths = Part("aqnet", "paths", grid, model | {"transport": "wind"}, leads=4, runs=3)
    return rows | {f"{name}, paths and moved fields": paths}


# --- in the process of one measurement ----------------------------------------------------------


def measure(part: Part) -> dict[str, float]:
    """Time [s] of the fastest run, peak memory [GiB], rate of matrices [FLOP/s] just before."""
    step, module = parts.step_of(dataclasses.replace(part, grid=(32, 64)))
    step().backward()  # threads and kernels are there before the first timed run
    rate = matrix_rate()
    step, module = parts.step_of(part)
    times, before = [], resident()
    for _ in range(part.runs):
        module.zero_grad()
        used, start = time.process_time(), time.perf_counter()
        loss = step()
        middle = time.perf_counter()
        loss.backward()
        end = time.perf_counter()
        times.append((end - start, middle - start, time.process_time() - used))
        del loss
        rate = max(rate, matrix_rate())
    total, forward, cpu = min(times)
    memory = peak_bytes()
    return {
        "seconds": total,
        "forward": forward,
        "backward": total - forward,
        "cpu_seconds": cpu,
        "peak_gib": memory / GIB,
        "step_gib": (memory - before) / GIB,
        "flops": parts.flops(part),
        "matrix_rate": rate,
        "tokens": parts.tokens(part, parts.config_of(part)),
    }


def resident() -> int:
    """Bytes of this process in memory now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def matrix_rate() -> float:
    """FLOP/s of a product of two 2,048 x 2,048 matrices in FP32, the best of five."""
    a = torch.randn(2048, 2048)
    best = min(timed(lambda: a @ a) for _ in range(5))
    return float(2 * 2048**3 / best)


def timed(run: Any) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def agreement(part: Part) -> dict[str, float]:
    """Largest relative distance, norm-wise, of the forecast and of any parameter's gradient."""
    model, config = parts.models(part)
    plain = parts.plain_model(part, model.state_dict())
    inputs = parts.sample(part, config)
    found, expected = model(*inputs), plain(*inputs)
    cotangent = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    for out in (found, expected):
        (out.nan_to_num(0.0) * cotangent).sum().backward()
    gradients = {name: gradient(value) for name, value in plain.named_parameters()}
    distances = {
        name: distance(gradient(value), gradients[name]) for name, value in model.named_parameters()
    }
    return {
        "forecast": distance(found.nan_to_num(0.0), expected.nan_to_num(0.0)),
        "gradient": max(distances.values()),
    }


def gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def distance(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def scan_cost(part: Part) -> dict[str, float]:
    """Seconds to build the scan's tensors, and to find and apply one sample's order."""
    config, grid = parts.config_of(part), parts.grid_of(part.grid)
    patches = patches_of(grid, 2)
    model, _ = parts.models(part)
    tokens = model.tokens
    build = min(timed(lambda: WindScan(patches, tokens)) for _ in range(3))
    fields, *_ = parts.sample(part, config)
    x = torch.randn(1, len(tokens), config.model.embed_dim)
    places = Places(model.elevation_km.unsqueeze(0))
    blocks = Blocks(model.model, [Unmoved() for _ in model.blocks])
    with torch.no_grad():
        sector = model._sectors(fields)
        once = [
            min(timed(run) for _ in range(7))
            for run in (
                lambda: model._sectors(fields),
                lambda: model._scan_embedding(sector, x.dtype),
                lambda: blocks(x, places, model.scan, sector),
            )
        ]
    return {"build": build, "sample": sum(once)}


class Unmoved(nn.Module):
    """A block that does nothing, so that only the way of the tokens costs time."""

    def forward(self, x: Tensor, places: Places) -> Tensor:
        return x


# --- one process after another ------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = f"sections ({', '.join(sections(False))}, scan) or single measurements"
    parser.add_argument("--quick", action="store_true", help="small grids, about a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=names)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(*json.loads(arguments.one))))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, FP32, one sample\n")
    figures: dict[str, Any] = {}
    for section, every in sections(arguments.quick).items():
        chosen = arguments.only is None or section in arguments.only
        rows = {name: part for name, part in every.items() if chosen or name in arguments.only}
        for name, part in rows.items():
            row = in_its_own_process("measure", part)
            figures.setdefault(section, {})[name] = row
            print(f"  {section}: {name}: {short(row)}", flush=True)
            if section == "whole" and part.what == "aqnet":
                near = in_its_own_process("agreement", part)
                figures.setdefault("agreement", {})[name] = near
            save(figures, arguments.json)
    if arguments.only is None or "scan" in arguments.only:
        for grid in ((64, 128),) if arguments.quick else (ORIGINAL, NATIVE):
            for tokens in ("all", "domain"):
                part = Part("aqnet", "whole", grid, window(1024) | {"tokens": tokens})
                name = f"scan {grid[0]}x{grid[1]}, {tokens} tokens"
                figures[name] = in_its_own_process("scan_cost", part)
    print("\n" + tables(figures))
    save(figures, arguments.json)


def save(figures: dict[str, Any], path: Path | None) -> None:
    """After each row, for a run takes long and may be ended."""
    if path:
        path.write_text(json.dumps(figures, indent=1) + "\n")


def one(task: str, description: dict[str, Any]) -> dict[str, float]:
    part = Part(**{**description, "grid": tuple(description["grid"])})
    limit = int(part.memory * GIB)  # the machine may be shared: fail here, not there
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    run: dict[str, Any] = {"measure": measure, "agreement": agreement, "scan_cost": scan_cost}
    figures: dict[str, float] = run[task](part)
    return figures


def in_its_own_process(task: str, part: Part) -> dict[str, float]:
    """Its figures; empty where there was not enough memory or the process failed."""
    if task == "measure" and part.memory > 16 and available() < part.memory:
        print(f"  not run: may take {part.memory:.0f} GiB, {available():.0f} GiB are free")
        return {}
    description = json.dumps([task, dataclasses.asdict(part)])
    command = [sys.executable, "-m", "benchmarks.model_step", "--one", description]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        return {}
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return figures


def available() -> float:
    """GiB of memory that a new process can have (Linux)."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024 / GIB


if __name__ == "__main__":
    main()
