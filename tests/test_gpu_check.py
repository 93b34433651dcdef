"""The program for machines with a GPU runs here too, small and on the CPU."""

import subprocess
import time
from collections.abc import Iterator

import pytest
import torch

from aqnet.errors import AqnetError
from tests.conftest import run
from tests.gpu_attention import Row
from tests.gpu_check import guarded

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "error", [subprocess.TimeoutExpired("torchrun", 300), AqnetError("no GPU"), KeyError("x")]
)
def test_a_check_that_fails_in_any_way_is_a_row_like_any_other(error: Exception):
    def check(device: torch.device) -> Iterator[Row]:
        yield Row("first", "", True)
        raise error

    first, second = guarded(check, CPU, time.monotonic() + 60)
    assert first.ok and not second.ok
    assert second.name == "check" and second.found.startswith(type(error).__name__)


def test_what_comes_after_the_time_is_over_is_not_made_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
):
    now = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))

    def check(device: torch.device) -> Iterator[Row]:
        for number in range(5):
            yield Row(str(number), "", True)

    rows = list(guarded(check, CPU, 2.0))  # the third look is at 2
    assert [row.name for row in rows] == ["0", "1", "check"]
    assert rows[-1].found.endswith("out of time") and not rows[-1].ok
    (row,) = guarded(check, CPU, 2.0)
    assert row.found.endswith("out of time")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_says_so_where_there_is_no_gpu():
    assert run("-m", "tests.gpu_check").stdout == "no GPU\n"


@pytest.mark.slow
def test_every_check_ends_and_is_right_on_the_cpu():
    lines = run("-m", "tests.gpu_check", "--cpu").stdout.splitlines()
    assert len(lines) > 20
    assert all(line.endswith("| ok |") for line in lines if line.startswith("|"))
    assert lines[-1].endswith("34 of 34 checks are right")
