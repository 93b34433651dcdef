"""What a training store was made from, and whether one that is there can be used again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from aqnet.config import STATIC_VARIABLES, Config, periods
from aqnet.config.periods import hour_text
from aqnet.data.sources.files.source_file import sizes_and_times
from aqnet.data.sources.several import Sources
from aqnet.data.stores import store
from aqnet.errors import AqnetError


def store_path(config: Config, year: int) -> Path:
    """Where the store of a year is."""
    return Path(config.data.stores) / f"{year}.zarr"


def year_rows(config: Config, sources: Sources, year: int) -> slice:
    """Rows of `sources.times` in a year.

    Raises:
        AqnetError: there is none.
    """
    first, after = periods.intervals((f"{year:04}",))[0]
    start, stop = (int(row) for row in np.searchsorted(sources.times, (first, after)))
    if start == stop:
        raise AqnetError(
            f"{config.data.sources[0].path}: the year {year} of data.split is missing; the files "
            f"hold {hour_text(sources.times[0])} to {hour_text(sources.times[-1])}"
        )
    return slice(start, stop)


def made_from(config: Config, sources: Sources, rows: slice) -> dict[str, Any]:
    """What a store was made from: all that must be the same for the store to be used again."""
    names = (*config.data.stored, *STATIC_VARIABLES)
    return {
        **sources.fingerprint(rows),
        "names": {name: sources.file_name(name) for name in names},
        "units": dict(config.data.units),
        "rows": rows.stop - rows.start,
        "resample": config.data.resample,
        "shape": None if config.data.shape is None else list(config.data.shape),
        "winds": config.data.winds,
        "static_files": {name: _digest(file) for name, file in config.data.static_files.items()},
        "dtype": config.data.dtype,
    }


def is_complete(config: Config, sources: Sources, year: int) -> bool:
    """Whether the store of a year is there and made from these sources with these settings.

    Raises:
        AqnetError: it was made from others, or is damaged.
    """
    path = store_path(config, year)
    if not path.exists():
        return False
    found = store.open_store(path)
    rows = year_rows(config, sources, year)
    expected = made_from(config, sources, rows)
    recorded = found.attributes.get("source", {})
    differing = [key for key in expected if recorded.get(key) != expected[key]]
    if (found.names, found.channels["air"]) != (config.data.stored, config.data.targets):
        differing.append("variables")
    if not {name for name in config.data.variables if name in STATIC_VARIABLES} <= set(
        found.static
    ):
        differing.append("static variables")
    if not np.array_equal(found.time, sources.times[rows]):
        differing.append("times")
    if differing == ["file_sizes_and_times"]:
        raise AqnetError(
            f"{path}: its source files have changed since it was made (sizes or times of "
            "change differ); remove the store to prepare it again"
        )
    if differing:
        raise AqnetError(
            f"{path}: this store was made from another source or with other settings "
            f"({', '.join(differing)} differ); sources are not mixed: give another data.stores "
            "or remove the store"
        )
    return True


def _digest(path: str) -> str:
    """Name, size and time of change of a static file, or a digest of those of a store's files.

    Raises:
        AqnetError: there is none.
    """
    if not Path(path).exists():
        raise AqnetError(f"data.static_files: {path}: no such file or store")
    lines = sizes_and_times(Path(path))
    if Path(path).is_file():
        return lines[0]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
