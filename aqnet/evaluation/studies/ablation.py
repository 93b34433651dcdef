"""Train one factor at a time against a base and say what it changes: configs/ablation/*.yaml.

    python -m aqnet.evaluation.ablation --configs configs/ablation --output runs/ablation

Every file is trained with every seed by train.py and scored by evaluate.py over the same input
times. What is finished is kept, so the command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import aqnet
from aqnet import config as configs
from aqnet.config import Config
from aqnet.errors import AqnetError
from aqnet.evaluation import daily_sums
from aqnet.evaluation.daily_sums import Daily
from aqnet.evaluation.report import page, table

BASE = "base"
SCRIPTS = Path(aqnet.__file__).resolve().parents[1]  # train.py and evaluate.py are there
REFERENCE = "damped_anomaly"  # of the table after each run
Done = dict[str, dict[int, Daily]]  # by variant and seed


@dataclass(frozen=True)
class Run:
    """One variant with one seed; `file` is its config."""

    name: str
    seed: int
    file: Path
    config: Config

    @property
    def folder(self) -> Path:
        """Its run directory."""
        return Path(self.config.run_dir)

    @property
    def sums(self) -> Path:
        """Exists once the run is scored."""
        return self.folder / "evaluation" / "days.npz"


def main() -> int:
    """Parse the command line, run what is missing, compare; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--configs", default="configs/ablation", help="folder with base.yaml")
    parser.add_argument("--output", required=True, help="folder of the runs and ablation.csv")
    parser.add_argument("--seeds", type=int, default=3, help="so many per variant, from 0")
    parser.add_argument("--at-once", type=int, default=2, help="runs at the same time")
    parser.add_argument("--max-samples", type=int, default=500, help="input times scored")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run")
    options = parser.parse_args()
    runs = planned(options)
    done: Done = {}
    for run in runs:
        if run.sums.exists():
            check_unchanged(run)
            keep(done, run)
    waiting = [run for run in runs if not run.sums.exists()]
    print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished", flush=True)
    for number, run in enumerate(finished(waiting, options)):
        keep(done, run)
        print(f"\n{run.name}, seed {run.seed}: {len(waiting) - number - 1} runs left", flush=True)
        print(scores(done), flush=True)
    rows = differences(done)
    table.write_csv(Path(options.output) / "ablation.csv", rows)
    print(f"\n{scores(done)}\n\n{verdicts(rows)}")
    return 0


def planned(options: argparse.Namespace) -> list[Run]:
    """All runs, seed by seed, so that the table means something early.

    Raises:
        AqnetError: there is no base, or a variant differs from it in data or training.
    """
    for name in ("seeds", "at_once", "max_samples"):
        if getattr(options, name) < 1:
            text = name.replace("_", "-")
            raise AqnetError(f"--{text} {getattr(options, name)}: expected at least 1")
    files = sorted(Path(options.configs).glob("*.yaml"), key=lambda file: file.stem != BASE)
    if not files or files[0].stem != BASE or len(files) < 2:
        raise AqnetError(f"{options.configs}: expected {BASE}.yaml and a file per variant")
    loaded = {file: configs.load(file, options.overrides) for file in files}
    base = loaded[files[0]]
    for file, config in loaded.items():
        for section in ("data", "train", "validation"):
            if getattr(config, section) != getattr(base, section):
                raise AqnetError(
                    f"{file}: `{section}` differs from {BASE}.yaml; variants change `model` alone, "
                    "so that all see the same samples"
                )
    return [
        Run(file.stem, seed, file, replace(config, seed=seed, run_dir=_folder(options, file, seed)))
        for seed in range(options.seeds)
        for file, config in loaded.items()
    ]


def _folder(options: argparse.Namespace, file: Path, seed: int) -> str:
    return str(Path(options.output) / f"{file.stem}-seed{seed}")


def check_unchanged(run: Run) -> None:
    """Refuse a finished run that was made with another config."""
    before = configs.load(run.folder / "config.yaml")
    if before != run.config:
        raise AqnetError(
            f"{run.folder}: was made with another config than {run.file} and the overrides now "
            "say; remove it, or choose another --output"
        )


def keep(done: Done, run: Run) -> None:
    """Read a scored run.

    Raises:
        AqnetError: it was scored over other pairs, or given other weather, than those before.
    """
    sums = daily_sums.read(run.sums)
    for other in (other for seeds in done.values() for other in seeds.values()):
        what = daily_sums.other_pairs(other, sums)
        if what is not None:
            raise AqnetError(
                f"{run.sums.parent}: was scored over other {what} than the runs before; remove "
                "the `evaluation` folders of all runs, and give the same --max-samples from then on"
            )
        if other.given != sums.given:
            raise AqnetError(
                f"{run.sums.parent}: weather to come {sums.given!r}, of the runs before "
                f"{other.given!r}; remove the `evaluation` folders of all runs"
            )
    done.setdefault(run.name, {})[run.seed] = sums


def finished(runs: Sequence[Run], options: argparse.Namespace) -> Iterator[Run]:
    """Train and score the runs, some at once; yields each when it is done."""
    with ThreadPoolExecutor(options.at_once) as pool, processes() as start:
        futures: dict[Future[None], Run] = {
            pool.submit(train_and_score, run, options, start): run for run in runs
        }
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            start.stop()


class Processes:
    """Commands under way, which all end when this one does."""

    def __init__(self) -> None:
        self._lock, self._running, self._stopped = threading.Lock(), set[Any](), False

    def run(self, command: list[str], log: Path) -> None:
        """Run to the end, with the output in `log`.

        Raises:
            AqnetError: it failed, or was stopped; its last line is repeated.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            with self._lock:
                if self._stopped:
                    raise AqnetError("stopped")
                environment = {"OMP_NUM_THREADS": "1", **os.environ}
                process = subprocess.Popen(
                    command, stdout=file, stderr=subprocess.STDOUT, env=environment
                )
                self._running.add(process)
            status = process.wait()
            with self._lock:
                self._running.discard(process)
        if status != 0:
            lines = log.read_text(encoding="utf-8").strip().splitlines() or ["no output"]
            raise AqnetError(f"{Path(command[1]).name} ended with {status}; {log}: {lines[-1]}")

    def stop(self) -> None:
        """End what runs: train.py writes a checkpoint first."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


@contextmanager
def processes() -> Iterator[Processes]:
    """Commands that end with the block, also on SIGTERM."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield Processes()
    finally:
        signal.signal(signal.SIGTERM, before)


def train_and_score(run: Run, options: argparse.Namespace, start: Processes) -> None:
    """Train from the last checkpoint on, then score."""
    here = [f"run_dir={run.folder}", f"seed={run.seed}", *options.overrides]
    log = run.folder.with_name(run.folder.name + ".log")  # a name may hold a dot
    start.run([sys.executable, str(SCRIPTS / "train.py"), "--config", str(run.file), *here], log)
    status = (run.folder / "status").read_text().strip()
    if status != "finished":
        raise AqnetError(f"{run.folder}: training ended {status}; start the same command again")
    score = ["--checkpoint", str(run.folder), "--output", str(run.folder / "evaluation")]
    score += ["--max-samples", str(options.max_samples), "--save-forecasts", "0", "--no-pictures"]
    start.run([sys.executable, str(SCRIPTS / "evaluate.py"), *score], log)


def scores(done: Done) -> str:
    """RMSE over that of the reference, the geometric mean over targets and mean over seeds."""
    leads = next(iter(next(iter(done.values())).values())).lead_times
    heads = "".join(f"{lead:7d}h" for lead in leads)
    lines = [f"{'RMSE / ' + REFERENCE:24s}{'seeds':>6s}{heads}{'mean':>8s}"]
    for name, seeds in done.items():
        logs = np.mean([_log_ratio(sums).mean(-1) for sums in seeds.values()], axis=0)
        values = "".join(f"{np.exp(value):8.3f}" for value in (*logs, logs.mean()))
        lines.append(f"{name:24s}{len(seeds):6d}{values}")
    weather = _weather(done)
    return "\n".join(lines if weather is None else [f"aqnet {page.given(weather)}:", *lines])


def _weather(done: Done) -> str | None:
    """The weather to come that all runs were given."""
    return next(iter(next(iter(done.values())).values())).given


def _log_ratio(sums: Daily) -> daily_sums.Values:
    """log(RMSE / RMSE of the reference), shape [K, T]."""
    reference = list(sums.forecasts).index(REFERENCE)
    errors = sums.errors[..., 0].sum(0)
    ratio: daily_sums.Values = 0.5 * np.log(errors[0] / errors[reference])
    return ratio


def differences(done: Done) -> list[dict[str, Any]]:
    """Change of RMSE against the base in per cent, a row per variant, lead time and target.

    `all` is the geometric mean over the targets. Only seeds that both have are paired.
    """
    rows = []
    for name in (name for name in done if name != BASE):
        seeds = sorted(done[name].keys() & done[BASE].keys())
        pairs = [(done[BASE][seed], done[name][seed]) for seed in seeds]
        each, change, low, high = daily_sums.change_of_rmse(pairs)
        first = pairs[0][0]
        for lead, target in np.ndindex(change.shape):
            key = (*first.targets, "all")[target]
            row = {"variant": name, "pollutant": key, "lead_time_hours": first.lead_times[lead]}
            row |= {"rmse_change_percent": change[lead, target]}
            row |= {"low": low[lead, target], "high": high[lead, target]}
            row |= {} if first.given is None else {"weather": first.given}
            row |= {f"seed{seed}": each[number, lead, target] for number, seed in enumerate(seeds)}
            rows.append(row)
    return rows


def verdicts(rows: list[dict[str, Any]]) -> str:
    """The rows over all targets in words."""
    weather = rows[0].get("weather") if rows else None
    lines = [
        f"{page.titled('Change of RMSE', weather)} against the base, "
        "geometric mean over the pollutants, with a paired 95 % "
        "interval (bootstrap of seeds and of blocks of 10 days; of three seeds it is about their "
        "range, which leaves out 0 in one case of four though nothing differs):"
    ]
    for row in (row for row in rows if row["pollutant"] == "all"):
        change, low, high = row["rmse_change_percent"], row["low"], row["high"]
        verdict = "better" if high < 0 else "worse" if low > 0 else "no difference shown"
        verdict = verdict if low <= high else "no interval: too few days"
        each = ", ".join(f"{row[key]:+.2f}" for key in row if key.startswith("seed"))
        values = f"{change:+6.2f} % ({low:+.2f} to {high:+.2f})"
        lead = row["lead_time_hours"]
        lines.append(f"{row['variant']:24s}{lead:4d} h  {values}  {verdict}; by seed {each}")
    return "\n".join(lines)
