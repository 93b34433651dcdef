"""Where tokens are: sine-cosine tables, and the patches of a grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from aqnet.errors import AqnetError
from aqnet.grid import Grid, continuous, wrapped

METRES_PER_KM = 1000.0


def sincos_1d(position: Tensor, dim: int) -> Tensor:
    """Sine then cosine of `position` at dim/2 frequencies from 1 to 1/10,000 (Vaswani et al.).

    Args:
        position: any shape [...].
    Returns:
        Shape [..., dim]; `dim` is even.
    """
    exponent = torch.arange(dim // 2, dtype=position.dtype, device=position.device) / (dim // 2)
    angle = position.unsqueeze(-1) * torch.pow(10000.0, -exponent)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def sincos_2d(height: int, width: int, dim: int) -> Tensor:
    """Table of a raster of tokens, half of it from the column and half from the row (ClimaX).

    Returns:
        float32, shape [1, height * width, dim]; `dim` is a multiple of 4.
    """
    row, column = torch.meshgrid(
        torch.arange(height, dtype=torch.float64),
        torch.arange(width, dtype=torch.float64),
        indexing="ij",
    )
    table = torch.cat([sincos_1d(column, dim // 2), sincos_1d(row, dim // 2)], dim=-1)
    return table.reshape(1, height * width, dim).float()


def fraction_features(fraction: Tensor, dim: int) -> Tensor:
    """Sine and cosine of positions between 0 and 1, periods from 2 to 1/5,000.

    Args:
        fraction: rank / (L - 1), shape [...].
    Returns:
        Shape [..., dim]; `dim` is even.
    """
    step = torch.arange(dim // 2, dtype=fraction.dtype, device=fraction.device) / (dim // 2 - 1)
    angle = fraction.unsqueeze(-1) * (math.pi * torch.pow(10000.0, step))
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def unbroken(lon: Tensor) -> Tensor:
    """Longitudes [H, W] without jumps of 360 degrees from column to column and row to row."""
    return torch.from_numpy(continuous(lon.numpy()))


@dataclass(frozen=True, eq=False)
class Patches:
    """The h x w patches of a grid padded to whole patches, in the order of the stored rows.

    Attributes:
        shape: (h, w).
        lat, lon: patch centres, degrees, float64, shape [h * w].
        elevation_km: mean of the known elevations of a patch, 0 where none is, float64, [h * w].
        mask: the padded domain mask, bool, shape [h * p, w * p].
        domain: whether a patch holds a cell of the domain, bool, shape [h * w].
    """

    shape: tuple[int, int]
    lat: Tensor
    lon: Tensor
    elevation_km: Tensor
    mask: Tensor
    domain: Tensor


def patches_of(grid: Grid, patch: int) -> Patches:
    """The patches of `grid`; rows and columns are added below and to the right where needed.

    Raises:
        AqnetError: no cell of the grid is in the domain.
    """
    if not bool(grid.mask.any()):
        raise AqnetError("the domain mask has no valid cell: nothing to forecast; check the mask")
    first = grid.lon.reshape(-1)[0]
    offset = unbroken(wrapped(grid.lon.double() - first))
    lat, offset = (_extended(field.double(), patch) for field in (grid.lat, offset))
    mask = _padded(grid.mask, patch, False)
    height, width = mask.shape[0] // patch, mask.shape[1] // patch
    cells = (lat, offset, mask)
    lat, offset, inside = (_by_patch(field, patch).double() for field in cells)
    elevation_km = torch.zeros(height * width, dtype=torch.float64)
    if grid.elevation is not None:
        metres = _by_patch(_padded(grid.elevation.double(), patch, math.nan), patch)
        elevation_km = metres.nanmean(dim=1).nan_to_num(0.0) / METRES_PER_KM
    return Patches(
        shape=(height, width),
        lat=lat.mean(dim=1),
        lon=wrapped(offset.mean(dim=1) + first),
        elevation_km=elevation_km,
        mask=mask,
        domain=inside.amax(dim=1) > 0,
    )


def middle_longitude(patches: Patches) -> Tensor:
    """Opposite of the middle of the domain's widest gap, so that the 180th meridian is no edge.

    A gap at the edge of the stored columns is taken where none is wider by more than a patch: a
    grid around the globe is cut where its columns end, and nowhere inside.
    """
    ordered = torch.remainder(patches.lon[patches.domain], 360.0).unique()
    following = torch.cat([ordered[1:], ordered[:1] + 360.0])
    gaps = following - ordered
    row = patches.lon.view(patches.shape)[0]
    steps = wrapped(row.diff())
    west, east = (row[0], row[-1]) if steps.sum() >= 0 else (row[-1], row[0])
    between = torch.remainder(east + torch.remainder(west - east, 360.0) / 2, 360.0)
    at_edge = torch.searchsorted(ordered, between) - 1  # -1 is the gap across 0 degrees, the last
    widest = gaps.argmax()
    if gaps[widest] <= gaps[at_edge] + max(steps.abs().tolist(), default=0.0):
        widest = at_edge
    return (ordered[widest] + following[widest]) / 2 + 180.0


def _padded(field: Tensor, patch: int, value: float) -> Tensor:
    height, width = field.shape
    return F.pad(field, (0, -width % patch, 0, -height % patch), value=value)


def cells_of(tokens: Tensor, shape: tuple[int, int], patch: int, grid: tuple[int, int]) -> Tensor:
    """Cells of the flattened grid that patches consist of; those beyond it are the nearest in it.

    Args:
        tokens: numbers of patches, int64, shape [L]; shape: patches (h, w); grid: cells (H, W).
    Returns:
        int64, shape [L, patch * patch], by row and column.
    """
    inside = torch.arange(patch)
    row = (tokens[:, None] // shape[1] * patch + inside).clamp(max=grid[0] - 1)
    column = (tokens[:, None] % shape[1] * patch + inside).clamp(max=grid[1] - 1)
    return (row[:, :, None] * grid[1] + column[:, None, :]).flatten(1)


def _extended(field: Tensor, patch: int) -> Tensor:
    """Pad by going on with the last step, so that added cells lie beyond the edge."""
    for dim in (0, 1):
        size = field.shape[dim]
        last = field.narrow(dim, size - 1, 1)
        step = last - field.narrow(dim, max(size - 2, 0), 1)
        added = [last + step * (k + 1) for k in range(-size % patch)]
        field = torch.cat([field, *added], dim=dim)
    return field


def _by_patch(field: Tensor, patch: int) -> Tensor:
    """[H, W] -> [h * w, p * p]."""
    height, width = field.shape[0] // patch, field.shape[1] // patch
    cells = field.reshape(height, patch, width, patch).transpose(1, 2)
    return cells.reshape(height * width, patch * patch)
