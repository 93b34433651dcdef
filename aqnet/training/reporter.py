"""A training run's log: losses, speed, validation, maps and skipped steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from aqnet import distributed
from aqnet.distributed.launch import peak_bytes
from aqnet.physical import physical_fields, present
from aqnet.training.maps import Examples, mosaic
from aqnet.training.position import time_left
from aqnet.training.step import StepResult, TrainingState
from aqnet.training.telemetry import Telemetry


class Reporter:
    """Makes the log of a run: scalars are means over the steps between two log lines."""

    def __init__(self, state: TrainingState, item_flops: float, num_items: int) -> None:
        """`item_flops`: of the forward and backward of one item; `num_items`: of an epoch."""
        self._config, self._stopwatch = state.config, state.stopwatch
        self._item_flops = item_flops
        self._position, self._start = state.position, replace(state.position)
        self._num_items = num_items
        self._weights = state.weights.cpu()
        self.telemetry = Telemetry(
            self._config.run_dir,
            distributed.is_main(),
            state.position.global_step,
            self._config.train.max_steps,
        )
        self._forget()

    def step(self, step: int, items: int, result: StepResult, rate: float) -> None:
        """Count a step of `items` items over all ranks; every `train.log_every` steps, report."""
        self.telemetry.advance()
        self._items += items
        if result.updated:
            self._sums += torch.stack([result.errors, result.cells])
            self._pinball += result.pinball * result.cells.sum()
        else:
            self._skipped += 1
        if step % self._config.train.log_every:
            return
        with self._stopwatch.part("telemetry"):
            losses = self._losses()
        values = {
            **losses,
            "train/gradient_norm": result.norm,
            "train/learning_rate": rate,
            "train/skipped_steps": float(self._skipped),
            **self._speed(),
        }
        with self._stopwatch.part("telemetry"):
            self.telemetry.scalars(step, values)
            shown = ("train/loss", "train/learning_rate", "items_per_second")
            brief = {name.removeprefix("train/"): values[name] for name in shown}
            shares = {name: value for name, value in values.items() if name.startswith("time/")}
            left = time_left(self._config, self._position, self._start, self._num_items)
            self.telemetry.progress(step, {**brief, **shares}, left)
        self._forget()

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """Report a validation."""
        self.telemetry.scalars(step, values)
        line = f"step {step}  validation loss {values['validation/loss']:.4g}"
        skills = [value for name, value in values.items() if "/skill_persistence/" in name]
        if skills:
            line += f"  mean skill against persistence {sum(skills) / len(skills):.3f}"
        self.telemetry.say(line)

    def maps(self, step: int, forecast: Tensor, examples: Examples) -> None:
        """Draw `forecast` [B, K, T, H, W] of the example items beside their truth."""
        batch, data = examples.batch, self._config.data
        # validation gives the weather of the stores, which is an upper bound
        given = ", given analysed weather to come" if data.weather else ""
        truth = torch.where(batch.mask, batch.targets, torch.nan)
        now, ours, real = (
            physical_fields(part, data.targets, examples.statistics)
            for part in (present(batch, data), forecast, truth)
        )
        for item, time in enumerate(batch.time.tolist()):
            for row, target in enumerate(data.targets):
                fields = now[item, row], ours[item, :, row], real[item, :, row]
                about = data.lead_times, examples.units[target], examples.south_first
                name = f"maps/{target}/{np.datetime64(time, 'h')}{given}"
                self.telemetry.picture(step, name, partial(mosaic, *fields, *about))

    def bad_step(self, step: int, loss: float, norm: float, times: list[list[int]]) -> None:
        """Report a skipped step with its items' input times."""
        hours = sorted(time for row in times for time in row if time >= 0)
        texts = [f"{np.datetime64(hour, 'h')}" for hour in hours]
        self.telemetry.record(step, {"skipped_step_times": texts})
        self.telemetry.say(
            f"step {step}  skipped: loss {loss}, gradient norm {norm}; input times "
            f"{', '.join(texts[:8])}{' ...' if len(texts) > 8 else ''}"
        )

    def _losses(self) -> dict[str, float]:
        """The weighted loss, the unweighted means per target and lead time, and the quantiles'
        weighted pinball loss."""
        errors, cells = self._sums
        data = self._config.data
        by_target, by_lead = errors.sum(0) / cells.sum(0), errors.sum(1) / cells.sum(1)
        loss = (errors * self._weights).sum() / cells.sum()
        names = [f"train/loss/{name}" for name in data.targets]
        names += [f"train/loss/{lead}h" for lead in data.lead_times]
        parts = zip(names, [*by_target.tolist(), *by_lead.tolist()], strict=True)
        values = {"train/loss": float(loss), **dict(parts)}
        if self._config.model.quantiles:
            values["train/loss_quantiles"] = float(self._pinball / cells.sum())
        return values

    def _speed(self) -> dict[str, float]:
        wall, shares = self._stopwatch.shares()
        tflops = self._items * self._item_flops / wall / 1e12
        values = {
            "items_per_second": self._items / wall,
            "forecasts_per_second": self._items * len(self._config.data.lead_times) / wall,
            "tflops": tflops,
            "memory_gb": _peak_memory() / 1e9,
            **{f"time/{name}": share for name, share in shares.items()},
        }
        peak = self._config.plan.peak_tflops
        if peak is not None:
            values["peak_share"] = tflops / (peak * distributed.world_size())
        return values

    def _forget(self) -> None:
        self._sums = torch.zeros(2, *self._weights.shape, dtype=torch.float64)
        self._items = self._skipped = 0
        self._pinball = torch.zeros((), dtype=torch.float64)  # times the step's valid cells


def _peak_memory() -> int:
    """Bytes: of the GPU's tensors, or of the whole process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return peak_bytes()
