"""One source file as xarray reads it: NetCDF (also inside an archive), Zarr v2 and v3, GRIB and
GeoTIFF, with the attributes that say what its values mean applied."""

from __future__ import annotations

import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aqnet.data.sources.files import caqra
from aqnet.data.sources.files.cells import Cells, cells_of
from aqnet.data.sources.files.formats import DAMAGE, variables_of
from aqnet.data.sources.files.times import Times, times_of
from aqnet.errors import AqnetError, one_line

_MARKS = ("_FillValue", "missing_value")
_LIMITS = ("valid_range", "valid_min", "valid_max")
_NUMBERS = (*_MARKS, *_LIMITS, "scale_factor", "add_offset")

# what says the meaning of a coordinate (CF, THREDDS, GFDL, GrADS)
_MEANING = ("standard_name", "units", "axis", "_CoordinateAxisType", "cartesian_axis", "grads_dim")

Floats = NDArray[np.float32] | NDArray[np.float64]


class SourceFile:
    """What a file holds, read when asked for.

    Attributes:
        path: the file or store; `ARCHIVE.tar.gz/FILE.nc` in an archive.
        names: of its variables, coordinates included.
    """

    def __init__(
        self, path: Path, variables: Mapping[Any, Any], default_fills: dict[str, Any]
    ) -> None:
        """`variables`: xarray's, lazy and without CF decoding; `default_fills`: what marks values
        that were never written where a variable says nothing, by `numpy.dtype.str` without
        endianness."""
        self.path, self._variables, self._default_fills = path, variables, default_fills
        self.names = tuple(str(name) for name in variables)
        self._ready: dict[str, Any] = {}

    def attribute(self, name: str, key: str) -> Any:
        """An attribute of a variable, None where it has none."""
        return self._variables[name].attrs.get(key)

    def unit(self, name: str) -> str | None:
        """The units attribute of a variable, None where it has none."""
        found = self.attribute(name, "units")
        return None if found is None else str(found)

    def kind(self, name: str) -> str:
        """The kind of a variable's values, as in `numpy.dtype.kind`."""
        return str(self._variables[name].dtype.kind)

    def dims(self, name: str) -> tuple[str, ...]:
        """Names of a variable's dimensions."""
        return tuple(str(dim) for dim in self._variables[name].dims)

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of a variable's dimensions."""
        return tuple(self._variables[name].shape)

    def chunk(self, name: str) -> tuple[int, ...] | None:
        """The shape of what is read at once, None where a variable lies in one piece."""
        encoding = self._variables[name].encoding
        found = encoding.get("shards") or encoding.get("chunks") or encoding.get("chunksizes")
        return None if found is None or encoding.get("contiguous") else tuple(found)

    @cached_property
    def bounds(self) -> set[str]:
        """Variables that hold bounds of others."""
        keys = ("bounds", "climatology")
        return {str(self.attribute(name, key)) for name in self.names for key in keys}

    def meaning(self, what: str) -> list[str]:
        """Variables that their attributes say to be a `latitude`, `longitude`, `X` or `Y`."""
        variables = tuple(
            (name, *(str(self.attribute(name, key) or "") for key in _MEANING))
            for name in self.names
        )
        return _meanings(variables).get(what, [])

    @cached_property
    def cells(self) -> Cells:
        """The grid; see `cells_of`."""
        return cells_of(self)

    @cached_property
    def times(self) -> Times:
        """The time axis; see `times_of`. CAQRA's files tell their hour by their names."""
        hour = caqra.hour_of(self.path)
        return times_of(self) if hour is None else Times((), (), np.array([hour]))

    def layout(self, name: str, timed: bool) -> tuple[tuple[str, ...], dict[str, int]]:
        """The dimensions of a field in the order (times, y, x), and those of size 1 besides.

        Args:
            timed: whether the field has a value for each hour of the file.
        Raises:
            AqnetError: names what is too many or too few.
        """
        sizes = dict(zip(self.dims(name), self.shape(name), strict=True))
        where = f"{self.path}: variable {name!r} has dimensions {self.dims(name)}"
        y, x = self.cells.y, self.cells.x
        lacking = [dim for dim in (y, x) if dim not in sizes]
        along = [dim for dim in self.times.dims if dim in sizes] if timed else []
        if timed and int(np.prod([sizes[dim] for dim in along])) != len(self.times.valid):
            lacking = [dim for dim in self.times.dims if dim not in along] or ["time"]
        others = {dim: size for dim, size in sizes.items() if dim not in (*along, y, x)}
        if lacking or any(size > 1 for size in others.values()):
            many = ", ".join(f"{size} of {dim!r}" for dim, size in others.items() if size > 1)
            raise AqnetError(
                f"{where} of sizes {tuple(sizes.values())}; expected "
                f"{'times, ' if timed else ''}{y!r} and {x!r} of the grid {self.cells.lat.shape}, "
                + (f"but lacks {', '.join(lacking)}" if lacking else f"but has {many}: cut one out")
            )
        return (*along, y, x), others

    def read(self, name: str, rows: slice | None = None) -> Floats:
        """A field, NaN where missing, north and east as `cells` has them.

        Args:
            rows: of `times.valid`; None for a field without time.
        Returns:
            [rows, H, W], or [H, W] where `rows` is None.
        Raises:
            AqnetError: see `layout`, or the file is damaged.
        """
        dims, others = self.layout(name, rows is not None)
        picks: dict[str, Any] = dict.fromkeys(others, 0)
        first, inner = 0, 1
        if rows is not None and len(dims) > 2:
            sizes = dict(zip(self.dims(name), self.shape(name), strict=True))
            inner = int(np.prod([sizes[dim] for dim in dims[1:-2]]))
            first = rows.start // inner
            picks[dims[0]] = slice(first, -(-rows.stop // inner))
        values = self.values(name, picks, dims)
        if rows is None:
            return values
        values = values.reshape(-1, *values.shape[-2:])
        return values[rows.start - first * inner : rows.stop - first * inner]

    def values(
        self, name: str, picks: Mapping[str, Any] | None = None, dims: tuple[str, ...] = ()
    ) -> NDArray[Any]:
        """All of a variable, or what `picks` takes along dimensions, NaN where missing.

        Args:
            dims: the order of dimensions, where it shall not be the file's.
        Raises:
            AqnetError: the file is damaged.
        """
        try:
            if name not in self._ready:
                self._ready[name] = self._decoded(name)
            variable, limits = self._ready[name]
            part = variable.isel(picks)
            values = np.asarray(part.values)
        except DAMAGE as error:
            detail = one_line(error) or type(error).__name__
            raise AqnetError(
                f"{self.path}: variable {name!r} cannot be read ({detail}); the file is damaged: "
                "get it again"
            ) from None
        if dims and part.dims != dims:
            values = values.transpose([part.dims.index(dim) for dim in dims])
        if values.dtype.kind not in "fiub":
            return values
        values = values.astype(np.float32 if values.dtype == np.float32 else np.float64, copy=True)
        for beyond, limit in limits:
            values[beyond(values, limit)] = np.nan
        return values

    def _decoded(self, name: str) -> tuple[Any, list[tuple[np.ufunc, float]]]:
        """A variable with fill values, scale and sign applied when it is read, and what xarray
        leaves to its users: comparisons that find the values which `valid_range` and the like rule
        out."""
        from xarray.conventions import decode_cf_variable

        raw = self._variables[name]
        if raw.dtype.kind not in "fiu":
            return raw, []
        raw = raw.copy(deep=False)
        raw.attrs = {**raw.attrs, **_numbers(raw.attrs, raw.dtype)}
        if not set(_MARKS) & set(raw.attrs) and raw.dtype.str[1:] in self._default_fills:
            raw.attrs["_FillValue"] = self._default_fills[raw.dtype.str[1:]]
        limits = {key: raw.attrs.pop(key) for key in _LIMITS if key in raw.attrs}
        with warnings.catch_warnings():  # two marks for missing values are no fault
            warnings.simplefilter("ignore")
            decoded = decode_cf_variable(
                name, raw, decode_times=False, concat_characters=False, stack_char_dim=False
            )
        return decoded, _beyond(limits, raw)


def _numbers(attributes: dict[str, Any], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Attributes that are numbers, though Zarr and careless writers keep them as lists or text."""
    found: dict[str, Any] = {}
    for key in _NUMBERS:
        if attributes.get(key) is None:
            continue
        numbers: list[Any] = [
            float(number) if isinstance(number, str) else number
            for number in np.atleast_1d(attributes[key])
        ]
        if key in _MARKS and dtype.kind == "f":
            numbers = [dtype.type(number) for number in numbers]  # 1e20 is none of float32
        elif key in _MARKS:  # what the type cannot hold marks nothing
            kind = np.iinfo(dtype)
            if str(attributes.get("_Unsigned")).lower() == "true":
                numbers = [n - 2**kind.bits if n > kind.max else n for n in numbers]
            whole = [n for n in numbers if float(n).is_integer() and kind.min <= n <= kind.max]
            numbers = [dtype.type(number) for number in whole]
        if numbers:
            found[key] = numbers[0] if len(numbers) == 1 else np.array(numbers)
    return found


def _beyond(limits: dict[str, Any], raw: Any) -> list[tuple[np.ufunc, float]]:
    """Limits of the decoded values; those of packed values are given as packed (NUG, CF 2.5.1)."""
    low, high = limits.get("valid_range", (None, None))
    found: list[tuple[np.ufunc, float]] = []
    for compare, limit in (
        (np.less, limits.get("valid_min", low)),
        (np.greater, limits.get("valid_max", high)),
    ):
        if limit is None:
            continue
        packed = "scale_factor" in raw.attrs or "add_offset" in raw.attrs
        if str(raw.attrs.get("_Unsigned")).lower() == "true" and limit < 0:
            limit = limit + 2 ** (8 * raw.dtype.itemsize)
        if packed and float(limit).is_integer() and not isinstance(limit, np.floating | float):
            scale = float(raw.attrs.get("scale_factor", 1.0))
            half = abs(scale) / 2  # so that rounding decides nothing
            limit = float(limit) * scale + float(raw.attrs.get("add_offset", 0.0))
            if scale < 0:
                compare = np.greater if compare is np.less else np.less
            limit += half if compare is np.greater else -half
        found.append((compare, float(limit)))
    return found


@lru_cache(maxsize=16)  # thousands of files of a source say the same
def _meanings(variables: tuple[tuple[Any, ...], ...]) -> dict[str, list[str]]:
    """cf_xarray's axes and coordinates among variables of these names and attributes; all are
    asked, also those that the file calls no coordinates."""
    import cf_xarray  # noqa: F401 (registers `cf`)
    import xarray

    attributes = {name: dict(zip(_MEANING, rest, strict=True)) for name, *rest in variables}
    asked = {name: ((), 0, found) for name, found in attributes.items()}
    found = xarray.Dataset(coords=asked).cf
    return {**found.axes, **found.coordinates}


@contextmanager
def open_file(path: Path) -> Iterator[SourceFile]:
    """Open a file, or (a directory) a Zarr store, for reading.

    Raises:
        AqnetError: it is none, damaged, or what reads it is not installed.
    """
    with variables_of(path) as (variables, fills):
        yield SourceFile(path, variables, fills)


def sizes_and_times(path: Path) -> list[str]:
    """Name, size and time of change of a file, or of each file of a store."""
    lines = []
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        found = file.stat()
        if not stat.S_ISDIR(found.st_mode):
            lines.append(f"{file.relative_to(path.parent)} {found.st_size} {found.st_mtime_ns}")
    return lines
