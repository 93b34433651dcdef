"""One run owns its directory, says how it stands, and stops when asked to."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from aqnet import run_directory
from aqnet.errors import AqnetError
from aqnet.run_directory import RunDirectory

OWNER = """
import sys, time
from aqnet.run_directory import RunDirectory
RunDirectory(sys.argv[1]).claim()
print("claimed", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(run_directory, "TOUCH_SECONDS", 0.05)
    monkeypatch.setattr(run_directory, "WATCH_SECONDS", 0.5)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def other_run(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A living process that owns tmp_path."""
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "claimed\n"
    yield process
    process.kill()
    process.wait()


def foreign_lock(folder: Path, **changes: Any) -> Path:
    """A lock of a process on another host."""
    owner = {"host": "nid001", "pid": 42, "job": "123", "started": 1, "namespace": "x"}
    lock = folder / "lock"
    lock.write_text(json.dumps({**owner, **changes}))
    return lock


def test_a_second_run_is_refused_by_name(tmp_path: Path, other_run: subprocess.Popen[str]):
    with pytest.raises(AqnetError) as error:
        RunDirectory(tmp_path).claim()
    assert "\n" not in str(error.value)
    for word in (str(tmp_path), f"process {other_run.pid}", os.uname().nodename):
        assert word in str(error.value)


def test_a_killed_run_leaves_its_directory_free(
    tmp_path: Path, other_run: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run_directory, "WATCH_SECONDS", 60.0)
    other_run.kill()
    other_run.wait()
    start = time.monotonic()
    run = RunDirectory(tmp_path)
    run.claim()
    assert time.monotonic() - start < 30  # without watching
    run.release()


def test_a_zombie_owns_nothing(tmp_path: Path, other_run: subprocess.Popen[str]):
    other_run.kill()
    os.waitid(os.P_PID, other_run.pid, os.WEXITED | os.WNOWAIT)  # dead, but not yet reaped
    run = RunDirectory(tmp_path)
    run.claim()
    run.release()


def test_a_reused_process_number_owns_nothing(tmp_path: Path, other_run: subprocess.Popen[str]):
    lock = tmp_path / "lock"
    owner = json.loads(lock.read_text())
    lock.write_text(json.dumps({**owner, "started": owner["started"] - 1}))
    run = RunDirectory(tmp_path)
    run.claim()
    run.release()


def test_an_untouched_lock_of_another_host_is_free_after_watching(tmp_path: Path):
    foreign_lock(tmp_path)
    start = time.monotonic()
    run = RunDirectory(tmp_path)
    run.claim()
    assert time.monotonic() - start >= 0.5
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    run.release()


def test_a_half_written_lock_is_watched_too(tmp_path: Path):
    (tmp_path / "lock").write_text("")
    run = RunDirectory(tmp_path)
    run.claim()
    run.release()


@pytest.mark.parametrize(
    "text", ["[" * 60_000, "[1]", "3", "null", '{"pid": "x"}', '{"host": [], "pid": {}}', "\0" * 9]
)
def test_a_nested_or_mistyped_lock_is_watched_too(tmp_path: Path, text: str):
    (tmp_path / "lock").write_text(text)
    run = RunDirectory(tmp_path)
    run.claim()
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    run.release()


@pytest.mark.parametrize("changes", [{"pid": True}, {"pid": 10**400}, {"pid": -1}, {"started": []}])
def test_a_lock_of_this_host_with_a_process_that_cannot_be_is_free(
    tmp_path: Path, changes: dict[str, Any]
):
    here = {"host": os.uname().nodename, "namespace": run_directory._namespace()}
    foreign_lock(tmp_path, **here, **{"pid": os.getpid(), **changes})
    run = RunDirectory(tmp_path)
    run.claim()
    run.release()


def touch_often(lock: Path) -> None:
    while True:
        os.utime(lock)
        time.sleep(0.02)


def test_a_touched_lock_of_another_host_is_refused_by_name(tmp_path: Path):
    toucher = get_context("fork").Process(target=touch_often, args=(foreign_lock(tmp_path),))
    toucher.start()
    try:
        with pytest.raises(AqnetError, match=r"process 42 on nid001 \(job 123\)"):
            RunDirectory(tmp_path).claim()
    finally:
        toucher.kill()
        toucher.join()


def test_the_owner_touches_the_lock_until_it_is_released(tmp_path: Path):
    run = RunDirectory(tmp_path)
    run.claim()
    run.claim()  # once more changes nothing
    lock = tmp_path / "lock"
    first = lock.stat().st_mtime_ns
    deadline = time.monotonic() + 5
    while lock.stat().st_mtime_ns == first and time.monotonic() < deadline:
        time.sleep(0.02)
    assert lock.stat().st_mtime_ns > first
    run.release()
    assert not lock.exists()
    run.release()


def test_a_run_whose_lock_was_taken_writes_no_more(tmp_path: Path):
    run = RunDirectory(tmp_path)
    run.claim()
    run.status("running")
    lock = foreign_lock(tmp_path)
    deadline = time.monotonic() + 5
    with pytest.raises(AqnetError, match="another run has taken"):
        while time.monotonic() < deadline:
            run.stop_requested()
            time.sleep(0.02)
    run.status("failed")
    run.release()
    assert (tmp_path / "status").read_text() == "running\n"
    assert lock.exists()


def test_status_is_one_known_word(tmp_path: Path):
    run = RunDirectory(tmp_path)
    run.claim()
    for word in ("running", "finished", "failed", "interrupted"):
        run.status(word)
        assert (tmp_path / "status").read_text() == word + "\n"
    with pytest.raises(ValueError, match="done"):
        run.status("done")
    run.release()


def test_a_request_to_stop_is_seen_and_forgotten_at_start_and_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    request = tmp_path / "stop_requested"
    request.touch()
    run = RunDirectory(tmp_path)
    run.claim()
    assert not request.exists() and not run.stop_requested()
    assert f"{request}: is from before this start; removed" in capsys.readouterr().out
    request.touch()
    assert run.stop_requested()
    run.release()
    assert not request.exists()


def test_a_refused_run_leaves_the_owners_request_alone(
    tmp_path: Path, other_run: subprocess.Popen[str]
):
    (tmp_path / "stop_requested").touch()
    run = RunDirectory(tmp_path)
    with pytest.raises(AqnetError):
        run.claim()
    run.release()
    assert (tmp_path / "stop_requested").exists()
    assert (tmp_path / "lock").exists()


def test_sigterm_asks_to_stop_however_often_it_comes(tmp_path: Path):
    run = RunDirectory(tmp_path)
    run.claim()
    assert not run.stop_requested()
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
    assert run.stop_requested()
    run.release()


def test_ctrl_c_asks_to_stop_and_says_how_to_end_at_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    run = RunDirectory(tmp_path)
    run.claim()
    os.kill(os.getpid(), signal.SIGINT)
    assert run.stop_requested()
    assert "Ctrl-C again: at once" in capfd.readouterr().err
    run.release()
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def ask_twice(folder: Path) -> None:
    run = RunDirectory(folder)
    run.claim()
    os.kill(os.getpid(), signal.SIGINT)
    (folder / "asked").write_text(str(run.stop_requested()))
    os.kill(os.getpid(), signal.SIGINT)
    (folder / "outlived").touch()


def test_a_second_ctrl_c_ends_the_process_at_once(tmp_path: Path):
    process = get_context("fork").Process(target=ask_twice, args=(tmp_path,))
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGINT
    assert (tmp_path / "asked").read_text() == "True" and not (tmp_path / "outlived").exists()


def outlive_sigterm(run: RunDirectory) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    sys.exit(3 if run.stop_requested() else 0)


def test_a_forked_worker_ignores_sigterm(tmp_path: Path):
    run = RunDirectory(tmp_path)
    run.claim()
    worker = get_context("fork").Process(target=outlive_sigterm, args=(run,))
    worker.start()
    worker.join(20)
    assert worker.exitcode == 0
    assert not run.stop_requested()
    run.release()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(AqnetError, match="file/run"):
        RunDirectory(tmp_path / "file/run").claim()


def test_sigterm_and_ctrl_c_end_a_run_at_once_that_has_nothing_left_to_save(tmp_path: Path):
    run = RunDirectory(tmp_path)
    run.claim()
    run.status("finished")
    run.end_on_signals()
    with pytest.raises(SystemExit) as ended:
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert not run.stop_requested()
    run.release()
    assert (tmp_path / "status").read_text() == "finished\n" and not (tmp_path / "lock").exists()
