"""What the wind brings: the targets, and the places, where the air of each cell comes from."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aqnet.config import Config, Model
from aqnet.grid import Grid, wrapped
from aqnet.model.tokens.embedding import patch_pixels
from aqnet.model.tokens.positions import Patches, middle_longitude, unbroken
from aqnet.trajectories import EARTH_RADIUS, Trajectories, sample

THOUSAND_KM = 1e6  # m


class Brought(NamedTuple):
    """What the air brings; in conditioned mode to each of the lead times asked for.

    Attributes:
        targets: at the air's departure, normalised, NaN where unknown, shape [B, K, T, H, W];
            None where the model does not move fields.
        displacement: of the air's departure from the token it reaches after each lead time, in
            ascending order, [1,000 km], shape [B, L, K, 2]. Conditioned: [B * K, L, all, 2], beyond
            the own lead time as at that time. None without attention along the wind.
    """

    targets: Tensor | None = None
    displacement: Tensor | None = None


class Transport(nn.Module):
    """The air's paths to all cells and lead times, by the wind of the input time and those to come.

    `speed` and `turn` (saved) say how what moves the air differs from the stored wind, which is
    that of one height: the factor of its speed, and degrees counter-clockwise. `embed` makes of
    the moved targets what they add to a token; `rho` [K, T] is theirs in the forecast change.
    """

    speed: Tensor
    turn: Tensor
    ground: Tensor
    parallel: Tensor
    rounds: Tensor | None
    position: Tensor
    tokens: Tensor
    rank: Tensor
    rho: nn.Parameter | None

    def __init__(self, config: Config, grid: Grid, patches: Patches, tokens: Tensor) -> None:
        super().__init__()
        model, lead_times = config.model, config.data.lead_times
        self.patch = model.patch
        self.joint = model.lead_time_mode == "joint"
        self.along_wind = along_wind(model)
        self.wind_hours = config.wind_hours
        self.trajectories = Trajectories(grid, lead_times)
        self.register_buffer("speed", torch.ones(()))
        self.register_buffer("turn", torch.zeros(()))
        if moves_fields(model):
            targets, leads = len(config.data.targets), len(lead_times) if self.joint else 1
            self.embed = nn.Linear(model.patch**2 * leads * targets, model.embed_dim)
        moved_change = moves_fields(model) and model.predict == "change"
        rho = torch.zeros(len(lead_times), len(config.data.targets))
        self.rho = nn.Parameter(rho) if moved_change else None
        domain_lat, centre_lon = patches.lat[patches.domain], middle_longitude(patches)
        centre_lat = (domain_lat.min() + domain_lat.max()) / 2
        east = wrapped(patches.lon[tokens] - centre_lon)
        position = _on_ground(patches.lat[tokens], east, centre_lat)
        lat, east = grid.lat.double(), wrapped(grid.lon.double() - centre_lon)
        # the map may be cut between two columns; what is interpolated must not jump there
        rounds = ((unbroken(east) - east) / 360.0).round()
        buffers = {
            "ground": _on_ground(lat, unbroken(east), centre_lat),
            "parallel": _on_ground(lat, torch.full_like(lat, 360.0), lat),
            "rounds": rounds if bool(rounds.any()) else None,
            "position": position.T,
            "tokens": tokens,
            "rank": torch.tensor(lead_times).argsort().argsort(),
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, u: Tensor, v: Tensor, targets: Tensor | None, own: Tensor) -> Brought:
        """Follow the air back from the lead times.

        Args:
            u, v: wind [m/s] at the N `wind_hours`, NaN where missing, shape [B, N, H, W].
            targets: normalised, NaN where missing, shape [B, T, H, W]; None: they are not moved.
            own: numbers of the lead times asked for, shape [B, K]; joint: all of them.
        """
        points = self.trajectories.departures(u, v, self.wind_hours, self.speed, self.turn)
        displacement = self._displacement(points) if self.along_wind else None
        if self.joint:
            return Brought(None if targets is None else sample(targets, points), displacement)
        row = torch.arange(own.shape[0], device=own.device).unsqueeze(1)
        if displacement is not None:
            until = (
                self.rank[own].unsqueeze(2).minimum(torch.arange(len(self.rank), device=own.device))
            )
            displacement = displacement.transpose(1, 2)[row.unsqueeze(2), until]
            displacement = displacement.flatten(0, 1).transpose(1, 2)
        return Brought(None if targets is None else sample(targets, points[row, own]), displacement)

    def embedded(self, moved: Tensor) -> Tensor:
        """What moved targets add to tokens, shape [B, L, D]; conditioned: [B * K, L, D]."""
        fields = moved.nan_to_num(0.0)
        fields = fields.flatten(1, 2) if self.joint else fields.flatten(0, 1)
        result: Tensor = self.embed(self._by_token(fields).flatten(2))
        return result

    def _displacement(self, points: Tensor) -> Tensor:
        """Mean over the cells of each token of points [B, K, 2, H, W]; shape [B, L, K, 2]."""
        there = _change(self.ground, points)
        if self.rounds is not None:
            there = there - self.rounds.to(points.dtype) * _change(self.parallel, points)
        there = there.index_select(1, self.rank.argsort())
        return self._by_token(there.flatten(1, 2)).mean(dim=3).unflatten(2, (-1, 2))

    def _by_token(self, fields: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, L, C, p * p]; patches that stick out repeat their last cells."""
        height, width = fields.shape[2:]
        beyond = (0, -width % self.patch, 0, -height % self.patch)
        fields = F.pad(fields, beyond, mode="replicate")
        return patch_pixels(fields, self.patch).index_select(1, self.tokens)


def moves_fields(model: Model) -> bool:
    """Whether the targets at the air's departure enter the model and its change."""
    return model.transport in ("wind", "fields")


def along_wind(model: Model) -> bool:
    """Whether attention looks along the wind."""
    return model.transport in ("wind", "attention")


def _change(field: Tensor, points: Tensor) -> Tensor:
    """What a field [C, H, W] has more at points [B, K, 2, H, W] than in their cells."""
    field = field.to(points.dtype)
    return sample(field.expand(points.shape[0], -1, -1, -1), points) - field


def _on_ground(lat: Tensor, east: Tensor, centre_lat: Tensor) -> Tensor:
    """East and north of the domain's centre [1,000 km], along parallels, shape [2, ...], of cells
    `east` degrees from it."""
    x = torch.deg2rad(lat).cos() * torch.deg2rad(east)
    return torch.stack([x, torch.deg2rad(lat - centre_lat)]) * (EARTH_RADIUS / THOUSAND_KM)
