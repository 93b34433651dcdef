"""What all stores of a run have in common, which its checkpoints keep: a forecast needs no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aqnet.checkpoint.files import Loaded
from aqnet.data.store import Store
from aqnet.grid import Grid


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the cells are and what the channels of an hour's fields mean.

    Attributes:
        names: channels of the fields [C, H, W] of an hour.
        units: of channels and static fields.
        static: fields without a time in physical units, shape [H, W].
    """

    grid: Grid
    names: tuple[str, ...]
    units: dict[str, str]
    static: dict[str, NDArray[Any]]

    @classmethod
    def of(cls, store: Store) -> Layout:
        """That of a store."""
        return cls(store.grid, store.names, store.units, store.static)

    @classmethod
    def of_checkpoint(cls, loaded: Loaded) -> Layout | None:
        """The inverse of `tensors` and `words`; None where the checkpoint does not hold them (it is
        older than they are, or was imported)."""
        if loaded.grid is None or loaded.static is None:
            return None
        static = {name: np.asarray(field) for name, field in loaded.static.items()}
        names, units = loaded.state["channels"], loaded.state["units"]
        return cls(Grid.from_dict(loaded.grid), tuple(names), units, static)

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """What a checkpoint's model.pt keeps of it."""
        static = {name: torch.from_numpy(field) for name, field in self.static.items()}
        return {"grid": self.grid.to_dict(), "static": static}

    def words(self) -> dict[str, Any]:
        """What a checkpoint's state.json keeps of it."""
        return {"channels": self.names, "units": self.units, "grid": self.grid.summary()}
