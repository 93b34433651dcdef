"""CAQRA as distributed: one NetCDF file an hour, `CN-Reanalysis2013010100.nc`, also in daily
`CN-Reanalysis20130101.tar.gz`. Their names tell the hour, so none is opened to learn it.

A member of an archive is spoken of as a path below the archive, `.../x.tar.gz/y.nc`. Archives are
read in memory; nothing is ever written beside them.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np

from aqnet.errors import AqnetError

_HOURLY = re.compile(r"CN-Reanalysis(\d{4})(\d{2})(\d{2})(\d{2})\.nc")
_ARCHIVES = (".tar.gz", ".tgz", ".tar")
_LARGEST_MEMBER = 1 << 30  # bytes; an hour of CAQRA has 8 MB
_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error)


def hour_of(path: Path) -> int | None:
    """The hour since 1970 that a file's name tells, None where it tells none.

    Raises:
        AqnetError: the name tells a date that there is not.
    """
    match = _HOURLY.fullmatch(path.name)
    if match is None:
        return None
    year, month, day, hour = match.groups()
    try:
        return int(np.datetime64(f"{year}-{month}-{day}T{hour}", "h").astype(np.int64))
    except ValueError:
        raise AqnetError(f"{path}: the name tells no date and hour (YYYYMMDDHH)") from None


def is_archive(path: Path) -> bool:
    """Whether a file's name is that of a tar archive."""
    return path.name.endswith(_ARCHIVES)


def expanded(paths: list[Path]) -> list[Path]:
    """`paths` with each archive replaced by its NetCDF members.

    The names inside an archive are found by decompressing it, several at a time.

    Raises:
        AqnetError: an archive is damaged, holds no NetCDF file, or see `_checked`.
    """
    archives = [path for path in paths if is_archive(path)]
    with ThreadPoolExecutor(8) as pool:  # zlib works beside other threads
        found = dict(zip(archives, pool.map(_members, archives), strict=True))
    return [file for path in paths for file in found.get(path, [path])]


def member(path: Path) -> bytes:
    """The bytes of a member of an archive, by its path below the archive.

    Raises:
        AqnetError: see `expanded`.
    """
    try:
        return _contents(path.parent)[path.name]
    except KeyError:
        raise AqnetError(f"{path.parent}: holds no {path.name}") from None


@lru_cache(maxsize=1)  # a block of hours takes the members of one day after another
def _contents(archive: Path) -> dict[str, bytes]:
    return dict(_each(archive, read=True))


def _members(archive: Path) -> list[Path]:
    found = [archive / name for name, _ in _each(archive, read=False)]
    if not found:
        raise AqnetError(f"{archive}: holds no NetCDF file (*.nc)")
    if len(set(found)) < len(found):
        raise AqnetError(f"{archive}: holds two files of one name")
    return found


def _each(archive: Path, read: bool) -> Iterator[tuple[str, bytes]]:
    """Name and content (b"" unless `read`) of each NetCDF member."""
    try:
        with tarfile.open(archive, "r|*") as tar:
            for item in tar:
                _check(archive, item)
                if item.isfile() and item.name.endswith(".nc"):
                    stream = tar.extractfile(item) if read else None
                    yield PurePosixPath(item.name).name, b"" if stream is None else stream.read()
    except _DAMAGE as error:
        raise AqnetError(f"{archive}: cannot read this archive ({error}); get it again") from None


def _check(archive: Path, item: tarfile.TarInfo) -> None:
    """Refuse members that no archive of data needs.

    Raises:
        AqnetError: a path that is absolute or leads out of the archive, a link or a device, or a
            file too large for an hour of data.
    """
    parts = PurePosixPath(item.name)
    if parts.is_absolute() or ".." in parts.parts:
        reason = "a path that leads out of the archive"
    elif not (item.isfile() or item.isdir()):
        reason = "a link or a special file"
    elif item.size > _LARGEST_MEMBER:
        reason = f"{item.size / 1e9:.1f} GB large"
    else:
        return
    raise AqnetError(
        f"{archive}: the member {item.name!r} is {reason}; such archives are not read: get it "
        "again from where it is published, or unpack it yourself and name the files"
    )
