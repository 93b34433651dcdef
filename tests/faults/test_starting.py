"""What dies or listens before the processes have found each other."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aqnet.distributed import launch
from tests.conftest import REPOSITORY

TIMEOUT = 3
# one rank of three; the one named in DIES ends itself where AT says
RANK = """
import os, signal, sys, torch.distributed as dist
from aqnet import distributed, errors
from aqnet.distributed import launch

def dies(*arguments, **named):
    os.kill(os.getpid(), signal.SIGKILL)

def then_dies(function):
    def call(*arguments, **named):
        function(*arguments, **named)
        dies()
    return call

if os.environ["RANK"] == os.environ["DIES"]:
    at = os.environ["AT"]
    if at == "rendezvous":
        launch.rendezvous = dies
    elif at == "attempt":
        launch.attempt = dies
    elif at == "group":
        dist.init_process_group = dies
    elif at == "made":
        dist.init_process_group = then_dies(dist.init_process_group)

def main():
    with distributed.explained():
        distributed.start(float(sys.argv[1]))
        print("joined", flush=True)
        for step in range(10**6):
            distributed.barrier()

errors.run(main)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(rank: int, size: int, port: int, **more: str) -> dict[str, str]:
    world = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **world, **place, "PYTHONPATH": str(REPOSITORY), **more}


LONG = pytest.mark.faults


@pytest.mark.parametrize(
    ("victim", "at"),
    [
        (0, "group"),
        (1, "made"),
        *(pytest.param(0, at, marks=LONG) for at in ("rendezvous", "attempt", "made")),
        *(pytest.param(1, at, marks=LONG) for at in ("rendezvous", "attempt", "group")),
    ],
)
def test_survivors_of_a_rank_that_dies_before_the_group_is_made_end_in_time(victim: int, at: str):
    port = free_port()
    command = [sys.executable, "-c", RANK, str(TIMEOUT)]
    ranks = [
        subprocess.Popen(
            command,
            env=environment(rank, 3, port, DIES=str(victim), AT=at),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        for rank, process in enumerate(ranks):
            _, told = process.communicate(timeout=60)
            if rank == victim:
                assert process.returncode == -signal.SIGKILL
            else:
                assert process.returncode == 2, told
                errors = [line for line in told.splitlines() if line.startswith("error: ")]
                assert len(errors) == 1, told
                assert "Traceback" not in told
    finally:
        for process in ranks:
            process.kill()


ORPHAN = """
import os, subprocess, sys
worker = "import time; time.sleep(1); from aqnet import distributed; " \\
         "distributed.start(5); print('went on', flush=True)"
os.environ["TORCHELASTIC_RUN_ID"] = "test"
subprocess.Popen([sys.executable, "-c", worker], stdout=open(sys.argv[1], "w"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_worker_whose_torchrun_died_while_it_imported_ends(tmp_path: Path):
    """The parent is process 1 before and after the request to die with the parent."""
    told = tmp_path / "told"
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", ORPHAN, str(told)], check=True, env=environ)
    time.sleep(8)
    assert told.read_text() == ""


@pytest.mark.parametrize(
    ("process_1", "ends"),
    [
        (b"/sbin/init\0", True),
        (b"/usr/bin/tini\0--\0bash\0", True),
        (b"/usr/bin/python\0/opt/venv/bin/torchrun\0train.py\0", False),
        (b"python\0-m\0torch.distributed.run\0train.py\0", False),
    ],
)
def test_a_worker_of_a_torchrun_that_is_process_1_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process_1: bytes, ends: bool
):
    killed: list[int] = []
    monkeypatch.setattr(launch.os, "getppid", lambda: 1)
    monkeypatch.setattr(launch.os, "kill", lambda process, number: killed.append(number))
    (tmp_path / "cmdline").write_bytes(process_1)
    launch.end_if_orphaned(tmp_path / "cmdline")
    assert killed == ([signal.SIGKILL] if ends else [])


LISTENS = """
import os, sys
from aqnet import distributed
distributed.start(20)
distributed.barrier()
print("ready", flush=True)
sys.stdin.read()
distributed.stop()
"""


def listeners(process: int) -> set[str]:
    """The addresses on which a process listens, as in /proc/net/tcp (hexadecimal)."""
    sockets = set()
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        target = str(descriptor.readlink()) if descriptor.is_symlink() else ""
        if target.startswith("socket:["):
            sockets.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in sockets and fields[3] == "0A":  # LISTEN
                found.add(fields[1].partition(":")[0])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("torchrun", [False, True])
def test_processes_of_one_machine_listen_on_its_loopback_alone(torchrun: bool):
    """Under torchrun the store is the launcher's; gloo listens in every process."""
    port, more = free_port(), {}
    store = None
    if torchrun:
        import torch.distributed as dist

        store = dist.TCPStore("127.0.0.1", port, 2, True, wait_for_workers=False)
        more = {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True"}
        more["GROUP_WORLD_SIZE"] = "1"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", LISTENS],
            env=environment(rank, 2, port, **more),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in ranks:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in ranks:
            found = listeners(process.pid)
            assert all(address.endswith("0100007F") for address in found), found
        assert listeners(ranks[0].pid)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
        del store
