"""Everything that calls torch.distributed. All functions also work in one process without a group.

There is one communicator, the default group: the first collective of a second RCCL group hung in
13 of 17 runs on LUMI (laifs-container-recipes #44). Facts that need no collective go through the
rendezvous store.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import gc
import importlib
import os
import signal
import sys
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aqnet.arrivals import Arrivals
from aqnet.errors import AqnetError

Result = TypeVar("Result")
_arrivals: Arrivals | None = None
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def start(timeout_seconds: float) -> torch.device:
    """Join the other processes (as torchrun's environment says) and return this one's device.

    Args:
        timeout_seconds: after this long in one collective the run ends with an error.
    Raises:
        AqnetError: there are fewer GPUs on this node than processes, or the others did not come.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
    device = _device(int(os.environ.get("LOCAL_RANK", "0")))
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or dist.is_initialized():
        return device
    # DDP loads this module, whose default arguments keep the group that exists while it is loaded
    importlib.import_module("torch.distributed.nn.functional")
    timeout = datetime.timedelta(seconds=timeout_seconds)
    try:
        store, rank_, size = next(dist.rendezvous("env://", timeout=timeout))
        store = _fresh(store, rank_, size, timeout)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore("group", store),
            rank=rank_,
            world_size=size,
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
    except (dist.DistError, RuntimeError, ValueError) as error:
        found = {key: os.environ.get(key) for key in ("RANK", "MASTER_ADDR", "MASTER_PORT")}
        raise AqnetError(
            f"the {size} processes did not find each other ({found}): {_one_line(error)}"
        ) from error
    global _arrivals
    _arrivals = Arrivals(dist.PrefixStore("aqnet", store), rank_, size, timeout_seconds)
    return device


def stop() -> None:
    """Leave the process group (nothing to do without one).

    Drop the wrapped model before: a thread of gloo that outlives this call may ask for Python's
    lock when the interpreter has gone, which aborts the process ("terminate called without an
    active exception"). An error on its way loses its local variables, for they may hold the model.
    """
    global _arrivals
    if _arrivals is not None:
        _arrivals.close()
        _arrivals = None
    if not dist.is_initialized():
        return
    error = sys.exc_info()[1]
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()  # DDP is part of reference cycles and holds the group
    dist.destroy_process_group()


def at_step(step: int) -> None:
    """The collectives from here on belong to optimizer step `step`; errors name it."""
    if _arrivals is not None:
        _arrivals.step = step


def arrive() -> None:
    """Tell the others that this process enters a collective; done by all functions here, but to be
    called before a backward that exchanges gradients."""
    if _arrivals is not None:
        _arrivals.come()


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Inside, errors that only a broken or hung collective caused are said as what they are.

    An error of this process is told to the others and goes on unchanged. Where a collective fails
    because another process did, AqnetError repeats that one's message; where it failed by the
    time-out or because a process was killed, AqnetError names the ranks that did not arrive.
    With nccl this needs a collective that raises: `aqnet.arrivals` warns before the time-out.
    """
    try:
        yield
    except AqnetError as error:
        _tell(error)
        raise
    except RuntimeError as error:
        if not _of_collective(error):
            _tell(error)
            raise
        raise AqnetError(_explanation(error)) from error
    except (ArithmeticError, AssertionError, LookupError, OSError, TypeError, ValueError) as error:
        _tell(error)
        raise


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def num_nodes() -> int:
    """On how many nodes they are (torchrun says; 1 without it)."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that writes files and speaks."""
    return rank() == 0


def sum_(tensor: Tensor) -> Tensor:
    """Sum over the processes, in place (any device); returns `tensor`."""
    if world_size() > 1:
        on_device = tensor.to(_group_device())
        arrive()
        dist.all_reduce(on_device)
        if on_device is not tensor:
            tensor.copy_(on_device)
    return tensor


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true on at least one process; all of them must call."""
    return bool(sum_(torch.tensor(int(flag))).item()) if world_size() > 1 else flag


def broadcast_object(obj: Any) -> Any:
    """Rank 0's `obj`, on every process; what the others give is ignored."""
    if world_size() == 1:
        return obj
    box = [obj if is_main() else None]
    arrive()
    dist.broadcast_object_list(box, src=0, device=_group_device())
    return box[0]


def gather_objects(obj: Any) -> list[Any] | None:
    """Every process's `obj` in the order of ranks, on rank 0; None on the others."""
    if world_size() == 1:
        return [obj]
    boxes: list[Any] | None = [None] * world_size() if is_main() else None
    arrive()
    dist.gather_object(obj, boxes, dst=0)
    return boxes


def on_main(function: Callable[[], Result]) -> Result:
    """`function()` of rank 0, given to every process.

    Raises:
        AqnetError: rank 0's own, on rank 0; the others then exit with status 2 without a word.
    """
    outcome: tuple[Any, str | None] = (None, None)
    if is_main():
        try:
            outcome = (function(), None)
        except AqnetError as error:
            broadcast_object((None, str(error)))
            raise
    result, message = broadcast_object(outcome)
    if message is not None:
        sys.exit(2)
    return cast(Result, result)


def barrier() -> None:
    """Wait until every process has come here."""
    sum_(torch.zeros(1))  # dist.barrier() guesses a device; a small sum does not


def all_reduce_seconds(num_bytes: int) -> float:
    """Time to sum float32 tensors of this size over the processes, the longest of theirs [s].

    Of two sums the second: the first also opens connections. All must call.
    """
    if world_size() == 1:
        return 0.0
    device = _group_device()
    values, elapsed = torch.zeros(num_bytes // 4, device=device), 0.0
    for _ in range(2):
        barrier()
        began = time.perf_counter()
        dist.all_reduce(values)
        if device.type == "cuda":
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - began
    longest = torch.tensor(elapsed, dtype=torch.float64, device=device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    return float(longest)


def wrap(model: nn.Module) -> nn.Module:
    """`model` with gradients averaged over the processes; `model` itself if there is only one.

    Rank 0's parameters are given to all. Buffers are not exchanged: they are index tensors that
    every process makes for itself.
    """
    if world_size() == 1:
        return model
    device = _group_device()
    arrive()
    with warnings.catch_warnings():
        # torch 2.13 says that the name will change, but its successor still sends buffers once
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        wrapped = DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,
        )
    wrapped._set_ddp_runtime_logging_sample_rate(1)  # for `exchange_seconds`
    return wrapped


def no_sync(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Inside, backward leaves gradients local (all but the last micro-batch of a step)."""
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()


def exchange_seconds(model: nn.Module) -> float:
    """How long the last backward, its own work done, still waited for gradients to be exchanged.

    That includes waiting for slower ranks. Call after a backward outside `no_sync`.
    """
    if not isinstance(model, DistributedDataParallel) or model.logger is None:
        return 0.0
    model.logger.set_runtime_stats_and_log()  # torch itself looks only at the next forward
    measured = model._get_ddp_logging_data()
    whole = measured.get("backward_comm_time", 0)
    return float(whole - measured.get("backward_compute_comm_overlap_time", 0)) / 1e9


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


def _fresh(store: dist.Store, rank_: int, size: int, timeout: datetime.timedelta) -> dist.Store:
    """The part of the store that belongs to the processes which live now.

    torchrun 2.13 restarts workers on the store of the attempt before, with the addresses of dead
    processes in it, and each node counts its restarts for itself. So rank 0 makes a name, gives it
    to whoever asks under a name of his own, and is done when every rank has used it.
    """
    me = uuid.uuid4().hex
    if rank_ != 0:
        store.set(f"ask/{rank_}", me)
        store.wait([f"answer/{me}"], timeout)
        fresh = dist.PrefixStore(store.get(f"answer/{me}").decode(), store)
        fresh.set(f"here/{rank_}", "")
        return fresh
    fresh = dist.PrefixStore(me, store)
    missing = set(range(1, size))
    end = time.monotonic() + timeout.total_seconds()
    while missing:
        for other in missing:
            if store.check([f"ask/{other}"]):
                store.set(f"answer/{store.get(f'ask/{other}').decode()}", me)
        missing = {other for other in missing if not fresh.check([f"here/{other}"])}
        if missing and time.monotonic() > end:
            raise RuntimeError(f"no sign of rank {', '.join(map(str, sorted(missing)[:8]))}")
        time.sleep(0.02)
    return fresh


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if local_rank >= visible:
        raise AqnetError(
            f"process {local_rank} of this node has no GPU: {visible} visible; "
            "start at most as many processes per node (--nproc_per_node)"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _group_device() -> torch.device:
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _of_collective(error: RuntimeError) -> bool:
    """gloo and nccl raise DistBackendError or, from older code paths, RuntimeErrors of theirs."""
    words = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "c10d")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


def _tell(error: Exception) -> None:
    if _arrivals is None:
        return
    with contextlib.suppress(RuntimeError):  # the store may have died with rank 0
        _arrivals.fail(f"rank {rank()}: {type(error).__name__}: {_one_line(error)}")


def _explanation(error: RuntimeError) -> str:
    """Another rank's message, or which ranks lag, or the collective's own words."""
    said = _one_line(error)
    if _arrivals is None:
        return said
    try:
        failure = _arrivals.failure()
        lagging = _arrivals.lagging() or f"all ranks came to a collective of step {_arrivals.step}"
    except RuntimeError:
        return f"rank 0, which holds the store, has gone; this was rank {rank()} ({said})"
    return failure or f"{lagging} ({said})"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
