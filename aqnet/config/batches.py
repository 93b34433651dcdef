"""How the effective batch divides among processes and micro-batches."""

from __future__ import annotations

from aqnet.config.keys import Config
from aqnet.errors import AqnetError


def accumulation(config: Config, world_size: int) -> int:
    """Micro-batches per optimizer step and process.

    Raises:
        AqnetError: the effective batch does not divide; the nearest that do are named.
    """
    train = config.train
    unit = len(config.data.lead_times) * world_size * train.micro_batch
    if train.effective_batch % unit == 0:
        return train.effective_batch // unit
    below = train.effective_batch // unit * unit
    near = " or ".join(str(n) for n in (below, below + unit) if n > 0)
    items, rest = divmod(train.effective_batch, len(config.data.lead_times) * world_size)
    sizes = [n for n in range(1, items + 1) if items % n == 0] if rest == 0 else []
    hint = f", or train.micro_batch one of {sizes}" if sizes else ""
    raise AqnetError(
        f"train.effective_batch is {train.effective_batch} forecasts, which is no multiple of "
        f"{unit} ({len(config.data.lead_times)} lead times x {world_size} processes x "
        f"micro_batch {train.micro_batch}); set train.effective_batch to {near}{hint}"
    )
