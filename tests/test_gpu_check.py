"""The program for machines with a GPU runs here too, small and on the CPU."""

import pytest
import torch

from tests.conftest import run


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_says_so_where_there_is_no_gpu():
    assert run("-m", "tests.gpu_check").stdout == "no GPU\n"


@pytest.mark.slow
def test_every_check_ends_and_is_right_on_the_cpu():
    lines = run("-m", "tests.gpu_check", "--cpu").stdout.splitlines()
    assert len(lines) > 20
    assert all(line.endswith("| ok |") for line in lines if line.startswith("|"))
    assert lines[-1].endswith("34 of 34 checks are right")
