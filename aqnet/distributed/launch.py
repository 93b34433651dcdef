"""How the processes of one start find a device and each other, and end with their launcher."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import io
import os
import resource
import signal
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from aqnet.distributed.arrivals import under_torchrun
from aqnet.errors import AqnetError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def is_first_process() -> bool:
    """Whether torchrun made this process rank 0, before the processes have found each other."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def by_first_process() -> Iterator[None]:
    """Inside, before the processes have found each other, only rank 0 prints: help and errors of
    the command line are read once, not by every process of torchrun."""
    if is_first_process():
        yield
        return
    nowhere = io.StringIO()
    try:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
    except (AqnetError, SystemExit) as error:
        time.sleep(5.0)  # torchrun ends all processes when one fails: rank 0 prints first
        sys.exit(2 if isinstance(error, AqnetError) else error.code)


def die_with_parent() -> None:
    """Let the kernel end this process with its parent: SIGKILL of torchrun alone would leave the
    ranks writing, and that of a rank its loader's workers waiting."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the call
        os.kill(os.getpid(), signal.SIGKILL)


def end_if_orphaned(process_1: Path = Path("/proc/1/cmdline")) -> None:
    """End a worker whose torchrun died while the worker was still importing, so that process 1 has
    adopted it. In a container, process 1 may be torchrun itself."""
    if sys.platform == "linux" and os.getppid() == 1:
        command = process_1.read_bytes()
        if b"torchrun" not in command and b"torch.distributed" not in command:
            os.kill(os.getpid(), signal.SIGKILL)


def rendezvous(timeout: datetime.timedelta) -> tuple[dist.Store, int, int]:
    """The store of the launcher, or without one rank 0's; this process's rank, and their number.

    The store that torch makes without a launcher listens on all addresses, and gloo on that of the
    host's name. Where all processes are on this machine, its loopback is enough.
    """
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    alone = address == "localhost" or address.startswith("127.")
    if under_torchrun():
        alone = num_nodes() == 1
    if alone and Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if under_torchrun() or not alone or os.environ.get("RANK") != "0" or not port.isdecimal():
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
        return store, rank, size
    size = int(os.environ["WORLD_SIZE"])
    with socket.create_server((address, int(port))) as server:
        store = dist.TCPStore(
            *(address, int(port), size, True, timeout), master_listen_fd=server.detach()
        )
    return store, 0, size


def num_nodes() -> int:
    """On how many nodes the processes are (torchrun says; 1 without it)."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1"))


def device_of(local_rank: int) -> torch.device:
    """The GPU of a process of this node, from now on its current one; the CPU where there is none.

    Raises:
        AqnetError: there are fewer GPUs than processes.
    """
    if not torch.cuda.is_available():
        give_back_large_blocks()
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if local_rank >= visible:
        raise AqnetError(
            f"process {local_rank} of this node has no GPU: {visible} visible; "
            "start at most as many processes per node (--nproc_per_node)"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def give_back_large_blocks() -> None:
    """Let glibc give freed blocks of 1 MiB and more back to the kernel.

    It would keep those of up to 32 MiB, and cannot put an aligned tensor where one of the same size
    was: training at 128 x 256 took 1.3 to 1.6 times the memory of its tensors.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 2**20)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**26)  # small blocks come and go at the heap's end


def attempt(store: dist.Store, rank: int, size: int, timeout: datetime.timedelta) -> str:
    """A prefix of keys in the store that only the processes which live now use; all must call.

    torchrun 2.13 restarts workers on the store of the attempt before, with the addresses of dead
    processes in it, and each node counts its restarts for itself. So rank 0 makes a name, gives it
    to whoever asks under a name of his own, and is done when every rank has used it.

    Raises:
        RuntimeError: a rank did not come in time.
    """
    me = uuid.uuid4().hex
    if rank != 0:
        store.set(f"ask/{rank}", me)
        store.wait([f"answer/{me}"], timeout)
        name = store.get(f"answer/{me}").decode()
        store.set(f"{name}/here/{rank}", "")
        return name
    missing, end = set(range(1, size)), time.monotonic() + timeout.total_seconds()
    while missing:
        for other in missing:
            if store.check([f"ask/{other}"]):
                store.set(f"answer/{store.get(f'ask/{other}').decode()}", me)
        missing = {other for other in missing if not store.check([f"{me}/here/{other}"])}
        if missing and time.monotonic() > end:
            raise RuntimeError(f"no sign of rank {', '.join(map(str, sorted(missing)[:8]))}")
        time.sleep(0.02)
    return me


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # not getrusage, which begins with the memory of the process that started this one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
