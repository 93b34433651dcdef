"""All entries of `data.sources` as one: on the grid and at the hours of the first, each variable
from the first entry that has it, mixing ratios as concentrations."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aqnet.config import Data
from aqnet.config.periods import hour_text
from aqnet.data.regridding.conservative import Regridder
from aqnet.data.sources import limits, units
from aqnet.data.sources.view import Array, Rules, SourceView
from aqnet.errors import AqnetError
from aqnet.grid import same_place

_BYTES_AT_ONCE = 128e6  # of fields of another entry, before they are regridded
_AIR = ("temp", "psfc")  # from which the density of the air follows
COUNTS = ("population",)  # added up where cells are joined, not averaged


class Sources:
    """Hourly fields of several entries, in aqnet's units.

    Attributes:
        times: hours since 1970-01-01 00:00 UTC of the first entry, int64, shape [N], ascending.
        lat, lon: degrees, of the first entry, float64, shape [H, W].
        noise: per variable, how many values between -0.01 and 0 ug/m3 became 0 so far.
    """

    def __init__(self, views: Sequence[SourceView], data: Data) -> None:
        """`views`: of the entries of `data.sources`, in their order.

        Raises:
            AqnetError: an entry covers no cell of the first one's grid.
        """
        self.views, self._data = tuple(views), data
        first = self.views[0]
        self.times, self.lat, self.lon = first.times, first.lat, first.lon
        self.noise: Counter[str] = first.noise
        self._regrids: dict[int, Regridder] = {}
        for number, view in enumerate(self.views):
            view.noise = self.noise
            if not same_place(view.lat, view.lon, self.lat, self.lon):
                self._regrids[number] = Regridder(view.lat, view.lon, self.lat, self.lon)
                covered = self._regrids[number].covered
                if not covered.any():
                    raise AqnetError(
                        f"{data.sources[number].path}: covers no cell of the grid of "
                        f"{data.sources[0].path}"
                    )

    def file_name(self, name: str) -> str:
        """What the files call the variable `name`."""
        return self._home(name)[1].file_name(name)

    def unit(self, name: str) -> str:
        """The unit in which `read` gives a variable: aqnet's own, or the file's where aqnet does
        not know the variable."""
        return units.canonical_unit(name) or self._home(name)[1].unit(name)

    def check_variables(self, names: Sequence[str], rows: slice) -> None:
        """Refuse files of `rows` that cannot give `names` (see `SourceView.check_variables`), and
        print how many hours an entry lacks.

        Raises:
            AqnetError: names the file, the variable and what to do.
        """
        hours = self.times[rows]
        for number, view, mine in self._shared_out(names):
            start, stop = np.searchsorted(view.times, (hours[0], hours[-1] + 1))
            view.check_variables(mine, slice(int(start), int(stop)))
            lacking = hours[~np.isin(hours, view.times)]
            if len(lacking):
                print(
                    f"{self._data.sources[number].path}: {', '.join(mine)} missing at "
                    f"{len(lacking):,} of {len(hours):,} hours, first {hour_text(lacking[0])}",
                    flush=True,
                )
        for name in self._ratios(names):
            if not all(self._home(air)[1].holds(air) for air in _AIR):
                view = self._home(name)[1]
                raise units.no_density(f"{view.files[0]}: variable {view.file_name(name)!r}")
            for air in _AIR:
                self._home(air)[1].unit(air)  # refuses units that it cannot read

    def read(self, names: Sequence[str], rows: slice) -> Array:
        """Fields of `names` at `times[rows]`, in aqnet's units, NaN where missing, winds eastward
        and northward.

        Returns:
            float32, shape [rows, len(names), H, W].
        Raises:
            AqnetError: see `SourceView.read`.
        """
        ratios = self._ratios(names)
        wanted = [*names, *(name for name in _AIR if ratios and name not in names)]
        block = self._gathered(wanted, rows)
        for name in ratios:
            at, (temp, psfc) = wanted.index(name), (block[:, wanted.index(air)] for air in _AIR)
            found = units.concentration(block[:, at], temp, psfc)
            convert = units.Conversion(1.0, 0.0, units.CONCENTRATION)
            origin = f"{name!r}, from a mixing ratio,"
            limits.refuse(found, name, convert, origin, convert.unit, self.times[rows])
            block[:, at], zeroed = units.without_noise(found)
            self.noise[name] += zeroed
        return block if len(wanted) == len(names) else block[:, : len(names)].copy()

    def static(self, name: str) -> Array:
        """A static field in aqnet's unit, NaN where missing, float32, shape [H, W]; see
        `SourceView.static`."""
        number, view = self._home(name)
        found = view.static(name)
        if number in self._regrids:
            found = self._regrids[number](found, counts=name in COUNTS)
        return found

    def fingerprint(self, rows: slice) -> dict[str, Any]:
        """What the fields at `times[rows]` come from; see `SourceView.fingerprint`."""
        hours = self.times[rows]
        edges = (hours[0], hours[-1] + 1) if len(hours) else (0, 0)
        found = [
            view.fingerprint(slice(*(int(row) for row in np.searchsorted(view.times, edges))))
            for view in self.views
        ]
        result, key = found[0], "file_sizes_and_times"
        if len(found) > 1:
            text = "".join(str(each[key]) for each in found)
            result[key] = hashlib.sha256(text.encode()).hexdigest()
        if self._data.missing_values:
            result["missing_values"] = list(self._data.missing_values)
        if self._data.utc_offset:
            result["utc_offset"] = self._data.utc_offset
        return result

    def _home(self, name: str) -> tuple[int, SourceView]:
        """The first entry that has a variable, with its number."""
        for number, view in enumerate(self.views):
            if view.holds(name):
                return number, view
        return 0, self.views[0]

    def _shared_out(self, names: Sequence[str]) -> Iterator[tuple[int, SourceView, list[str]]]:
        for number, view in enumerate(self.views):
            mine = [name for name in names if self._home(name)[0] == number]
            if mine:
                yield number, view, mine

    def _ratios(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if self._home(name)[1].unit(name) == units.MIXING_RATIO]

    def _gathered(self, names: Sequence[str], rows: slice) -> Array:
        if len(self.views) == 1:
            return self.views[0].read(names, rows)
        hours = self.times[rows]
        block = np.full((len(hours), len(names), *self.lat.shape), np.nan, np.float32)
        for number, view, mine in self._shared_out(names):
            regrid = self._regrids.get(number, np.asarray)
            channels = [names.index(name) for name in mine]
            for at, fields in _at_hours(view, mine, hours):
                block[at[:, None], channels] = regrid(fields)
        return block


def _at_hours(
    view: SourceView, names: Sequence[str], hours: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], Array]]:
    """Which of `hours` an entry has, a few at once, and its fields [n, len(names), h, w] then."""
    rows = np.searchsorted(view.times, hours).clip(max=len(view.times) - 1)
    wanted = np.flatnonzero(view.times[rows] == hours)
    at_once = max(1, int(_BYTES_AT_ONCE // (4 * len(names) * view.lat.size)))
    while len(wanted):
        first = int(rows[wanted[0]])
        now = wanted[rows[wanted] < first + at_once]
        fields = view.read(names, slice(first, int(rows[now[-1]]) + 1))
        yield now, fields[rows[now] - first]
        wanted = wanted[len(now) :]


def open_sources(data: Data, write: bool = True) -> Sources:
    """The source files that a config names.

    Args:
        write: whether what archives hold may be kept beside the stores.
    Raises:
        AqnetError: the config names none, or see `SourceView` and `Sources`.
    """
    if not data.sources:
        raise AqnetError("data.sources lists no source; give the path of the files at least")
    kept = Path(data.stores) / ".archives.json"
    return Sources(
        [SourceView(source, Rules.of(data), kept, write) for source in data.sources], data
    )
