"""Where the air that arrives in a cell comes from, and what a field holds there.

Air is followed backward in the grid's own index space: wind in m/s becomes rows and columns per
hour through the inverse Jacobian of ground coordinates, which is taken from the true latitudes and
longitudes. So the same code serves degree, projected and rotated grids, rows stored either way,
and grids across the 180th meridian.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aqnet.grid import Grid

EARTH_RADIUS = 6_371_000.0  # m, mean radius
SECONDS_PER_HOUR = 3600.0
STEP = 1 / 12  # a step is at most this part of the hours since the input time, or one hour
SMALLEST_WEIGHT = 1e-3  # of the cells with a value, below which a point has none
_CHUNK = 4096  # cells whose nearest domain cell is looked for at once


class Trajectories(nn.Module):
    """Departure points of the air that arrives in each cell at each of some lead times.

    Backward integration by the midpoint rule, in steps of 1 h up to 12 h after the input time, of
    2 h up to 24 h, 4 h up to 48 h and 8 h up to 96 h. No gradient is kept, no sample or cell is
    looped over, and the host never waits for the device.

    Positions are (column, row), each from -1 to 1 over the grid, as `grid_sample` has them.
    Buffers (not saved): `velocity` [2, 2, H, W], of position per hour by (u, v) in m/s; `nearest`
    [H * W], the domain's cell nearest to each; `domain` [H, W]; `start` [2, H, W].
    """

    velocity: Tensor
    nearest: Tensor
    domain: Tensor
    start: Tensor

    def __init__(self, grid: Grid, hours: Sequence[int]) -> None:
        """Prepare the paths on `grid` to the lead times `hours`, positive and in any order."""
        super().__init__()
        self.hours = tuple(hours)
        # a single row or column stands at -1, and nothing leaves it
        row, column = (
            torch.linspace(-1.0, 1.0, max(size, 2), dtype=torch.float64)[:size]
            for size in grid.shape
        )
        rows, columns = torch.meshgrid(row, column, indexing="ij")
        buffers = {
            "velocity": _velocity(grid),
            "nearest": _nearest_in_domain(grid),
            "domain": grid.mask,
            "start": torch.stack([columns, rows]),
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    @torch.no_grad()
    def departures(
        self,
        u: Tensor,
        v: Tensor,
        wind_hours: Sequence[int] = (0,),
        speed: Tensor | float = 1.0,
        turn: Tensor | float = 0.0,
    ) -> Tensor:
        """Where the air of each cell and lead time is at the input time.

        A missing wind is that of the nearest cell of the domain, else the domain's mean of that
        hour, else the wind of the hour before it, else none: the air stays.

        Args:
            u, v: eastward and northward wind [m/s], NaN where missing, shape [B, N, H, W].
            wind_hours: hours after the input time of the N winds, ascending. Between them the wind
                is linear in time, beyond them held.
            speed, turn: what moves the air is the wind times `speed`, turned counter-clockwise by
                `turn` degrees; numbers, or tensors of shape [] or [B].
        Returns:
            Row and column counted from 0, clamped to the grid, shape [B, K, 2, H, W], of u's type.
        """
        flow = self._flow(torch.stack([u, v], dim=2), speed, turn)
        start = self.start.to(flow.dtype)
        whole = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
        follow = _paths_as_one if whole else _paths
        position = follow(flow, start, list(wind_hours), sorted(self.hours))
        ascending = dict(zip(sorted(self.hours), position.unbind(2), strict=True))
        column, row = torch.stack([ascending[hour] for hour in self.hours], dim=2).unbind(1)
        height, width = self.domain.shape
        index = [(row + 1.0) * ((height - 1) / 2), (column + 1.0) * ((width - 1) / 2)]
        return torch.stack(index, dim=2)

    def _flow(self, wind: Tensor, speed: Tensor | float, turn: Tensor | float) -> Tensor:
        """Velocity of position per hour, without gaps, of winds [B, N, 2, H, W]; same shape."""
        one = wind.new_ones(1)
        speed, angle = one * speed, one * turn * (math.pi / 180.0)
        along, across = ((speed * part).view(-1, 1, 1, 1) for part in (angle.cos(), angle.sin()))
        east, north = self._without_gaps(wind).unbind(2)
        moving = torch.stack([along * east - across * north, across * east + along * north], dim=2)
        return (self.velocity.to(wind.dtype) * moving.unsqueeze(2)).sum(dim=3)

    def _without_gaps(self, wind: Tensor) -> Tensor:
        """Winds [B, N, 2, H, W] with every cell filled."""
        present = wind.isfinite().all(dim=2, keepdim=True)
        inside = present & self.domain
        count = inside.sum(dim=(3, 4), keepdim=True)
        mean = torch.where(inside, wind, 0.0).sum(dim=(3, 4), keepdim=True) / count.clamp(min=1)
        near, known = (field.flatten(3)[..., self.nearest] for field in (wind, present))
        filled = torch.where(known, near, mean.flatten(3)).unflatten(3, self.domain.shape)
        hours = list(torch.where(present, wind, filled).unbind(1))
        for number in range(1, len(hours)):
            exists = count[:, number] > 0
            hours[number] = torch.where(exists, hours[number], hours[number - 1])
        return torch.stack(hours, dim=1)


def _paths(flow: Tensor, start: Tensor, wind_hours: list[int], hours: list[int]) -> Tensor:
    """Positions at the input time of what is at `start` [2, H, W] at each of `hours`, ascending.

    Args:
        flow: velocity of position per hour at each of `wind_hours`, shape [B, N, 2, H, W].
    Returns:
        Shape [B, 2, K, H, W].
    """
    stretches = list(itertools.pairwise([0, *hours]))
    here = start.expand(flow.shape[0], -1, -1, -1)
    if len(wind_hours) == 1:  # a steady wind: later paths go on from earlier ones
        positions = []
        for first, last in stretches:
            for _, step in _steps(first, last):
                here = _back(here, flow[:, 0], flow[:, 0], step)
            positions.append(here)
        return torch.stack(positions, dim=2)
    paths = here[:, :, :0]  # in changing winds all are followed back together
    for first, last in reversed(stretches):
        paths = torch.cat([here, paths], dim=2)
        for hour, step in _steps(first, last):
            arriving, halfway = (_at(flow, wind_hours, time) for time in (hour, hour - step / 2))
            paths = _back(paths, arriving, halfway, step)
    return paths.unflatten(2, (len(hours), -1))


@torch.library.custom_op("aqnet::paths", mutates_args=())
def _paths_as_one(flow: Tensor, start: Tensor, wind_hours: list[int], hours: list[int]) -> Tensor:
    """`_paths` as one operator: a compiler that saw its hundred interpolations would make one
    kernel of them all, whose C++ takes minutes to compile."""
    return _paths(flow, start, wind_hours, hours).contiguous()


@_paths_as_one.register_fake
def _(flow: Tensor, start: Tensor, wind_hours: list[int], hours: list[int]) -> Tensor:
    return flow.new_empty(flow.shape[0], 2, len(hours), *flow.shape[3:])


@torch.no_grad()
def sample(fields: Tensor, points: Tensor) -> Tensor:
    """What fields hold at `points`, bilinearly from the cells that have a value, and from no other.

    Args:
        fields: NaN where missing, shape [B, C, H, W].
        points: row and column, as of `Trajectories.departures`, shape [B, K, 2, H', W'].
    Returns:
        Shape [B, K, C, H', W']; NaN where no cell around has a value. The weights of those that
        have are scaled up to a sum of one.
    """
    height, width = fields.shape[-2:]
    row, column = points.unbind(2)
    # a single row or column is read wherever the point is
    position = [column * (2 / max(width - 1, 1)) - 1.0, row * (2 / max(height - 1, 1)) - 1.0]
    present = fields.isfinite()
    parts = torch.cat([fields.where(present, 0.0), present.to(fields.dtype)], dim=1)
    read = _read(parts, torch.stack(position, dim=1).flatten(2, 3))
    values, weight = read.unflatten(2, points.shape[1:2] + points.shape[3:4]).chunk(2, dim=1)
    values = torch.where(weight < SMALLEST_WEIGHT, torch.nan, values / weight)
    return values.transpose(1, 2)


def _back(position: Tensor, arriving: Tensor, halfway: Tensor, hours: float) -> Tensor:
    """Positions [B, 2, P, W] `hours` before, by the flows on arrival and half that time before."""
    middle = position - hours / 2 * _read(arriving, position)
    return (position - hours * _read(halfway, middle)).clamp(-1.0, 1.0)


def _read(fields: Tensor, position: Tensor) -> Tensor:
    """Fields [B, C, H, W] at positions [B, 2, P, W], bilinearly, at the edge beyond it."""
    return F.grid_sample(
        fields, position.permute(0, 2, 3, 1), padding_mode="border", align_corners=True
    )


def _steps(first: int, last: int) -> list[tuple[float, float]]:
    """Backward from hour `last` to hour `first`: the hour each step begins at, and its length."""
    number = math.ceil((last - first) / max(1.0, STEP * last))
    length = (last - first) / number
    return [(last - at * length, length) for at in range(number)]


def _at(flow: Tensor, hours: Sequence[int], time: float) -> Tensor:
    """Flow [B, 2, H, W] at a time, of flows [B, N, 2, H, W] at `hours`."""
    after = sum(hour <= time for hour in hours)
    if after in (0, len(hours)):
        return flow[:, max(after - 1, 0)]
    before = hours[after - 1]
    share = (time - before) / (hours[after] - before)
    return torch.lerp(flow[:, after - 1], flow[:, after], share)


def _velocity(grid: Grid) -> Tensor:
    """Of (column, row) positions per hour by (u, v) in m/s, float64, shape [2, 2, H, W]."""
    east, north = _ground_steps(grid)
    # columns of the Jacobian are what one column and one row further are on the ground [m]
    jacobian = torch.stack([east, north])
    adjugate = torch.stack(
        [torch.stack([north[1], -east[1]]), torch.stack([-north[0], east[0]])],
    )
    determinant = east[0] * north[1] - east[1] * north[0]
    norm = jacobian.square().sum(dim=(0, 1))
    # in a single row or column one column of the Jacobian is zero: the pseudo-inverse
    flat = determinant.abs() <= 1e-9 * norm
    inverse = torch.where(
        flat,
        jacobian.transpose(0, 1) / norm.clamp(min=1e-30),
        adjugate / torch.where(flat, 1.0, determinant),
    )
    height, width = grid.shape
    size = torch.tensor([max(width - 1, 1), max(height - 1, 1)]).double().view(2, 1, 1, 1)
    return inverse * (2.0 * SECONDS_PER_HOUR / size)


def _ground_steps(grid: Grid) -> tuple[Tensor, Tensor]:
    """Metres east and north by one (column, row), float64, shape [2, H, W] each.

    From points on the sphere, so that neither the 180th meridian nor a pole is a special case.
    """
    lat, lon = (torch.deg2rad(field.double()) for field in (grid.lat, grid.lon))
    place = _on_the_sphere(grid)
    steps = []
    for dim in (2, 1):
        size = place.shape[dim]
        if size == 1:
            steps.append(torch.zeros_like(place))
        else:
            (step,) = torch.gradient(place, dim=dim, edge_order=min(2, size - 1))
            steps.append(step)
    east = torch.stack([-lon.sin(), lon.cos(), torch.zeros_like(lon)])
    north = torch.stack([-lat.sin() * lon.cos(), -lat.sin() * lon.sin(), lat.cos()])
    ways = [torch.stack([(step * way).sum(dim=0) for step in steps]) for way in (east, north)]
    return EARTH_RADIUS * ways[0], EARTH_RADIUS * ways[1]


def _on_the_sphere(grid: Grid) -> Tensor:
    """Unit vectors of the cells, float64, shape [3, H, W]."""
    lat, lon = (torch.deg2rad(field.double()) for field in (grid.lat, grid.lon))
    return torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()])


def _nearest_in_domain(grid: Grid) -> Tensor:
    """Flat index of the domain's cell nearest to each cell, int64, shape [H * W]."""
    nearest = torch.arange(grid.mask.numel())
    outside = nearest[~grid.mask.flatten()]
    # the nearest one has a neighbour outside the domain, or it would not be the nearest
    shut = F.avg_pool2d(grid.mask[None, None].double(), 3, 1, 1, count_include_pad=False)[0, 0] == 1
    rim = nearest[(grid.mask & ~shut).flatten()]
    place = _on_the_sphere(grid).flatten(1).T
    for part in outside.split(_CHUNK) if len(rim) else ():
        # rounded to some 10 m, so that of cells as near as each other the first is taken
        closeness = (place[part] @ place[rim].T).round(decimals=12)
        nearest[part] = rim[closeness.argmax(dim=1)]
    return nearest
