import io
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from aqnet.training.telemetry import Stopwatch, Telemetry


def records(folder: Path) -> list[dict[str, float | None]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_scalars_reach_the_jsonl_file_and_tensorboard(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    telemetry = Telemetry(tmp_path, active=True)
    telemetry.scalars(1, {"loss": 0.5, "rate": math.nan})
    telemetry.close()
    assert records(tmp_path) == [{"step": 1, "loss": 0.5, "rate": None}]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(point.step, point.value) for point in board.Scalars("loss")] == [(1, 0.5)]


def test_points_of_a_run_that_is_killed_after_a_flush_are_on_disk(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    telemetry = Telemetry(tmp_path, active=True)
    telemetry.scalars(1, {"loss": 0.5})
    telemetry.flush()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [point.value for point in board.Scalars("loss")] == [0.5]
    telemetry.close()


def test_continued_run_drops_records_after_its_checkpoint(tmp_path: Path):
    telemetry = Telemetry(tmp_path, active=True)
    for step in range(1, 5):
        telemetry.scalars(step, {"loss": 1.0})
    telemetry.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')  # killed while writing
    telemetry = Telemetry(tmp_path, active=True, first_step=2)
    telemetry.scalars(3, {"loss": 2.0})
    telemetry.close()
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3]
    assert records(tmp_path)[-1]["loss"] == 2.0


def test_other_ranks_write_and_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    telemetry = Telemetry(tmp_path / "run", active=False)
    telemetry.scalars(1, {"loss": 1.0})
    telemetry.text("config", "seed: 0")
    telemetry.progress(1, {"loss": 1.0})
    telemetry.close()
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_progress_line_names_step_loss_and_time_shares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    telemetry = Telemetry(tmp_path, active=True, last_step=10)
    telemetry.progress(3, {"loss": 0.12345678, "time/forward": 0.25}, "0:01:10")
    telemetry.close()
    assert capsys.readouterr().out == "step 3/10  loss 0.1235  eta 0:01:10  forward 25%\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_there_is_a_progress_bar_and_lines_stand_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    telemetry = Telemetry(tmp_path, active=True, first_step=1, last_step=3)
    telemetry.progress(2, {"loss": 0.5})
    telemetry.advance()
    telemetry.advance()
    telemetry.close()
    assert "step 2/3  loss 0.5\n" in terminal.getvalue()
    assert "| 3/3 [" in terminal.getvalue()


def test_time_shares_add_up_to_the_wall_time():
    watch = Stopwatch(torch.device("cpu"))
    with watch.part("forward"):
        time.sleep(0.02)
    time.sleep(0.02)
    wall, shares = watch.shares()
    assert wall >= 0.04
    assert sum(shares.values()) == pytest.approx(1.0)
    assert 0.1 < shares["forward"] < 0.9
    assert watch.shares()[1].keys() == {"other"}


def test_a_map_that_cannot_be_drawn_is_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def broken() -> np.ndarray:
        raise ValueError("no colours\nleft")

    telemetry = Telemetry(tmp_path, active=True)
    telemetry.picture(1, "maps/pm25", lambda: np.zeros((4, 4, 3), np.uint8))
    telemetry.picture(1, "maps/o3", broken)
    telemetry.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: 1 of 2 maps could not be drawn")
    assert line.endswith("ValueError: no colours left")
