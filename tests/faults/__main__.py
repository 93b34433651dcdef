"""Inject faults by the hundred: python -m tests.faults [PART ...]

`make faults` runs all parts with the counts of docs/reliability.md and writes the rows of each into
its table as soon as the part is made; the rows of other parts stay.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from tests.conftest import REPOSITORY, prepared
from tests.faults import damage, disk, killed, soak, stores
from tests.test_kills import assert_same_run
from tests.test_kills import train as train_and_kill

DOCS = REPOSITORY / "docs/reliability.md"
BEGIN, END = "<!-- cases: written by python -m tests.faults -->", "<!-- end of cases -->"
PARTS = ("kills", "files", "stores", "configs", "disks", "tests", "soak")
TESTS = (  # those of the other files of this folder, their long part too
    ("a rank, the launcher or the holder of the store stops or dies", "frozen", "starting"),
    ("NaN, infinities, empty batches, a rate far too high", "numbers"),
    ("SIGTERM, SIGSTOP, kills of an evaluation, two into one folder", "interrupted"),
    ("malicious pickles, archives, names; listeners", "security"),
    ("checkpoints mistyped or larger than they are", "damaged_checkpoints"),
)


class Row(NamedTuple):
    """A line of the table."""

    fault: str
    cases: int
    outcome: str


def kills(tree: dict[str, Any], folder: Path, number: int, seed: int) -> list[Row]:
    """Half of the kills at 2, half at 3 processes, each against an undisturbed run; a tenth as many
    of torchrun, and of an evaluation."""
    rows = []
    config = folder / "kills.yaml"
    config.write_text(yaml.safe_dump(tree))
    for processes in (2, 3):
        share = number // 2 if processes == 3 else number - number // 2
        if share == 0:
            continue
        length = (f"train.max_steps={3 * share + 6}", "train.effective_batch=48")
        whole, broken = (folder / f"{name}{processes}" for name in ("whole", "broken"))
        train_and_kill(config, whole, processes, 0, *length)
        log = train_and_kill(config, broken, processes, share, *length)
        assert_same_run(whole, broken)
        hit = [phase for kill in log for phase in kill["phases"]]
        where = ", ".join(f"{hit.count(name)} in {name}" for name in sorted(set(hit)))
        rows.append(
            Row(
                f"SIGKILL of one of {processes} processes or of all",
                len(log),
                f"same bits as undisturbed ({where})",
            )
        )
    few, same = -(-number // 10), "and the same bits as undisturbed"
    done = killed.torchrun(config, folder, few, seed)
    rows.append(Row("SIGKILL of `torchrun`, with 2 processes", done, f"no process left, {same}"))
    done = killed.evaluation(folder / "torchrun_whole", folder, few, seed)
    rows.append(Row("SIGKILL of `evaluate.py`", done, f"no results or whole ones, {same}"))
    return rows


def files(folder: Path, number: int, seed: int) -> list[Row]:
    good = damage.original(folder / "good")
    for name, harm in damage.cases(number - number // 2, seed):
        named(name, damage.check, good, folder, harm)
    best_first = damage.with_best_first(folder / "best_first")
    for name, harm in damage.cases(number // 2, seed + 1):
        named(f"of the best: {name}", damage.check_best, best_first, folder, harm)
    for pointer in damage.POINTERS:
        for target in damage.TARGETS:
            named(f"{pointer} {target!r}", damage.check_pointer, good, folder, pointer, target)
    return [
        Row(
            "a file of the newest checkpoint cut, flipped, emptied, replaced",
            number - number // 2,
            "none loaded as good; the one before used and named",
        ),
        Row(
            "a file of the best checkpoint, not the newest, cut, flipped, emptied, replaced",
            number // 2,
            "none left as the best; the best whole one named, and kept from then on",
        ),
        Row(
            "`latest` or `best` that names nothing, leads out or is no file",
            len(damage.POINTERS) * len(damage.TARGETS),
            "none followed; each named and mended",
        ),
    ]


def metadata(folder: Path, number: int, seed: int) -> list[Row]:
    good = stores.original(folder / "stores")
    outcomes = [
        named(
            f"{kind.__name__} {seed + at}",
            stores.check,
            good,
            folder,
            kind,
            random.Random(seed + at),
        )
        for at in range(number)
        for kind in [stores.KINDS[at % len(stores.KINDS)]]
    ]
    read = outcomes.count("read")
    return [
        Row(
            "metadata or index of a store edited at random",
            number,
            f"{number - read} refused in one line, {read} read as written, at most 1 GiB taken",
        )
    ]


def named(name: str, check: Callable[..., Any], *arguments: Any) -> Any:
    """`check(*arguments)`, whose failure names the case."""
    try:
        return check(*arguments)
    except Exception as error:
        raise RuntimeError(f"case {name}: {error}") from error


def tested(fault: str, *names: str, **counts: str) -> Row:
    """Run test files of this folder, their long part too; how many tests passed."""
    paths = [f"tests/faults/test_{name}.py" for name in names]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "", *paths],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **counts},
    )
    if result.returncode:
        raise RuntimeError(f"{', '.join(paths)}:\n{result.stdout[-5000:]}")
    dots = re.findall(r"^([.s]+) +\[ *\d+%\]$", result.stdout, re.MULTILINE)
    passed, skipped = (sum(line.count(sign) for line in dots) for sign in ".s")
    return Row(fault, passed, "as promised" + (f" ({skipped} skipped)" if skipped else ""))


def merged(before: str, part: str, rows: list[Row], made: str) -> str:
    """The table's lines `before` with the rows of `part` in place of those it had."""
    kept = [line for line in before.splitlines() if re.match(r"\| [a-z]+ \|", line)]
    kept = [line for line in kept[1:] if not line.startswith(f"| {part} |")]
    new = [f"| {part} | {row.fault} | {row.cases:,} | {row.outcome} | {made} |" for row in rows]
    lines = sorted([*kept, *new], key=lambda line: PARTS.index(line.split()[1]))
    return "\n".join(["| part | fault | cases | outcome | made |", "|---|---|---|---|---|", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--stores", type=int, default=500)
    parser.add_argument("--configs", type=int, default=500)
    parser.add_argument("--disks", type=int, default=30, help="sizes of a full disk")
    parser.add_argument("--soak", type=float, default=30.0, metavar="MINUTES")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="the table of docs/reliability.md")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: no such part; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    for part in options.parts or PARTS:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as name:
            rows = rows_of(part, Path(name), options)
        minutes = (time.monotonic() - start) / 60
        for row in rows:
            print(json.dumps(row._asdict()), flush=True)
        if options.write:
            made = f"{datetime.now(UTC):%Y-%m-%d}, {minutes:.0f} min, torch {torch.__version__}"
            before, _, rest = DOCS.read_text().partition(f"{BEGIN}\n")
            rows_before, _, after = rest.partition(END)
            text = merged(rows_before, part, rows, made)
            DOCS.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def rows_of(part: str, folder: Path, options: argparse.Namespace) -> list[Row]:
    match part:
        case "kills":
            return kills(prepared(folder / "tiny"), folder, options.kills, options.seed)
        case "files":
            return files(folder, options.files, options.seed)
        case "stores":
            return metadata(folder, options.stores, options.seed)
        case "configs":
            return [config_edits(options.configs)]
        case "disks":
            return [disks(options.disks, folder)]
        case "soak":
            return [Row(*soak.row(prepared(folder / "tiny"), folder, options.soak))]
    return [tested(fault, *names) for fault, *names in TESTS]


def config_edits(number: int) -> Row:
    row = tested(
        "edits of a valid config, YAML that no config needs",
        "configs",
        AQNET_FAULTS_CONFIGS=str(number),
    )
    return row._replace(
        cases=number + row.cases - 1, outcome="a start and a plan, or one line and status 2"
    )


def disks(number: int, folder: Path) -> Row:
    """Each command that a test put on such a disk is a case; `disk.check` notes them."""
    tried = folder / "tried"
    row = tested(
        f"a disk with up to {number + 1} amounts of room left, or read-only",
        "disk",
        AQNET_FAULTS_DISKS=str(number),
        **{disk.TRIED: str(tried)},
    )
    if not tried.exists():  # all were skipped
        return row._replace(cases=0)
    told = "one line, status 2, what was there intact; goes on with room"
    return row._replace(cases=len(tried.read_text().splitlines()), outcome=told)


if __name__ == "__main__":
    main()
