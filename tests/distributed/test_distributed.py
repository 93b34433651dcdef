"""Collectives among two gloo processes, and the same calls in one process without a group."""

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from aqnet import distributed
from aqnet.checkpoint import Checkpoints
from aqnet.distributed import collectives
from aqnet.errors import AqnetError
from aqnet.plan import network
from aqnet.run_directory import RunDirectory
from tests.conftest import REPOSITORY


def enter(
    rank: int, size: int, port: int, timeout: float, work: Callable[..., None], arguments: Any
) -> None:
    """One of `size` processes, as torchrun would start it."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.start(timeout)
    try:
        work(*arguments)
    finally:
        distributed.stop()


# so that torch is imported once and not by every process
multiprocessing.set_forkserver_preload(["torch._dynamo", "tests.distributed.test_distributed"])


def on_ranks(
    size: int,
    work: Callable[..., None],
    *arguments: Any,
    timeout: float = 30,
    method: str = "forkserver",
) -> None:
    """`work(*arguments)` in `size` processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = (size, port, timeout, work, arguments)
    mp.start_processes(enter, given, nprocs=size, start_method=method)


on_two = partial(on_ranks, 2)


def exchange() -> None:
    rank = distributed.rank()
    assert distributed.world_size() == 2 and distributed.is_main() == (rank == 0)
    numbers = torch.tensor([1.0, rank], dtype=torch.float64)
    assert distributed.sum_(numbers) is numbers
    assert numbers.tolist() == [2.0, 1.0]
    assert distributed.any_rank(rank == 1) and not distributed.any_rank(False)
    assert distributed.broadcast_object({"rank": rank}) == {"rank": 0}
    gathered = distributed.gather_objects((rank, "x"))
    assert gathered == ([(0, "x"), (1, "x")] if rank == 0 else None)
    assert distributed.on_main(lambda: distributed.rank() + 5) == 5
    distributed.barrier()
    assert network.all_reduce_seconds(2**20, torch.device("cpu")) > 0


def test_two_processes_exchange_what_they_know():
    on_two(exchange)


def test_everything_works_in_one_process():
    assert distributed.start(1).type in ("cpu", "cuda")
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.is_main()
    assert distributed.sum_(torch.tensor([3.0])).item() == 3.0
    assert distributed.any_rank(True) and not distributed.any_rank(False)
    assert distributed.broadcast_object("a") == "a" and distributed.gather_objects("a") == ["a"]
    assert distributed.on_main(lambda: 7) == 7
    assert distributed.num_nodes() == 1
    distributed.at_step(1)
    distributed.barrier()
    model = torch.nn.Linear(2, 2)
    assert distributed.wrap(model) is model
    with distributed.no_sync(model), distributed.explained():
        pass
    distributed.stop()


def accumulate() -> None:
    torch.manual_seed(distributed.rank())  # DDP gives rank 0's parameters to all
    model = torch.nn.Linear(3, 1)
    model.register_buffer("index", torch.tensor([distributed.rank()]))
    wrapped = distributed.wrap(model)
    data = torch.arange(12.0).reshape(4, 3) / 12
    own = data[distributed.rank() :: 2]
    with distributed.no_sync(wrapped):
        wrapped(own[:1]).square().sum().backward()
    wrapped(own[1:]).square().sum().backward()
    assert model.index.item() == distributed.rank()  # buffers are not exchanged
    torch.manual_seed(0)
    whole = torch.nn.Linear(3, 1)
    whole(data).square().sum().backward()
    for mine, plain in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, plain)
        assert mine.grad is not None and plain.grad is not None
        torch.testing.assert_close(mine.grad * 2, plain.grad)  # DDP averages


def test_gradients_are_averaged_once_per_step():
    on_two(accumulate)


def wait_for_a_slow_rank() -> None:
    wrapped = distributed.wrap(torch.nn.Linear(3, 1))
    for delay in (0.0, 0.6):
        forecast = wrapped(torch.ones(1, 3)).sum()
        time.sleep(delay * distributed.rank())
        forecast.backward()
        waited = distributed.exchange_seconds(wrapped)
        assert waited >= 0
        if delay and distributed.rank() == 0:
            assert waited > 0.3


def test_waiting_for_the_gradients_of_a_slow_rank_is_measured():
    on_two(wait_for_a_slow_rank)


def threads() -> list[str]:
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


def train_and_leave(fails: bool) -> None:
    def step() -> None:
        wrapped = distributed.wrap(torch.nn.Linear(3, 1))
        wrapped(torch.ones(1, 3)).sum().backward()
        assert any("gloo" in name for name in threads())
        if fails:
            raise OSError("2013.zarr: bad chunk")

    with pytest.raises(OSError, match="bad chunk") if fails else contextlib.nullcontext():
        try:
            step()
        finally:
            distributed.stop()
            assert not any("gloo" in name for name in threads())


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("fails", [False, True])
def test_no_thread_of_the_group_outlives_it(fails: bool):
    """One that did has aborted an exit in one of ten runs."""
    on_two(train_and_leave, fails)


@pytest.mark.parametrize(
    ("backend", "fails", "destroyed"),
    [("nccl", False, True), ("nccl", True, False), ("gloo", True, True)],
)
def test_a_process_that_fails_does_not_wait_for_the_others_to_end_nccl_with_it(
    monkeypatch: pytest.MonkeyPatch, backend: str, fails: bool, destroyed: bool
):
    """There is no nccl here: stand-ins for torch's functions."""
    calls: list[str] = []
    monkeypatch.setattr(collectives.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(collectives.dist, "get_backend", lambda: backend)
    monkeypatch.setattr(
        collectives.dist, "destroy_process_group", lambda: calls.append("destroyed")
    )
    with pytest.raises(OSError, match="bad chunk") if fails else contextlib.nullcontext():
        try:
            if fails:
                raise OSError("2013.zarr: bad chunk")
        finally:
            distributed.stop()
    assert bool(calls) == destroyed


def refused() -> None:
    def fails() -> None:
        raise AqnetError("no such thing")

    with pytest.raises((AqnetError, SystemExit)) as error:
        distributed.on_main(fails)
    if distributed.is_main():
        assert str(error.value) == "no such thing"
    else:
        assert isinstance(error.value, SystemExit) and error.value.code == 2


def test_an_error_of_rank_0_is_said_once_and_ends_all():
    on_two(refused)


def save_and_load(folder: Path) -> None:
    rank = distributed.rank()
    checkpoints = Checkpoints(folder, 1)
    model = {"model": {"weight": torch.full((3,), float(rank))}}
    facts = {"config": {"data": {}, "model": {}}, "statistics": {}, "data_checksums": {}}
    for step in (1, 2):
        checkpoints.save(model, {"step": step}, {"global_step": step, **facts}, metric=None)
    checkpoints.wait()
    distributed.barrier()
    if distributed.is_main():
        file = folder / "step_00000002/model.pt"
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    loaded = checkpoints.load_latest()
    assert loaded is not None and loaded.state["global_step"] == 1
    assert loaded.optimizer == {"step": 1}
    assert torch.equal(loaded.model["weight"], torch.zeros(3))


def test_rank_0_alone_writes_chooses_and_reads_a_checkpoint(tmp_path: Path):
    on_two(save_and_load, tmp_path)


def claim(folder: Path) -> None:
    run = RunDirectory(folder)
    run.claim()
    run.status("running")
    if distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    assert run.stop_requested() == (distributed.rank() == 1)
    assert distributed.any_rank(run.stop_requested())
    distributed.barrier()
    run.release()


def test_sigterm_at_one_rank_stops_all(tmp_path: Path):
    on_two(claim, tmp_path)
    assert (tmp_path / "status").read_text() == "running\n"


def lag() -> None:
    for step in (4, 5):
        distributed.at_step(step)
        if step == 5 and distributed.rank() == 1:
            time.sleep(9)  # a hang inside the step; rank 0 must not wait for it
            return
        said = r"^ranks that lag behind step 5: 1 \(step 4\) \("
        error = pytest.raises(AqnetError, match=said) if step == 5 else contextlib.nullcontext()
        with error, distributed.explained():
            distributed.barrier()


def test_a_hung_collective_names_the_ranks_that_lag(capfd: pytest.CaptureFixture[str]):
    on_two(lag, timeout=5, method="spawn")  # what a fork server says is not captured here
    warning = "warning: rank 0 waits since 4 s: ranks that lag behind step 5: 1 (step 4)"
    assert capfd.readouterr().err.count(warning) == 1  # before the time-out, which nccl dies of


def fail_in_loader() -> None:
    distributed.barrier()
    if distributed.rank() == 1:
        with pytest.raises(OSError, match=r"2013\.zarr"), distributed.explained():
            raise OSError("2013.zarr: bad chunk")
        return  # the process ends, its connections close
    start = time.monotonic()
    said = r"rank 1: OSError: 2013\.zarr: bad chunk"
    with pytest.raises(AqnetError, match=said), distributed.explained():
        distributed.barrier()
    assert time.monotonic() - start < 15  # not the time-out


def test_an_error_of_one_rank_reaches_the_others_as_its_own_message():
    on_two(fail_in_loader)


def test_processes_that_do_not_come_are_an_error(monkeypatch: pytest.MonkeyPatch):
    values = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AqnetError, match="did not find each other"):
        distributed.start(1)


RESTARTED = """
import os, pathlib, signal, sys
from aqnet import distributed
from aqnet.distributed import collectives
distributed.start(30)
killed = pathlib.Path(sys.argv[1])
if distributed.rank() == 1 and not killed.exists():
    killed.touch()
    os.kill(os.getpid(), signal.SIGKILL)
distributed.barrier()
# one write, or the lines of the two processes mix
os.write(1, f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}\\n".encode())
distributed.stop()
"""


def test_torchrun_restarts_after_a_killed_worker(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(RESTARTED)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["--max-restarts=1", "--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0"]
    result = subprocess.run(
        [*command, str(script), str(tmp_path / "killed")],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["attempt 1", "attempt 1"]


LAUNCHER = """
import os, subprocess, sys, time
os.environ["TORCHELASTIC_RUN_ID"] = "test"
worker = "from aqnet import distributed; import time; distributed.start(5);" \
         "print('ready', flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", worker])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_workers_die_with_their_launcher():
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    worker = int(launcher.stdout.readline())
    assert launcher.stdout.readline() == "ready\n"
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 5
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(worker)


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
