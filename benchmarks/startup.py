"""What many processes do at once when a run starts: time by parts, and what is asked of the disk.

    python -m benchmarks.startup [--quick] [--json FILE] [--processes 64] [--nodes 8]

Starts `train.py` of a tiny model as slurm/train.sbatch does, one torchrun per "node", all on this
machine, from a checkpoint, and times the parts of its start in every process.
benchmarks/README.md explains the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

PARTS = ("launch", "import", "join", "checkpoint", "stores", "model", "wrap", "warm-up", "step")
MADE_BEFORE_IMPORT = time.time()


def worker(folder: Path, arguments: list[str]) -> None:
    """Train, and write how long each part of the start took to FOLDER/rank*.json."""
    figures: dict[str, float] = {"launch": MADE_BEFORE_IMPORT - float(os.environ["STARTED"])}
    began = time.perf_counter()
    import train
    from aqnet import distributed
    from aqnet.checkpoint import Checkpoints
    from aqnet.distributed.launch import peak_bytes
    from aqnet.training import loop

    figures["import"] = time.perf_counter() - began

    def timed(owner: Any, name: str, part: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def measured(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            figures.setdefault(part, 0.0)
            if part != "step" or not figures[part]:  # the first step is the start's
                figures[part] += time.perf_counter() - start
            return result

        setattr(owner, name, measured)

    timed(distributed, "start", "join")
    timed(Checkpoints, "load_latest", "checkpoint")
    timed(train, "open_stores", "stores")
    timed(train, "ForecastDataset", "stores")
    timed(train, "ClimaX", "model")
    timed(distributed, "wrap", "wrap")
    timed(loop, "warm_up", "warm-up")
    timed(loop, "_step", "step")
    sys.argv = ["train.py", *arguments]
    train.main()
    figures["memory_mb"] = peak_bytes() / 2**20
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(figures))


def prepare(folder: Path, processes: int) -> list[str]:
    """A tiny world and a run of two steps on it; returns the arguments of `train.py` to go on."""
    tree = yaml.safe_load(Path("configs/demo.yaml").read_text())
    tree["run_dir"] = str(folder / "run")
    tree["data"] |= {"sources": [{"path": f"{folder}/world/*.zarr"}], "stores": f"{folder}/stores"}
    tree["data"]["split"] = {"train": ["2015-01"], "validation": ["2015-03"], "test": ["2015-04"]}
    tree["model"] |= {"embed_dim": 16, "depth": 2, "num_heads": 2}
    tree["model"] |= {"quantiles": [0.5]}  # which few validation times can calibrate
    tree["train"] |= {"micro_batch": 1, "effective_batch": 4 * processes, "workers": 0}
    tree["train"] |= {"warmup_steps": 1, "max_steps": 2, "decay_steps": 100}
    tree["validation"] = {"every": 1000, "max_items": processes, "micro_batch": 1}
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    world = ("--output", f"{folder}/world", "--years", "2015", "--grid", "8x16")
    for command in (
        ("-m", "aqnet.data.synthetic", *world),
        ("-m", "aqnet.data.prepare", "--config", str(config)),
        ("train.py", "--config", str(config)),
    ):
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return ["--config", str(config), "train.max_steps=4"]


def launch(
    folder: Path, arguments: list[str], nodes: int, processes: int
) -> dict[str, list[float]]:
    """Start `nodes` torchruns of one job; returns each part's seconds in every process."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}"]
    command += [
        f"--nproc_per_node={processes // nodes}",
        "--rdzv_id=startup",
        "--rdzv_backend=c10d",
    ]
    command += ["--rdzv_endpoint=127.0.0.1:29417", "-m", "benchmarks.startup", "--worker"]
    environment = os.environ | {"STARTED": str(time.time()), "OMP_NUM_THREADS": "1"}
    torchruns = [
        subprocess.Popen(
            [*command, str(folder), *arguments], env=environment, stdout=subprocess.DEVNULL
        )
        for _ in range(nodes)
    ]
    statuses = [process.wait() for process in torchruns]
    if any(statuses):
        raise SystemExit("a torchrun failed")
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]
    return {name: [rank[name] for rank in ranks] for name in ranks[0]}


def file_operations(*command: str) -> dict[str, int]:
    """How many files `python COMMAND` opens, and how many it looks for; by strace."""
    trace = ["strace", "-f", "-qq", "-c", "-U", "calls,name", "-e", "trace=%file"]
    result = subprocess.run(
        [*trace, sys.executable, *command], capture_output=True, text=True, check=True
    )
    counts = {name: int(n) for n, name in re.findall(r"^\s*(\d+)\s+(\w+)$", result.stderr, re.M)}
    return {"opens": counts.get("openat", 0), "all": counts["total"]}


def main() -> None:
    """The command."""
    if sys.argv[1:2] == ["--worker"]:
        worker(Path(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="8 processes on 2 nodes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--processes", type=int, default=64)
    parser.add_argument("--nodes", type=int, default=8)
    options = parser.parse_args()
    processes, nodes = (8, 2) if options.quick else (options.processes, options.nodes)
    figures: dict[str, Any] = {"processes": processes, "nodes": nodes}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = prepare(folder, processes)
        if shutil.which("strace"):
            begin = (
                "from aqnet import config as configs, distributed\n"
                "from aqnet.data.stores.record import open_stores\n"
                f"config = configs.load({arguments[1]!r})\n"
            )
            idle = file_operations("-c", begin)
            for who, main_rank in (("rank 0", True), ("another rank", False)):
                opening = f"distributed.is_main = lambda: {main_rank}\nopen_stores(config)"
                found = file_operations("-c", begin + opening)
                figures[f"opening a year's store on {who}, file operations"] = {
                    key: found[key] - idle[key] for key in idle
                }
            figures["import, file operations"] = file_operations("-c", "import train")
        parts = launch(folder, arguments, nodes, processes)
    print(f"{processes} processes, {nodes} torchruns, seconds: median and longest over processes")
    for part in (*PARTS, "memory_mb"):
        figures[part] = {"median": statistics.median(parts[part]), "longest": max(parts[part])}
        print(f"{part:12} {figures[part]['median']:8.2f} {figures[part]['longest']:8.2f}")
    for key, value in figures.items():
        if "operations" in key:
            print(f"{key}: {value['opens']} opened, {value['all']} in all")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
