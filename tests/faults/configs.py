"""Random edits of valid configs, and what must hold for each: a plan and a start, or one clear line
with status 2."""

from __future__ import annotations

import contextlib
import copy
import io
import sys
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

import train
from aqnet import errors
from aqnet.config.reading import flattened
from aqnet.plan import run as plan

# what a hand or a broken program may write in place of a value
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.sampled_from([0, -1, 10**9, 10**17, 2**31, 2**63, 10**25, 10**4400, -(2**63)]),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["", "no", "12:30", "1e-4", "../..", "/dev/null", "~", "pm25", "u", "\0"]),
    st.lists(
        st.one_of(st.integers(-5, 200), st.sampled_from(["pm25", "2015", "", "x@-24h"])), max_size=4
    ),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
    st.lists(st.lists(st.none(), max_size=2), max_size=2),
)
# text of YAML that no writer of plain values makes
RAW = (
    "!!int x",
    "!!python/object/apply:os.system ['true']",
    "&a [*a]",
    "[" * 3000,
    "9" * 5000,
    "{a: " * 100,
    "? [1]\n: 2",
    "\t",
    "'",
    "%",
    "- [",
    "!",
    "*nothing",
    "\x07",
)


def keys(tree: dict[str, Any]) -> list[str]:
    """Dotted keys of every value and section."""
    flat = list(flattened(tree))
    sections = {key.rpartition(".")[0] for key in flat} - {""}
    return sorted({*flat, *sections})


def near(value: Any) -> st.SearchStrategy[Any]:
    """What a hand might write in place of a value of the same kind."""
    if isinstance(value, bool):
        return st.just(not value)
    if isinstance(value, int | float) and abs(value) < 1e9:
        return st.sampled_from([value * 2, value + 1, value - 1, value / 2, value // 2, 0, -value])
    if isinstance(value, list) and value:
        fewer = st.permutations(value).map(lambda items: items[: max(1, len(items) - 1)])
        return st.one_of(fewer, st.just([*value, value[0]]), st.permutations(value))
    if isinstance(value, str):
        return st.sampled_from([value.upper(), value + "s", value[:-1]])
    return VALUES


@st.composite
def edits(draw: st.DrawFn, tree: dict[str, Any]) -> str:
    """The text of a config with one to three edits."""
    changed = copy.deepcopy(tree)
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        key = draw(st.sampled_from([key for key in keys(tree) if key != "run_dir"]))
        *parents, last = key.split(".")
        section = changed
        for parent in parents:
            if not isinstance(section.get(parent), dict):
                section[parent] = {}
            section = section[parent]
        what = draw(st.sampled_from(["near", "near", "value", "remove", "rename", "raw"]))
        if what == "near" and last in section:
            section[last] = draw(near(section[last]))
        elif what in ("value", "near"):
            section[last] = draw(VALUES)
        elif what == "raw":
            section[last] = f"RAW{draw(st.integers(0, len(RAW) - 1))}WAR"
        elif last in section:
            value = section.pop(last)
            if what == "rename":
                section[last + draw(st.sampled_from(["s", "_", "", "."]))] = value
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        text = yaml.safe_dump(changed)
    finally:
        sys.set_int_max_str_digits(limit)
    for number, raw in enumerate(RAW):
        text = text.replace(f"RAW{number}WAR", raw)
    return text


def check(text: str, folder: Path) -> str:
    """Start a run of one step and make its plan with a config; returns `started` or `refused`.

    Raises:
        AssertionError: something else came of it; the text is in the message.
    """
    path = folder / "edited.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    run_dir = folder / f"run{len(list(folder.glob('run*')))}"
    outcomes = []
    for main, arguments in (
        (train.main, ["--config", str(path), f"run_dir={run_dir}", "train.max_steps=1"]),
        (plan.main, ["--config", str(path)]),
    ):
        status, told = command(main, arguments)
        assert "Traceback" not in told, f"{told}\n--- config:\n{text}"
        last = [line for line in told.splitlines() if line.startswith("error: ")]
        assert status in (0, 2), f"status {status}: {told}\n--- config:\n{text}"
        assert len(last) == (1 if status == 2 else 0), f"{told}\n--- config:\n{text}"
        outcomes.append("started" if status == 0 else "refused")
    return outcomes[0]


def command(main: Any, arguments: list[str]) -> tuple[int, str]:
    """Exit status and what a command told on its error stream."""
    before, told = sys.argv, io.StringIO()
    sys.argv = ["command", *arguments]
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            errors.run(main)
    except SystemExit as end:
        return int(end.code or 0), told.getvalue()
    finally:
        sys.argv = before
    raise AssertionError("errors.run returned")
