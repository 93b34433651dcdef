"""What `aqnet.data.inspect` finds in a file or store, as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aqnet.config.periods import hour_text
from aqnet.data.sources import limits
from aqnet.data.sources.units import Conversion
from aqnet.errors import AqnetError

Array = NDArray[Any]

_SHOWN = 5  # of many alike


@dataclass
class Variable:
    """What was found in a field so far; its hours are read once.

    Attributes:
        convert: from the file's unit `file_unit` to the one in which its figures are.
        values, present: how many values there are, and how many are not missing.
        marked: how many of the missing are -999.
        sums, counts: per cell, shape [H, W]; None before the first block.
        beyond: how often each value is there that cannot be, as in the file.
        beyond_rows: hours in which there are such values.
    """

    name: str
    convert: Conversion
    file_unit: str
    values: int = 0
    present: int = 0
    marked: int = 0
    low: float = np.inf
    high: float = -np.inf
    sums: Array | None = None
    counts: Array | None = None
    beyond: Counter[float] = field(default_factory=Counter)
    beyond_rows: list[int] = field(default_factory=list)

    def add(self, first_row: int, block: Array, cells: int) -> NDArray[np.bool_]:
        """Take in [n, H, W] in the file's unit (NaN = missing), of which `cells` of H x W count;
        returns in which of the n some value is present."""
        block, marked = limits.without_codes(block, ())
        self.marked += marked
        if limits.beyond(block, self.name, self.convert):
            for row, hour in enumerate(block):
                for wrong in limits.beyond(hour, self.name, self.convert):
                    self.beyond[wrong.value] += wrong.number
                    self.beyond_rows.append(first_row + row)
        there = np.isfinite(block)
        kept = np.where(there, block * self.convert.factor + self.convert.offset, 0.0)
        self.values += len(block) * cells
        self.present += int(there.sum())
        self.low = min(self.low, float(np.where(there, kept, np.inf).min()))
        self.high = max(self.high, float(np.where(there, kept, -np.inf).max()))
        sums, counts = kept.sum(0, dtype=np.float64), there.sum(0)
        self.sums = sums if self.sums is None else self.sums + sums
        self.counts = counts if self.counts is None else self.counts + counts
        return np.asarray(there.any((1, 2)))

    def problem(self, when: Callable[[list[int]], str]) -> str:
        """A line on its impossible values; `when` puts hours in words."""
        shown = ", ".join(
            f"{limits.shown(value)} ({count:,} values)"
            for value, count in self.beyond.most_common(_SHOWN)
        )
        more = ", ..." if len(self.beyond) > _SHOWN else ""
        low, high = limits.limits(self.name, self.convert.unit)
        hours = when(sorted(set(self.beyond_rows)))
        return (
            f"{self.name!r} holds {shown}{more} {self.file_unit} in {hours}; possible are "
            f"{low:,g} to {high:,g} {self.convert.unit}"
        )

    def mean_map(self) -> Array:
        """Mean of each cell, NaN where it never has a value, shape [H, W]."""
        assert self.sums is not None
        assert self.counts is not None
        mean: Array = np.where(self.counts > 0, self.sums / np.maximum(self.counts, 1), np.nan)
        return mean

    def row(self) -> str:
        """Its line of the table."""
        missing = 1 - self.present / max(self.values, 1)
        text = f"  {self.name:<12} {self.convert.unit:<10} {missing:>8.1%}"
        if self.present:
            assert self.sums is not None
            mean = float(self.sums.sum()) / self.present
            text += "".join(f" {_number(value):>11}" for value in (self.low, mean, self.high))
        return text + (f"   {self.marked:,} values are -999" if self.marked else "")


@dataclass
class Findings:
    """Facts, a table of fields, and problems.

    Attributes:
        times: hours since 1970 UTC as they stand in the file, None where unreadable.
        lat, lon: degrees, [H, W]; mask: the domain of a training store.
        unusable: fields that could not be read, so that nothing is known of them.
    """

    path: Path
    kind: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    times: NDArray[np.int64] | None = None
    lat: Array | None = None
    lon: Array | None = None
    mask: Array | None = None
    unusable: list[str] = field(default_factory=list)
    _damage: list[str] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set)  # rows with a value of some field
    _lost: set[int] = field(default_factory=set)  # rows that cannot be read in some field

    def set_times(self, times: NDArray[np.int64]) -> None:
        """Note the times, their step and gaps, and what is wrong with them."""
        self.times = times
        if len(times) == 0:
            self.problems.append("there is no time in it")
            return
        steps = np.diff(times)
        unique, copies = np.unique(times, return_counts=True)
        for hours, what in (
            (unique[copies > 1], "duplicated times"),
            (times[1:][steps < 0], "times out of order"),
        ):
            if len(hours):
                self.problems.append(f"{what}: {_some(hours)}")
        forward = np.diff(unique)
        step = int(np.bincount(forward).argmax()) if len(forward) else 1
        self.facts["times"] = f"{len(times):,}, every {step} h, {self.span()} UTC"
        self.facts["years"] = ", ".join(_years(unique, step))
        gaps = np.flatnonzero(forward > step)
        described = [
            f"{int(forward[at] // step) - 1} after {hour_text(unique[at])}" for at in gaps[:_SHOWN]
        ]
        more = f" and {len(gaps) - _SHOWN} more" if len(gaps) > _SHOWN else ""
        lost = int((forward[gaps] // step - 1).sum())
        self.facts["gaps"] = (
            f"{len(gaps)} with {lost} times: {', '.join(described)}{more}" if len(gaps) else "none"
        )

    def set_grid(self, lat: Array, lon: Array, mask: Array | None) -> None:
        """Note the coordinates and the domain."""
        self.lat, self.lon, self.mask = lat, lon, mask
        order = "north to south" if lat[0, 0] > lat[-1, 0] else "south to north"
        self.facts["grid"] = (
            f"{lat.shape[0]} x {lat.shape[1]}, rows run {order}, latitude {lat.min():.2f} to "
            f"{lat.max():.2f}, longitude {lon.min():.2f} to {lon.max():.2f}"
        )
        if mask is not None:
            self.facts["domain"] = f"{mask.sum():,} of {mask.size:,} cells ({mask.mean():.1%})"

    def span(self) -> str:
        """First and last time."""
        if self.times is None or len(self.times) == 0:
            return "unknown times"
        return f"{hour_text(self.times.min())} to {hour_text(self.times.max())}"

    def begin(self, name: str, convert: Conversion, file_unit: str) -> Variable:
        """A new field of the table, to which `add` gives blocks."""
        self.variables[name] = Variable(name, convert, file_unit)
        return self.variables[name]

    def add(self, variable: Variable, block: Array, first_row: int | None) -> None:
        """Add hours [n, H, W] of a field, in the file's unit, from `first_row` on (None: it has no
        time axis)."""
        cells = block[0].size
        if self.mask is not None:
            block, cells = np.where(self.mask, block, np.nan), int(self.mask.sum())
        there = variable.add(first_row or 0, block, cells)
        if first_row is not None:
            self._seen.update((first_row + np.flatnonzero(there)).tolist())

    def unreadable(self, rows: slice, error: AqnetError) -> None:
        """Note that some hours cannot be read."""
        self._damage.append(str(error))
        self._lost.update(range(rows.start, rows.stop))

    def conclude(self, steps: int) -> None:
        """Name the problems that only show when all `steps` hours have been read."""
        self.problems += self._damage[:_SHOWN]
        if len(self._damage) > _SHOWN:
            self.problems.append(f"and {len(self._damage) - _SHOWN} more pieces like these")
        empty = sorted(set(range(steps)) - self._seen - self._lost)
        if not self._seen and not self._lost and not self.unusable:
            self.problems.append("no valid cell: every field is missing everywhere")
        elif empty and not self.unusable:
            self.problems.append(
                f"hours in which every field is missing everywhere: {self._when(empty)}"
            )
        for variable in self.variables.values():
            if variable.beyond:
                self.problems.append(variable.problem(self._when))

    def text(self) -> str:
        """All of it, for the terminal."""
        lines = [f"{self.path}: {self.kind}".rstrip(": ")]
        lines += [f"  {label:<12} {text}" for label, text in self.facts.items()]
        if self.variables:
            where = "missing" if self.mask is None else "missing*"
            lines += ["", f"  {'field':<12} {'unit':<10} {where:>8}"]
            lines[-1] += "".join(f" {name:>11}" for name in ("lowest", "mean", "highest"))
            lines += [variable.row() for variable in self.variables.values()]
            if self.mask is not None:
                lines.append("  * this and the values: inside the domain")
        if self.problems:
            count = len(self.problems)
            lines += ["", f"{count} problem{'s' if count > 1 else ''}:"]
            lines += [f"  - {problem}" for problem in self.problems]
        else:
            lines += ["", "no problem found"]
        return "\n".join(lines)

    def _when(self, rows: list[int]) -> str:
        if self.times is None or max(rows) >= len(self.times):
            return f"{len(rows)} steps, the first is number {rows[0]}"
        return _some(self.times[rows])


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def _some(hours: NDArray[np.int64]) -> str:
    shown = ", ".join(hour_text(hour) for hour in hours[:_SHOWN])
    return f"{len(hours)} ({shown}{', ...' if len(hours) > _SHOWN else ''})"


def _years(hours: NDArray[np.int64], step: int) -> list[str]:
    """How much of each year there is."""
    years = hours.astype("datetime64[h]").astype("datetime64[Y]")
    described = []
    for year in np.unique(years):
        length = (year + 1).astype("datetime64[h]") - year.astype("datetime64[h]")
        whole, here = int(length.astype(int)) // step, int((years == year).sum())
        described.append(f"{year} ({'whole' if here == whole else f'{here:,} of {whole:,} times'})")
    return described
