"""How each format is opened: NetCDF (also inside an archive), Zarr v2 and v3, GRIB and GeoTIFF, all
as xarray's lazy variables without CF decoding."""

from __future__ import annotations

import importlib
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from aqnet.data.sources.files import caqra
from aqnet.errors import AqnetError, one_line

# what damaged files make the libraries raise
DAMAGE = (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, struct.error)
_GRIB, _GEOTIFF = (".grib", ".grib2", ".grb", ".grb2"), (".tif", ".tiff")


@contextmanager
def variables_of(path: Path) -> Iterator[tuple[Mapping[Any, Any], dict[str, Any]]]:
    """The variables of a file or (a directory) of a Zarr store, and what marks values in them that
    were never written where they say nothing, by `numpy.dtype.str` without endianness.

    Raises:
        AqnetError: it is none, damaged, or what reads it is not installed.
    """
    try:
        for module in ("xarray", "cf_xarray", "netCDF4"):
            importlib.import_module(module)
    except ImportError:
        raise AqnetError(
            f"{path}: reading source files needs xarray, cf_xarray and netCDF4; "
            "pip install 'aqnet[convert]'"
        ) from None
    kind, opener, fills = "this file as NetCDF", _netcdf, _netcdf_fills()
    if path.is_dir():
        kind, opener, fills = "this directory as Zarr", _zarr, {}
    elif path.suffix in _GRIB:
        kind, opener, fills = "this file as GRIB", _grib, {}
    elif path.suffix in _GEOTIFF:
        kind, opener, fills = "this file as GeoTIFF", _geotiff, {}
    try:
        opened, variables = opener(path)
    except DAMAGE as error:
        raise AqnetError(f"{path}: cannot read {kind}: {one_line(error)}") from None
    try:
        yield variables, fills
    finally:
        opened.close()


def _netcdf(path: Path) -> tuple[Any, Mapping[Any, Any]]:
    import netCDF4
    from xarray.backends import NetCDF4DataStore

    if caqra.is_archive(path.parent):
        store = NetCDF4DataStore(netCDF4.Dataset(path.name, memory=caqra.member(path)))
    else:
        store = NetCDF4DataStore(netCDF4.Dataset(str(path)))
    return store, store.load()[0]


@cache
def _netcdf_fills() -> dict[str, Any]:
    """What NetCDF puts where nothing was written; bytes have no such value (NUG)."""
    import netCDF4

    return {
        kind: fill
        for kind, fill in netCDF4.default_fillvals.items()
        if kind[0] in "fiu" and kind[1:] != "1"
    }


def _zarr(path: Path) -> tuple[Any, Mapping[Any, Any]]:
    """A store by the metadata of its arrays, not by a consolidated copy, which may be older.

    What marks missing values is the attribute `_FillValue` (floats as base64 where xarray wrote
    it), else the array's fill value, of which 0 is every writer's default and marks nothing.
    """
    import zarr
    from xarray.backends import ZarrStore
    from xarray.backends.zarr import FillValueCoder

    group = zarr.open_group(path, mode="r", use_consolidated=False)
    store = ZarrStore(group, mode="r", use_zarr_fill_value_as_mask=True)
    variables = store.load()[0]
    for name, variable in variables.items():
        array: Any = store.members[name]
        mark: Any = array.attrs.get("_FillValue")
        if isinstance(mark, str) and mark.endswith("="):
            mark = FillValueCoder.decode(mark, array.dtype)
        if mark is None and array.fill_value:
            mark = array.fill_value
        variable.attrs.pop("_FillValue", None)
        if mark is not None:
            variable.attrs["_FillValue"] = mark
    return store, variables


def _grib(path: Path) -> tuple[Any, Mapping[Any, Any]]:
    import xarray

    _with("cfgrib", path)
    options = {"indexpath": ""}  # nothing is written beside the file
    dataset = xarray.open_dataset(path, engine="cfgrib", decode_cf=False, backend_kwargs=options)
    return dataset, dataset.variables


def _geotiff(path: Path) -> tuple[Any, Mapping[Any, Any]]:
    """A GeoTIFF whose rows and columns follow degrees.

    Raises:
        AqnetError: it is projected.
    """
    dataset = _with("rioxarray", path).open_rasterio(path).to_dataset(name="band_data")
    if dataset.rio.crs is None or not dataset.rio.crs.is_geographic:
        raise AqnetError(
            f"{path}: is in the reference system {dataset.rio.crs}; expected degrees: warp it with "
            "gdalwarp -t_srs EPSG:4326"
        )
    for dim, name in ((dataset.rio.y_dim, "latitude"), (dataset.rio.x_dim, "longitude")):
        dataset[dim].attrs["standard_name"] = name
    return dataset, dataset.variables


def _with(module: str, path: Path) -> Any:
    """The imported `module`, which reads the file `path`."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise AqnetError(
            f"{path}: reading {path.suffix} files needs {module}; pip install {module}"
        ) from None


def chunks_without_values(path: Path, name: str) -> str | None:
    """A note where chunks of a Zarr array were never written but read as values, else None.

    That is no damage where a chunk held nothing but the fill value, which writers leave out; but a
    lost chunk looks the same.
    """
    if not path.is_dir():
        return None
    import zarr

    array = zarr.open_group(path, mode="r", use_consolidated=False)[name]
    if not isinstance(array, zarr.Array):
        return None
    lacking = array.nchunks - array.nchunks_initialized
    if lacking == 0 or array.fill_value or "_FillValue" in array.attrs:
        return None
    return (
        f"{lacking:,} of {array.nchunks:,} chunks were never written; they read as "
        f"{array.fill_value}, the fill value"
    )
