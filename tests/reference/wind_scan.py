"""The wind scan in loops."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

EARTH_RADIUS = 6_371_000.0


def scan_order(lat: Tensor, lon: Tensor, centre: tuple[float, float], angle: float) -> list[int]:
    """Indices of the places lat, lon [L], sorted along the direction `angle` (radians from east
    towards north), then across it, then by latitude and longitude."""

    def key(index: int) -> tuple[int, int, float, float]:
        latitude, longitude = lat[index].item(), lon[index].item()
        difference = (longitude - centre[1] + 180.0) % 360.0 - 180.0
        x = round(EARTH_RADIUS * math.cos(math.radians(latitude)) * math.radians(difference))
        y = round(EARTH_RADIUS * math.radians(latitude - centre[0]))
        along = round(x * math.cos(angle) + y * math.sin(angle))
        across = round(y * math.cos(angle) - x * math.sin(angle))
        return along, across, latitude, longitude

    return sorted(range(len(lat)), key=key)


def raster_order(lat: Tensor, lon: Tensor) -> list[int]:
    """By rows from the north, each from the west (of places on parallels and meridians)."""
    return sorted(range(len(lat)), key=lambda at: (-lat[at].item(), lon[at].item()))


def mean_wind_sector(u: Tensor, v: Tensor, valid: Tensor, num_sectors: int) -> int:
    """Sector of the mean wind of the valid cells [H, W]; `num_sectors` where calm."""
    cells = [(u[i].item(), v[i].item()) for i in map(tuple, valid.nonzero().tolist())]
    if not cells:
        return num_sectors
    mean_u = sum(cell[0] for cell in cells) / len(cells)
    mean_v = sum(cell[1] for cell in cells) / len(cells)
    if math.hypot(mean_u, mean_v) < 0.5:
        return num_sectors
    distance = []
    for s in range(num_sectors):
        angle = 2 * math.pi * s / num_sectors
        distance.append(-(mean_u * math.cos(angle) + mean_v * math.sin(angle)))
    return torch.tensor(distance).argmin().item()


def regional_ranks(
    lat: Tensor,
    lon: Tensor,
    tokens: list[int],
    split: tuple[int, int],
    angles: Sequence[float | None],
) -> tuple[dict[int, int], dict[int, int]]:
    """Rank of each token inside its region of the patches lat, lon [h, w], and the region's size.

    `angles` holds the direction of each region, row by row, None where calm; a region's centre
    is the middle of its own range of coordinates (which must not cross the 180th meridian).
    """
    height, width = lat.shape
    rows, columns = height // split[0], width // split[1]
    ranks, sizes = {}, {}
    for r in range(split[0]):
        for c in range(split[1]):
            box = (slice(r * rows, (r + 1) * rows), slice(c * columns, (c + 1) * columns))
            inside = torch.arange(height * width).reshape(height, width)[box].flatten().tolist()
            members = [token for token in tokens if token in inside]
            middle = (
                ((lat[box].min() + lat[box].max()) / 2).item(),
                ((lon[box].min() + lon[box].max()) / 2).item(),
            )
            angle = angles[r * split[1] + c]
            own_lat, own_lon = lat.flatten()[members], lon.flatten()[members]
            if angle is None:
                order = raster_order(own_lat, own_lon)
            else:
                order = scan_order(own_lat, own_lon, middle, angle)
            for rank, index in enumerate(order):
                ranks[members[index]], sizes[members[index]] = rank, len(members)
    return ranks, sizes
