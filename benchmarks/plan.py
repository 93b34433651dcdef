"""The planner beside what a run on this machine measures: step time and peak memory.

    python -m benchmarks.plan [--quick] [--json FILE]

benchmarks/README.md explains the figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[1]
DAYS = {"train": "01-01/2015-01-12", "validation": "01-13/2015-01-18", "test": "01-19/2015-01-24"}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the demo alone, fewer steps")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cases = {"demo, 32x64": ("demo.yaml", "32x64", 48)}
    if not options.quick:
        cases["lumi_800, 128x256"] = ("lumi_800.yaml", "128x256", 8)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (config, grid, batch) in cases.items():
            steps = 5 if grid == "128x256" else 20 if options.quick else 60
            results[name] = compare(Path(folder) / grid, config, grid, batch, steps)
            print(f"\n{name}\n{'':24}{'planned':>12}{'measured':>12}{'ratio':>8}")
            for what, (planned, measured) in results[name].items():
                print(f"{what:24}{planned:12.4g}{measured:12.4g}{planned / measured:8.2f}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def compare(
    folder: Path, config: str, grid: str, batch: int, steps: int
) -> dict[str, tuple[float, float]]:
    """Planned and measured seconds of a step and bytes of a process."""
    path, target = make_data(folder, config, grid, batch, steps), folder / "plan.json"
    call("-m", "aqnet.plan", "--config", str(path), "--measure", "--json", str(target))
    planned = json.loads(target.read_text())
    call("train.py", "--config", str(path))
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").open()]
    trained = [line for line in lines if "items_per_second" in line][2:]
    rate = statistics.median(row["items_per_second"] for row in trained)
    return {
        "step [s]": (planned["step_seconds"], planned["items_per_step"] / rate),
        "peak memory [MB]": (
            sum(planned["memory"].values()) / 1e6,
            1e3 * max(row["memory_gb"] for row in trained),
        ),
    }


def make_data(folder: Path, config: str, grid: str, batch: int, steps: int) -> Path:
    """A config over 24 prepared days of the embedded world on a grid."""
    tree = yaml.safe_load((REPOSITORY / "configs" / config).read_text())
    tree["run_dir"] = str(folder / "run")
    tree["data"] |= {
        "sources": [{"path": str(folder / "world/data_*_china_masked.zarr")}],
        "stores": str(folder / "stores"),
        "split": {name: [f"2015-{days}"] for name, days in DAYS.items()},
    }
    tree["train"] |= {"max_steps": steps, "log_every": 1, "checkpoint_every": steps}
    tree["train"] |= {"evaluate_after_training": False, "effective_batch": batch, "workers": 2}
    tree["validation"] = {"every": steps, "max_items": 19, "micro_batch": 1, "maps": 0}
    path = folder / "config.yaml"
    folder.mkdir(parents=True)
    path.write_text(yaml.safe_dump(tree))
    code = (
        "from pathlib import Path; from aqnet.data.synthetic import World, write_year;"
        f"write_year(Path({str(folder / 'world')!r}), World(*map(int, {grid!r}.split('x'))), "
        "2015, 0, 24 * 24)"
    )
    call("-c", code)
    call("-m", "aqnet.data.prepare", "--config", str(path))
    return path


def call(*arguments: str) -> str:
    """Standard output of `python ARGUMENTS`."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


if __name__ == "__main__":
    main()
