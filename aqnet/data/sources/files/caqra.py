"""CAQRA as distributed: one NetCDF file an hour, `CN-Reanalysis2013010100.nc`, also in daily
`CN-Reanalysis20130101.tar.gz`. Their names tell the hour, so none is opened to learn it. Other
archives of NetCDF files (.tar, .zip) are read in the same way.

A member of an archive is named by a path below the archive, `.../x.tar.gz/y.nc`. Archives are read
in memory; nothing is ever written beside them.
"""

from __future__ import annotations

import io
import json
import re
import stat
import tarfile
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath

import numpy as np

from aqnet.errors import AqnetError
from aqnet.files import writing

_HOURLY = re.compile(r"CN-Reanalysis(\d{4})(\d{2})(\d{2})(\d{2})\.nc")
_ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
_LARGEST_MEMBER = 1 << 30  # bytes; an hour of CAQRA has 8 MB
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, zlib.error)


def hour_of(path: Path) -> int | None:
    """The hour since 1970 in a file's name, None where the name has none.

    Raises:
        AqnetError: the date in the name does not exist.
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
    """Whether a file's name is that of an archive."""
    return path.name.endswith(_ARCHIVES)


def expanded(paths: list[Path], kept: Path | None = None, write: bool = True) -> list[Path]:
    """`paths` with each archive replaced by its NetCDF members.

    The names inside an archive are found by decompressing it, several at a time (0.9 s for a day).

    Args:
        kept: a file that keeps what is found, by the archives' sizes and times of change.
        write: whether it may be written.
    Raises:
        AqnetError: an archive is damaged, holds no NetCDF file, or see `_check`.
    """
    archives = {_identity(path): path for path in paths if is_archive(path)}
    known = {} if kept is None else _kept(kept)
    new = {text: path for text, path in archives.items() if text not in known}
    if new:
        print(f"reading what {len(new)} archives hold", flush=True)
        with ThreadPoolExecutor(8) as pool:  # zlib works beside other threads
            known |= zip(new, pool.map(_members, new.values()), strict=True)
        if kept is not None and write:
            beside = kept.with_name(f"{kept.name}.{uuid.uuid4().hex}")  # several may do so at once
            with writing(kept):
                kept.parent.mkdir(parents=True, exist_ok=True)
                beside.write_text(json.dumps(known), encoding="utf-8")
                beside.replace(kept)
    members = {path: [path / name for name in known[text]] for text, path in archives.items()}
    return [file for path in paths for file in members.get(path, [path])]


def _kept(path: Path) -> dict[str, list[str]]:
    try:
        found: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # cut by a power failure: read the archives again
        return {}
    return found


def _identity(archive: Path) -> str:
    found = archive.stat()
    return f"{archive.resolve()} {found.st_size} {found.st_mtime_ns}"


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


def _members(archive: Path) -> list[str]:
    found = [name for name, _ in _each(archive, read=False)]
    if not found:
        raise AqnetError(f"{archive}: holds no NetCDF file (*.nc)")
    if len(set(found)) < len(found):
        raise AqnetError(f"{archive}: holds two files of one name")
    return found


def _each(archive: Path, read: bool) -> Iterator[tuple[str, bytes]]:
    """Name and content (b"" unless `read`) of each NetCDF member."""
    try:
        members = _zipped(archive) if archive.suffix == ".zip" else _tarred(archive)
        for name, size, regular, content in members:
            _check(archive, name, size, regular)
            if name.endswith(".nc"):
                yield PurePosixPath(name).name, content() if read else b""
    except _DAMAGE as error:
        raise AqnetError(f"{archive}: cannot read this archive ({error}); get it again") from None


# name, size, whether it is a file or a folder, and what reads it, of each member in turn
_Member = tuple[str, int, bool, Callable[[], bytes]]


def _tarred(archive: Path) -> Iterator[_Member]:
    with tarfile.open(archive, "r|*", bufsize=1 << 20) as tar:
        for item in tar:
            stream = tar.extractfile(item) if item.isfile() else None
            content = io.BytesIO().read if stream is None else stream.read
            yield item.name, item.size, item.isfile() or item.isdir(), content


def _zipped(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as packed:
        for item in packed.infolist():
            kind = stat.S_IFMT(item.external_attr >> 16)
            regular = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            yield item.filename, item.file_size, regular, partial(packed.read, item)


def _check(archive: Path, name: str, size: int, regular: bool) -> None:
    """Refuse members that no archive of data needs.

    Raises:
        AqnetError: a path that is absolute or leads out of the archive, a link or a device, or a
            file too large for an hour of data.
    """
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        reason = "a path that leads out of the archive"
    elif not regular:
        reason = "a link or a special file"
    elif size > _LARGEST_MEMBER:
        reason = f"{size / 1e9:.1f} GB large"
    else:
        return
    raise AqnetError(
        f"{archive}: the member {name!r} is {reason}; such archives are not read: get it "
        "again from where it is published, or unpack it yourself and name the files"
    )
