"""Reading tokens upwind to downwind: index tensors, and the sector of a sample's wind."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from aqnet.errors import AqnetError
from aqnet.grid import wrapped
from aqnet.model.tokens.positions import Patches, middle_longitude
from aqnet.trajectories import EARTH_RADIUS

NUM_SECTORS = 16
CALM_SPEED = 0.5  # m/s; below it a mean wind has no direction worth following


def wind_sector(u: Tensor, v: Tensor, valid: Tensor, num_sectors: int = NUM_SECTORS) -> Tensor:
    """Nearest of `num_sectors` directions toward which the mean wind of the valid cells blows.

    Args:
        u, v: eastward and northward wind [m/s], shape [..., cells]; NaN only where not valid.
        valid: bool, same shape.
    Returns:
        int64, shape [...]: 0 is eastward, counted counter-clockwise; `num_sectors` where the mean
        is below CALM_SPEED or no cell is valid.
    """
    count = valid.sum(dim=-1).clamp(min=1)
    mean_u = torch.where(valid, u, 0.0).sum(dim=-1) / count
    mean_v = torch.where(valid, v, 0.0).sum(dim=-1) / count
    turn = torch.atan2(mean_v, mean_u) * (num_sectors / (2.0 * math.pi))
    sector = torch.remainder(turn.round().long(), num_sectors)
    return torch.where(torch.hypot(mean_u, mean_v) < CALM_SPEED, num_sectors, sector)


class WindScan(nn.Module):
    """The scan orders of one grid's tokens, and which of them a sample's wind asks for.

    Buffers (not saved): `orders` and `ranks` [S + 2, L], each other's inverse. Row s < S is
    sector s; row S the calm and raster order by rows (northernmost first, west to east); row
    S + 1 by columns. With `regions` = (R, C), tokens are grouped by region and sorted inside it.
    """

    orders: Tensor
    ranks: Tensor
    local: Tensor
    last: Tensor
    quarter: Tensor
    region: Tensor
    mask: Tensor

    def __init__(
        self,
        patches: Patches,
        tokens: Tensor,
        regions: tuple[int, int] | None = None,
        num_sectors: int = NUM_SECTORS,
    ) -> None:
        """Build the tensors for the patches `tokens` [L].

        Raises:
            AqnetError: the regions do not divide the patches of the grid.
        """
        super().__init__()
        self.num_sectors = num_sectors
        self.split = regions or (1, 1)
        height, width = patches.shape
        if height % self.split[0] or width % self.split[1]:
            raise AqnetError(
                f"model.regions {list(self.split)} does not divide the grid of {height} x {width} "
                "patches; choose divisors of these"
            )
        region = _regions(patches.shape, self.split)
        x, y = ground_coordinates(patches, region if regions else None)
        keys = _sort_keys(patches, x, y, num_sectors)[:, :, tokens.numpy()]
        region_of_token = region[tokens]
        first = np.broadcast_to(region_of_token.numpy(), keys.shape[1:])
        orders = torch.from_numpy(np.lexsort((*keys[::-1], first), axis=-1))
        ranks = orders.argsort(dim=-1)
        sizes = torch.bincount(region_of_token, minlength=self.split[0] * self.split[1])
        local = ranks - (sizes.cumsum(0) - sizes)[region_of_token]
        last = (sizes - 1).clamp(min=1)[region_of_token]
        turned = (torch.arange(num_sectors) + num_sectors // 4) % num_sectors
        quarter = torch.cat([turned, torch.tensor([num_sectors + 1, num_sectors])])
        buffers = {"orders": orders, "ranks": ranks, "local": local, "last": last}
        buffers |= {"quarter": quarter, "region": region_of_token, "mask": patches.mask}
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor.contiguous(), persistent=False)

    def sort_windows(self, elevation_km: Tensor, window: int) -> None:
        """Sort each run of `window` tokens of the orders by elevation [L], for terrain attention.

        Which tokens share a window stays, and so does the place that the scan embedding tells.
        """
        by_elevation = elevation_km[self.orders].argsort(dim=1, stable=True)
        back = (by_elevation // window).argsort(dim=1, stable=True)
        self.orders = self.orders.gather(1, by_elevation.gather(1, back))
        self.ranks = self.orders.argsort(dim=1)

    def sectors(self, u: Tensor, v: Tensor) -> Tensor:
        """Sector of each sample and region, from the cells of the domain that hold a value.

        Args:
            u, v: wind [m/s], NaN where missing, shape [B, H, W].
        Returns:
            int64, shape [B, R * C].
        """
        u, v = self._by_region(u), self._by_region(v)
        inside = self._by_region(self.mask.unsqueeze(0))
        return wind_sector(u, v, inside & u.isfinite() & v.isfinite(), self.num_sectors)

    def calm(self, batch: int) -> Tensor:
        """The raster order for every sample and region, int64, shape [batch, R * C]."""
        regions = self.split[0] * self.split[1]
        return torch.full((batch, regions), self.num_sectors, device=self.orders.device)

    def both_ways(self, sector: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Orders, then ranks, [B, L] each, along and across the sectors [B]."""
        rows = (sector, self.quarter[sector])
        return [self.orders[row] for row in rows], [self.ranks[row] for row in rows]

    def fractions(self, sector: Tensor) -> Tensor:
        """Rank / (L - 1) inside a token's region, 0 where it is alone: [B, R * C] -> [B, L].

        In float64, and from integers, which a cast of the model leaves alone: the scan embedding
        makes phases of up to 31,416 radians of it, of which float32 would leave three digits.
        """
        if sector.shape[1] == 1:
            local = self.local[sector[:, 0]]
        else:
            token = torch.arange(self.region.shape[0], device=sector.device)
            local = self.local[sector[:, self.region], token]
        return local.double() / self.last

    def _by_region(self, field: Tensor) -> Tensor:
        """[B, H, W] -> [B, R * C, cells of a region]."""
        rows, columns = self.split
        batch, height, width = field.shape
        parts = field.reshape(batch, rows, height // rows, columns, width // columns)
        return parts.transpose(2, 3).reshape(batch, rows * columns, -1)


def ground_coordinates(patches: Patches, region: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Metres east and north of the centre, rounded to 1 m, float64, shape [h * w] each.

    x = R cos(lat) (lon - lon_c), y = R (lat - lat_c); c is the middle of the patches' range over
    the domain or, with `region` [h * w], over a patch's region. Nothing is periodic.
    """
    longitude = wrapped(patches.lon - middle_longitude(patches))
    if region is None:
        inside = patches.domain
        centre_lon = (longitude[inside].min() + longitude[inside].max()) / 2
        centre_lat = (patches.lat[inside].min() + patches.lat[inside].max()) / 2
    else:
        centre_lon, centre_lat = (_middles(field, region) for field in (longitude, patches.lat))
    lat = torch.deg2rad(patches.lat)
    x = EARTH_RADIUS * lat.cos() * torch.deg2rad(longitude - centre_lon)
    y = EARTH_RADIUS * torch.deg2rad(patches.lat - centre_lat)
    return x.round(), y.round()


def _middles(field: Tensor, region: Tensor) -> Tensor:
    """Middle of the range of `field` over the region of each element."""
    empty = field.new_zeros(int(region.max()) + 1)
    low = empty.scatter_reduce(0, region, field, "amin", include_self=False)
    high = empty.scatter_reduce(0, region, field, "amax", include_self=False)
    return ((low + high) / 2)[region]


def _regions(shape: tuple[int, int], split: tuple[int, int]) -> Tensor:
    """Number of the region of each patch, int64, shape [h * w]."""
    row = torch.arange(shape[0]) // (shape[0] // split[0])
    column = torch.arange(shape[1]) // (shape[1] // split[1])
    return (row.unsqueeze(1) * split[1] + column).reshape(-1)


def _sort_keys(patches: Patches, x: Tensor, y: Tensor, num_sectors: int) -> np.ndarray:
    """Keys from the first to the last, float64, shape [4, S + 2, h * w].

    Distances are rounded to 1 m again after the turn: the sine of 180 degrees is not quite 0 in
    floating point, and would decide ties.
    """
    angle = torch.arange(num_sectors, dtype=torch.float64).unsqueeze(1)
    angle = angle * (2.0 * math.pi / num_sectors)
    along = (x * angle.cos() + y * angle.sin()).round()
    cross = (y * angle.cos() - x * angle.sin()).round()
    row, column = _rows_and_columns(patches)
    first = torch.cat([along, row.unsqueeze(0), column.unsqueeze(0)])
    second = torch.cat([cross, column.unsqueeze(0), row.unsqueeze(0)])
    keys = torch.stack(
        [first, second, patches.lat.expand_as(first), wrapped(patches.lon).expand_as(first)]
    )
    result: np.ndarray = keys.numpy()
    return result


def _rows_and_columns(patches: Patches) -> tuple[Tensor, Tensor]:
    """Row counted from the north and column counted from the west, float64, shape [h * w]."""
    height, width = patches.shape
    row = torch.arange(height).double().unsqueeze(1).expand(height, width)
    column = torch.arange(width).double().unsqueeze(0).expand(height, width)
    lat = patches.lat.reshape(height, width).mean(dim=1)
    lon = patches.lon.reshape(height, width)
    if lat[0] < lat[-1]:
        row = height - 1 - row
    if wrapped(lon.diff(dim=1)).sum() < 0:
        column = width - 1 - column
    return row.reshape(-1), column.reshape(-1)
