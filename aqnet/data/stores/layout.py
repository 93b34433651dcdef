"""What all stores of a run have in common, which its checkpoints keep: a forecast needs no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aqnet.checkpoint.files import Loaded
from aqnet.data.stores.store import KINDS, Kind, Store
from aqnet.grid import Grid


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the cells are and what the channels of an hour's fields mean.

    Attributes:
        channels: names of those of `weather` and of `air`.
        units: of channels and static fields.
        static: fields without a time in physical units, shape [H, W].
    """

    grid: Grid
    channels: dict[Kind, tuple[str, ...]]
    units: dict[str, str]
    static: dict[str, NDArray[Any]]

    @classmethod
    def of(cls, store: Store) -> Layout:
        """That of a store."""
        return cls(store.grid, store.channels, store.units, store.static)

    @classmethod
    def of_checkpoint(cls, loaded: Loaded) -> Layout | None:
        """The inverse of `tensors` and `words`; None where the checkpoint does not hold them (it is
        older than they are, or was imported)."""
        if loaded.grid is None or loaded.static is None:
            return None
        static = {name: np.asarray(field) for name, field in loaded.static.items()}
        channels, units = loaded.state["channels"], loaded.state["units"]
        named: dict[Kind, tuple[str, ...]] = {kind: tuple(channels[kind]) for kind in KINDS}
        return cls(Grid.from_dict(loaded.grid), named, units, static)

    @property
    def names(self) -> tuple[str, ...]:
        """Channels of `weather`, then of `air`."""
        return self.channels["weather"] + self.channels["air"]

    def kind(self, name: str) -> Kind:
        """Whether a variable is among `weather` or `air`."""
        return "air" if name in self.channels["air"] else "weather"

    def places(self, names: Sequence[str], kind: Kind) -> list[int]:
        """Which channels of `weather` or `air` some variables are."""
        return [self.channels[kind].index(name) for name in names]

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """What a checkpoint's model.pt keeps of it."""
        static = {name: torch.from_numpy(field) for name, field in self.static.items()}
        return {"grid": self.grid.to_dict(), "static": static}

    def words(self) -> dict[str, Any]:
        """What a checkpoint's state.json keeps of it."""
        return {"channels": dict(self.channels), "units": self.units, "grid": self.grid.summary()}
