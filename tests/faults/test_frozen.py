"""A rank, the launcher or the holder of the store stops for good: the others name it and end."""

import contextlib
import io
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from aqnet import distributed, errors
from aqnet.distributed.arrivals import ANSWER_SECONDS
from tests.distributed.test_distributed import on_ranks

TIMEOUT = 4.0
SLACK = 3.0  # on a busy machine; measured: 0.04


def exchange_until_one_stops(
    folder: Path, victim: int, delay: float, said: str, within: float
) -> None:
    """Collectives of both kinds; `victim` is stopped by a signal after `delay` seconds."""
    rank = distributed.rank()
    (folder / f"{rank}").write_text(str(os.getpid()))
    wrapped = distributed.wrap(torch.nn.Linear(300, 300))

    def exchange() -> None:
        with distributed.explained():
            for step in range(10**6):
                distributed.at_step(step)
                result = wrapped(torch.ones(50, 300)).sum()
                with distributed.collective():
                    result.backward()
                distributed.barrier()

    distributed.barrier()
    if rank == victim:
        stop = (os.getpid(), signal.SIGSTOP)
        threading.Timer(delay, os.kill, stop).start()
    start, told = time.monotonic(), io.StringIO()
    try:
        with contextlib.redirect_stderr(told), pytest.raises(SystemExit) as ended:
            errors.run(exchange)
        spent = time.monotonic() - start - delay
        assert ended.value.code == 2
        *warnings, error = told.getvalue().splitlines()
        assert error.startswith(f"error: {said}") or f"; {said}" in error, error
        (folder / f"warnings{rank}").write_text("\n".join(warnings))
        assert spent < within, spent
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
    given = (tmp_path, 2, delay, said, TIMEOUT + SLACK)
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match=r"process 2 .*SIGKILL"):
        on_ranks(3, exchange_until_one_stops, *given, timeout=TIMEOUT)
    warned = [(tmp_path / f"warnings{rank}").read_text() for rank in (0, 1)]
    (warning,) = [text for text in warned if text]  # one warns for all
    assert warning.startswith("warning: rank ") and said in warning


def test_ranks_end_where_the_holder_of_the_store_is_stopped(tmp_path: Path):
    """Whoever asks it waits for its answer before."""
    said = "the store of the rendezvous does not answer: rank 0, or the launcher"
    given = (tmp_path, 0, 0.3, said, TIMEOUT + ANSWER_SECONDS + SLACK)
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match=r"process 0 .*SIGKILL"):
        on_ranks(3, exchange_until_one_stops, *given, timeout=TIMEOUT)
    for rank in (1, 2):
        warning = (tmp_path / f"warnings{rank}").read_text()
        assert warning.startswith(f"warning: rank {rank} waits: {said}")
