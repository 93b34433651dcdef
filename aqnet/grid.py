"""Where the cells are."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the cells are.

    Attributes:
        lat, lon: degrees north and east, float64, shape [H, W]; rows may run either way.
        elevation: metres, float32, shape [H, W], NaN where unknown; None where there is none.
        mask: the domain: cells in which forecasts are made and scored, bool, shape [H, W].
    """

    lat: Tensor
    lon: Tensor
    elevation: Tensor | None
    mask: Tensor

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value.shape != self.lat.shape:
                raise ValueError(
                    f"Grid.{field.name} has shape {tuple(value.shape)}, lat {self.lat.shape}"
                )

    def to_dict(self) -> dict[str, Tensor]:
        """What is known, by name, as stored in checkpoints."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Tensor]) -> Grid:
        """The inverse of `to_dict`."""
        return cls(values["lat"], values["lon"], values.get("elevation"), values["mask"])

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.lat.shape
        return height, width

    @property
    def on_degrees(self) -> bool:
        """Whether rows follow parallels and columns meridians; otherwise the grid is projected."""
        lat, lon = self.lat, self.lon
        return torch.allclose(lat, lat[:, :1]) and torch.allclose(lon, lon[:1])

    def summary(self) -> dict[str, Any]:
        """What tells grids apart, as a checkpoint keeps it: shape, cells of the domain, and the
        first and last cell's latitude and longitude, rounded to 0.001 degrees."""
        corners = [
            [round(float(part.flatten()[at]), 3) for at in (0, -1)] for part in (self.lat, self.lon)
        ]
        return {
            "shape": list(self.shape),
            "cells": int(self.mask.sum()),
            "lat": corners[0],
            "lon": corners[1],
        }
