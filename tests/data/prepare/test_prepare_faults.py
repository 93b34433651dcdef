"""prepare killed at any moment, on a full disk, twice at once, and on sources that change."""

import errno
import fcntl
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr

from aqnet import config as configs
from aqnet.data import statistics
from aqnet.data.prepare import run as command
from aqnet.data.prepare.run import prepare
from aqnet.data.stores import store
from aqnet.errors import AqnetError
from tests.conftest import REPOSITORY, run
from tests.data.source_writers import (
    CAQRA,
    CAQRA_UNITS,
    CONFIG,
    PLAUSIBLE,
    TARGETS,
    fields,
    hours,
    lambert,
    write_caqra,
    write_zarr,
)

YEARS = (2013, 2014, 2015)


def load(folder: Path, **data: Any) -> configs.Config:
    return configs.from_dict(tree(folder, **data), "here")


def tree(folder: Path, **data: Any) -> dict[str, Any]:
    base: dict[str, Any] = CONFIG["data"]  # type: ignore[assignment]
    here = {"sources": [{"path": f"{folder}/*.zarr"}], "stores": str(folder / "stores")}
    return {**CONFIG, "data": {**base, **here, **data}}


def write_years(folder: Path, count: int = 60, **other: Any) -> None:
    for year in YEARS:
        write_zarr(folder / f"{year}.zarr", hours(year, count), fields(count, year), **other)


def contents(folder: Path) -> dict[str, Any]:
    paths = sorted((folder / "stores").glob("*.zarr"))
    found = {path.name: store.open_store(path).checksum for path in paths}
    return {**found, "statistics": json.loads((folder / "stores/statistics.json").read_text())}


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process; returns its wait status."""
    child = os.fork()
    if child == 0:
        try:
            with Path(os.devnull).open("w") as sys.stdout:
                work()
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def kill_at(moment: int, after: bool) -> None:
    """Make this process kill itself at the moment-th call that changes what is on disk for good."""
    calls, counting = itertools.count(1), threading.Lock()  # zarr writes in threads

    def dying(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with counting:
                now = next(calls) == moment
            if now and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return original(*arguments, **options)
            finally:  # a directory that is there already is an error to mkdir
                if now:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir"):
        setattr(os, name, dying(getattr(os, name)))


@pytest.mark.parametrize("step", [11, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_goes_on_to_the_same_stores(tmp_path: Path, step: int):
    write_zarr(tmp_path / "2013.zarr", hours(2013, 60), fields(60))
    days = {"train": ["2013-01-01"], "validation": ["2013-01-02"], "test": ["2013-01-03"]}
    config = load(tmp_path, split=days)
    prepare(config)
    expected = contents(tmp_path)
    killed = 0
    for moment in itertools.count(1, step):
        shutil.rmtree(tmp_path / "stores")

        def die(at: int = moment) -> None:
            kill_at((at + 1) // 2, after=at % 2 == 0)
            prepare(config)
            os._exit(0)

        status = in_child(die)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        killed += 1
        prepare(config)
        assert contents(tmp_path) == expected, moment
        assert not list((tmp_path / "stores").glob("*.partial"))
    assert killed * step > 80  # directories, arrays, shards, receipts, attributes, their renames


def test_what_is_written_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_years(tmp_path, 300)
    config = load(tmp_path)
    read: list[int] = []

    def fail_in_2014(grid: Any, block: Any) -> Any:
        read.append(block.year)
        if (block.year, block.rows) == (2014, slice(240, 300)):
            raise AqnetError("stop here")
        return write_block(grid, block)

    write_block = command._write_block
    monkeypatch.setattr(command, "_write_block", fail_in_2014)
    with pytest.raises(AqnetError, match="stop here"):
        prepare(config)
    assert read == [2013, 2013, 2014, 2014]
    read.clear()
    monkeypatch.setattr(
        command, "_write_block", lambda *a: (read.append(a[1][0]), write_block(*a))[1]
    )
    prepare(config)
    assert read == [2014, 2015, 2015]


def test_killed_with_its_workers_it_leaves_nobody_behind(tmp_path: Path):
    write_years(tmp_path, 3000)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree(tmp_path)))
    parent = subprocess.Popen(
        [sys.executable, "-m", "aqnet.data.prepare", "--config", str(path), "--workers", "2"],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    end = time.monotonic() + 60
    while not list(tmp_path.glob("stores/*.partial/receipts/*.npz")):
        assert parent.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    wait_for_session(parent.pid)
    run("-m", "aqnet.data.prepare", "--config", str(path))
    interrupted = contents(tmp_path)
    prepare(load(tmp_path, stores=str(tmp_path / "again/stores")))
    assert contents(tmp_path / "again") == interrupted


def test_fewer_workers_than_none_are_refused_and_none_is_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_years(tmp_path, 4)
    with pytest.raises(AqnetError, match="--workers -3: expected 0"):
        prepare(load(tmp_path), workers=-3)
    assert not (tmp_path / "stores").exists()
    pids = []
    write = command._write_block
    monkeypatch.setattr(
        command, "_write_block", lambda *block: pids.append(os.getpid()) or write(*block)
    )
    prepare(load(tmp_path), workers=0)
    assert set(pids) == {os.getpid()}


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_interrupt_is_one_line_and_what_is_written_is_kept(tmp_path: Path, workers: str):
    write_years(tmp_path, 6000)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree(tmp_path)))
    process = subprocess.Popen(
        [sys.executable, "-m", "aqnet.data.prepare", "--config", str(path), "--workers", workers],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell starts background jobs, and so perhaps these tests, deaf to interrupts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 60
    while not list(tmp_path.glob("stores/*.partial/receipts/*.npz")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.communicate(timeout=60)[1] == "interrupted\n"
    assert process.returncode == 130
    assert list(tmp_path.glob("stores/*.partial/receipts/*.npz"))
    wait_for_session(process.pid)


def wait_for_session(leader: int) -> None:
    end = time.monotonic() + 20
    while _session(leader):
        assert time.monotonic() < end, "workers live on"
        time.sleep(0.05)


def _session(leader: int) -> list[str]:
    """Processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(state[3]) == leader and state[0] not in "ZX":
            found.append(stat.parent.name)
    return found


def test_a_full_disk_is_one_clear_error_and_what_is_written_is_kept(tmp_path: Path):
    write_years(tmp_path, 300)
    config = load(tmp_path)

    def limited(size: int) -> Callable[[], None]:
        def work() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            try:
                prepare(config)
            except AqnetError as error:
                os._exit(7 if "make room" in str(error) and "\n" not in str(error) else 8)

        return work

    for size in (0, 500, 3000, 6000):
        status = in_child(limited(size))
        assert os.WIFEXITED(status)
        assert os.WEXITSTATUS(status) == 7, size
    prepare(config)
    assert store.open_store(tmp_path / "stores/2013.zarr").read(299).shape == (2, 3, 4)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_is_full_for_real(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", str(disk)]).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        write_years(tmp_path, 4000)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(tree(tmp_path, stores=str(disk / "stores"))))
        result = run("-m", "aqnet.data.prepare", "--config", str(path), status=2)
        assert "No space left on device" in result.stderr
        assert len(result.stderr.splitlines()) == 1
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # a worker may just be ending


def test_two_at_once_on_one_output_are_refused(tmp_path: Path):
    write_years(tmp_path)
    config = load(tmp_path)
    (tmp_path / "stores").mkdir()
    with (tmp_path / "stores/.prepare.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(AqnetError, match="another prepare writes here"):
            prepare(config)
        prepare(config, dry_run=True)  # which writes nothing
    assert not list((tmp_path / "stores").glob("*.zarr*"))
    prepare(config)


def test_a_file_system_without_locks_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_locks(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")  # Lustre mounted without flock

    write_years(tmp_path)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(AqnetError, match="stores: files cannot be locked on this file system"):
        prepare(load(tmp_path))


def test_an_edited_source_is_noticed(tmp_path: Path):
    write_years(tmp_path)
    config = load(tmp_path)
    prepare(config)
    chunk = next((tmp_path / "2014.zarr/o3/c").rglob("0"))
    while chunk.is_dir():
        chunk = next(chunk.iterdir())
    chunk.write_bytes(chunk.read_bytes())  # not even the size changes
    with pytest.raises(AqnetError, match=r"2014\.zarr: its source files have changed"):
        prepare(config)
    shutil.rmtree(tmp_path / "stores/2014.zarr")
    prepare(config)


def test_other_settings_or_another_source_are_refused(tmp_path: Path):
    write_years(tmp_path)
    prepare(load(tmp_path))
    other = tmp_path / "other"
    write_years(other, units="mg m-3")
    for data, words in (
        ({"units": {"o3": "mg m-3"}}, "units differ"),
        ({"dtype": "float16"}, "dtype differ"),
        ({"sources": [{"path": f"{other}/*.zarr"}]}, "source files have changed"),
    ):
        with pytest.raises(AqnetError, match=words):
            prepare(load(tmp_path, **data))


def test_nothing_is_done_twice(tmp_path: Path):
    write_years(tmp_path)
    config = load(tmp_path)
    prepare(config)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "stores").rglob("*[!k]")}
    prepare(config)
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "stores").rglob("*[!k]")}
    assert before == after


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path):
    write_years(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree(tmp_path)))
    result = run("-m", "aqnet.data.prepare", "--config", str(path), "--dry-run")
    assert "to write 180 hours of 2 variables on 3 x 4 cells: 0.0 MB" in result.stdout
    assert "GB free" in result.stdout
    assert not (tmp_path / "stores").exists()


def test_statistics_are_those_of_numpy_whatever_the_blocks_and_workers(tmp_path: Path):
    write_years(tmp_path, 700)
    config = load(tmp_path)
    prepare(config)
    stores = [store.open_store(tmp_path / f"stores/{year}.zarr") for year in YEARS]
    found = statistics.read(config, stores)
    values = fields(700, 2013)
    for name in TARGETS:
        mean, std = (number.item() for number in found.of((name,)))
        wide = values[name].astype(np.float64)
        assert mean == pytest.approx(np.nanmean(wide), rel=1e-9)
        assert std == pytest.approx(np.nanstd(wide), rel=1e-9)
    prepare(load(tmp_path, stores=str(tmp_path / "two/stores")), workers=2)
    assert contents(tmp_path / "two") == contents(tmp_path)


@pytest.mark.slow
def test_a_worker_on_the_native_grid_of_caqra_stays_under_two_gigabytes(tmp_path: Path):
    field = np.random.default_rng(0).uniform(0.0, 100.0, (339, 432)).astype(np.float32)
    times = np.concatenate([hours(2013, 48), hours(2014, 1), hours(2015, 1)])

    def values(name: str, hour: int) -> np.ndarray:
        return field + hour % 24 + np.float32(PLAUSIBLE.get(name, 0))

    write_caqra(tmp_path, times, grid=lambert(339, 432)[:2], values=values)
    here = tree(tmp_path, sources=[{"path": f"{tmp_path}/CN-*.nc"}])
    here["data"] |= {"variables": list(CAQRA), "targets": ["pm25", "co"]}
    here["model"] = {**here["model"], "patch": 2, "terrain": {"enabled": False}}
    path = tmp_path / "config.yaml"
    for resample in ({"resample": "none"}, {"resample": "area", "shape": "128x256"}):
        here["data"] |= resample | {"stores": str(tmp_path / resample["resample"])}
        path.write_text(yaml.safe_dump(here))
        code = (
            "import resource, sys; from aqnet import config; from aqnet.data.prepare import run; "
            "run.prepare(config.load(sys.argv[1])); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        kilobytes = int(run("-c", code, str(path)).stdout.split()[-1])
        assert kilobytes < 2e6, f"{kilobytes} kB with {resample}"


@pytest.mark.slow
def test_the_plan_of_a_native_year_comes_before_anything_is_read_whole(tmp_path: Path):
    for year in YEARS:
        group = zarr.open_group(tmp_path / f"{year}.zarr", mode="w")
        lat, lon, _ = lambert(339, 432)
        dims = ("time", "y", "x")
        for name, data in (("lat2d", lat), ("lon2d", lon)):
            group.create_array(name, data=data, dimension_names=dims[1:])
        group.create_array(
            "time",
            data=hours(year, 8760),
            dimension_names=("time",),
            attributes={"units": "hours since 1970-01-01"},
        )
        for name in CAQRA:  # no chunk is written: all missing
            unit = CAQRA_UNITS.get(name, "ug/m3")
            group.create_array(
                name,
                shape=(8760, 339, 432),
                dtype="f4",
                chunks=(24, 339, 432),
                fill_value=np.nan,
                dimension_names=dims,
                attributes={"units": unit},
            )
    here = tree(tmp_path)
    here["data"] |= {"variables": list(CAQRA), "targets": ["pm25", "co"]}
    here["model"] = {**here["model"], "patch": 2, "terrain": {"enabled": False}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(here))
    result = run("-m", "aqnet.data.prepare", "--config", str(path), "--dry-run")
    assert "26280 hours of 11 variables on 339 x 432 cells: 169.3 GB, about" in result.stdout
    assert "min (--workers 0)" in result.stdout
