"""Everything that calls torch.distributed. All functions also work in one process without a group.

There is one communicator, the default group: the first collective of a second RCCL group hung in
13 of 17 runs on LUMI (laifs-container-recipes #44). Facts that need no collective go through the
rendezvous store.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aqnet.distributed import launch
from aqnet.distributed.arrivals import Arrivals, limit, under_torchrun
from aqnet.errors import AqnetError, one_line

Result = TypeVar("Result")
_arrivals: Arrivals | None = None


def start(timeout_seconds: float) -> torch.device:
    """Join the other processes (as torchrun's environment says) and return this one's device.

    Args:
        timeout_seconds: after this long in one collective the run ends with an error.
    Raises:
        AqnetError: there are fewer GPUs on this node than processes, or the others did not come.
    """
    if under_torchrun():
        launch.die_with_parent()
        launch.end_if_orphaned()
    device = launch.device_of(int(os.environ.get("LOCAL_RANK", "0")))
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or dist.is_initialized():
        return device
    # DDP loads this module, whose default arguments keep the group that exists while it is loaded
    importlib.import_module("torch.distributed.nn.functional")
    timeout = datetime.timedelta(seconds=timeout_seconds)
    found = {key: os.environ.get(key) for key in ("RANK", "MASTER_ADDR", "MASTER_PORT")}
    lost = f"the {size} processes did not find each other ({found})"
    try:
        # a store that is stopped, or a peer that dies on the way, may be waited for without end
        with limit(1.1 * timeout_seconds + 5.0, lost):
            store, rank_, size = launch.rendezvous(timeout)
            store = dist.PrefixStore(launch.attempt(store, rank_, size, timeout), store)
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=dist.PrefixStore("group", store),
                rank=rank_,
                world_size=size,
                timeout=timeout,
                device_id=device if device.type == "cuda" else None,
            )
    except (dist.DistError, RuntimeError, ValueError, OSError) as error:
        raise AqnetError(f"{lost}: {one_line(error)}") from error
    global _arrivals
    _arrivals = Arrivals(dist.PrefixStore("aqnet", store), rank_, size, timeout_seconds)
    return device


def stop() -> None:
    """Leave the process group (nothing to do without one), also with an error on its way.

    Drop the wrapped model before: a thread of gloo that outlives this call may ask for Python's
    lock when the interpreter has gone, which aborts the process ("terminate called without an
    active exception"). The error loses its local variables, for they may hold the model.
    With nccl a process that fails while others are in a collective would wait for them here
    (pytorch/torchtitan #1342); so it ends with the group open.
    """
    global _arrivals
    arrivals, _arrivals = _arrivals, None
    error = sys.exc_info()[1]
    if dist.is_initialized() and not (error is not None and dist.get_backend() == "nccl"):
        cause = error
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__context__
        gc.collect()  # DDP is part of reference cycles and holds the group
        dist.destroy_process_group()
    if arrivals is not None:
        arrivals.linger()
        arrivals.close()


def at_step(step: int) -> None:
    """The collectives from here on belong to optimizer step `step`; errors name it."""
    if _arrivals is not None:
        _arrivals.step = step


@contextlib.contextmanager
def collective() -> Iterator[None]:
    """Inside, this process counts as waiting for the others, and they know it.

    All functions here do so themselves; put it around a backward that exchanges gradients.
    """
    if _arrivals is not None:
        _arrivals.enter()
    yield
    if _arrivals is not None:
        _arrivals.leave()


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Inside, errors that only a broken or hung collective caused name their cause.

    An error of this process is reported to the others and goes on unchanged. Where a collective
    fails because another process did, AqnetError repeats that one's message; where it failed by the
    time-out or because a process was killed, AqnetError names the ranks that did not arrive.
    With nccl this needs a collective that raises: `Arrivals` warns before the time-out.
    """
    try:
        yield
    except AqnetError as error:
        _report(error)
        raise
    except RuntimeError as error:
        if not _of_collective(error):
            _report(error)
            raise
        message = one_line(error)
        raise AqnetError(
            message if _arrivals is None else _arrivals.explanation(message)
        ) from error
    except (ArithmeticError, AssertionError, LookupError, OSError, TypeError, ValueError) as error:
        _report(error)
        raise


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, the process that writes files and prints."""
    return rank() == 0


def say(line: str) -> None:
    """Print a line, on rank 0 alone."""
    if is_main():
        print(line, flush=True)


def sum_(tensor: Tensor) -> Tensor:
    """Sum over the processes, in place (any device); returns `tensor`."""
    if world_size() > 1:
        on_device = tensor.to(_group_device())
        with collective():
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
    with collective():
        dist.broadcast_object_list(box, src=0, device=_group_device())
    return box[0]


def gather_objects(obj: Any) -> list[Any] | None:
    """Every process's `obj` in the order of ranks, on rank 0; None on the others."""
    if world_size() == 1:
        return [obj]
    boxes: list[Any] | None = [None] * world_size() if is_main() else None
    with collective():
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


def wrap(model: nn.Module) -> nn.Module:
    """`model` with gradients averaged over the processes; `model` itself if there is only one.

    Rank 0's parameters are given to all. Buffers are not exchanged: they are index tensors that
    every process makes for itself.
    """
    if world_size() == 1:
        return model
    device = _group_device()
    with collective(), warnings.catch_warnings():
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


def _group_device() -> torch.device:
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _of_collective(error: RuntimeError) -> bool:
    """gloo and nccl raise DistBackendError or, from older code paths, RuntimeErrors of theirs."""
    words = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "c10d")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


def _report(error: Exception) -> None:
    if _arrivals is not None:
        _arrivals.report(error)
