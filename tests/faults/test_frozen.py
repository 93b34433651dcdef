"""A rank, the launcher or the holder of the store stops for good: the others name it and end."""

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from aqnet import distributed
from aqnet.errors import AqnetError
from tests.distributed.test_distributed import on_ranks

TIMEOUT = 4.0


def exchange_until_one_stops(folder: Path, victim: int, delay: float, said: str) -> None:
    """Collectives of both kinds; `victim` is stopped by a signal after `delay` seconds."""
    rank = distributed.rank()
    (folder / f"{rank}").write_text(str(os.getpid()))
    wrapped = distributed.wrap(torch.nn.Linear(300, 300))
    distributed.barrier()
    if rank == victim:
        stop = (os.getpid(), signal.SIGSTOP)
        threading.Timer(delay, os.kill, stop).start()
    start = time.monotonic()
    try:
        with pytest.raises(AqnetError) as error, distributed.explained():
            for step in range(10**6):
                distributed.at_step(step)
                result = wrapped(torch.ones(50, 300)).sum()
                with distributed.collective():
                    result.backward()
                distributed.barrier()
        assert said in str(error.value)
        assert time.monotonic() - start < 3 * TIMEOUT + 10.0
    finally:
        # one of those that live ends the stopped one, or nobody could wait for it
        if rank == (victim + 1) % distributed.world_size():
            time.sleep(2.0)
            os.kill(int((folder / f"{victim}").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("attempt", range(2))
def test_a_rank_stopped_at_any_moment_is_named(tmp_path: Path, attempt: int):
    """In a backward, in a collective or between two: it came to the last one, and may be in it."""
    delay = random.uniform(0.05, 0.5)
    said = "ranks that give no sign of life (stopped, killed or cut off): 2 (step"
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match=r"process 2 .*SIGKILL"):
        on_ranks(3, exchange_until_one_stops, tmp_path, 2, delay, said, timeout=TIMEOUT)


def test_ranks_end_where_the_holder_of_the_store_is_stopped(tmp_path: Path):
    said = "the store of the rendezvous does not answer: rank 0, or the launcher"
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match=r"process 0 .*SIGKILL"):
        on_ranks(3, exchange_until_one_stops, tmp_path, 0, 0.3, said, timeout=TIMEOUT)
