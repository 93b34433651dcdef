"""The types that data, model, training and evaluation share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from aqnet.config import channel
from aqnet.errors import AqnetError


class Batch(NamedTuple):
    """B input times, each with its K lead times.

    An empty item (the sampler's index -1) has NaN fields, NaN targets and an all-false mask.

    Attributes:
        fields: normalised inputs in the order of `Config.input_variables`, NaN where missing,
            float32, shape [B, V, H, W].
        time: input time, whole hours since 1970-01-01 00:00 UTC, int64, shape [B].
        lead_time: hours, int64, shape [B, K].
        targets: normalised truth, NaN where missing, float32, shape [B, K, T, H, W].
        mask: where a target counts (finite and inside the domain), bool, shape [B, K, T, H, W].
    """

    fields: Tensor
    time: Tensor
    lead_time: Tensor
    targets: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device` (copied without waiting where the memory is pinned)."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by torch's DataLoader)."""
        return Batch(*(tensor.pin_memory() for tensor in self))


class Forecast(NamedTuple):
    """What a model says of the targets of a batch.

    Attributes:
        mean: normalised, shape [B, K, T, H, W].
        quantiles: of the truth at the levels of `model.quantiles`, increasing, normalised, shape
            [B, Q, K, T, H, W]; while training at C cells only, [B, Q, K, T, C]; None without.
        cells: which those C are, of the flattened grid, int64, shape [C]; None for all.
    """

    mean: Tensor
    quantiles: Tensor | None = None
    cells: Tensor | None = None

    @classmethod
    def of(cls, output: Tensor | Forecast) -> Forecast:
        """What a model gave, also one without quantiles, which gives the mean alone."""
        return cls(output) if isinstance(output, Tensor) else output


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each variable in its physical unit.

    `names` holds plain variable names. `NAME@-24h` and `NAME@+12h` share the numbers of NAME;
    `NAME@mean7d`, a difference from NAME, has mean 0 and NAME's standard deviation, so that the two
    can be added.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of(self, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of `names` in that order, float64, shape [len(names)].

        Raises:
            KeyError: a name has no statistics.
        """
        at = {name: position for position, name in enumerate(self.names)}
        channels = [channel(name) for name in names]
        mean = [0.0 if part.days else self.mean[at[part.variable]] for part in channels]
        std = [self.std[at[part.variable]] for part in channels]
        return torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)

    def to_dict(self) -> dict[str, dict[str, float]]:
        """`{name: {"mean": ..., "std": ...}}`, as stored in statistics.json and in checkpoints."""
        rows = zip(self.names, self.mean, self.std, strict=True)
        return {name: {"mean": mean, "std": std} for name, mean, std in rows}

    @classmethod
    def from_dict(cls, values: dict[str, dict[str, float]]) -> Statistics:
        """The inverse of `to_dict`.

        Raises:
            AqnetError: there are none, as in weights imported from ClimaX.
        """
        if not values:
            raise AqnetError(
                "the checkpoint holds no statistics, as it was imported from ClimaX; train a model "
                "from it with train.init_from and train.init_statistics: data"
            )
        return cls(
            tuple(values),
            tuple(float(row["mean"]) for row in values.values()),
            tuple(float(row["std"]) for row in values.values()),
        )
