"""Make docs/images/transport.png: where air comes from, what it brings, where attention looks.

    python docs/make_transport_figure.py docs/images/transport.png

One day of the embedded world, whose stored wind is not quite the wind that moves its tracers: the
paths are made with the factor and the turn that its docstring gives.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm

from aqnet.data.synthetic import World, simulate
from aqnet.grid import Grid
from aqnet.model.attention import bias
from aqnet.trajectories import Trajectories, sample

HEIGHT, WIDTH = 64, 128
START = int(np.datetime64("2018-01-12T00", "h").astype(int))
LEAD = 24
HOURS = range(1, 49)
SPEED, TURN = 1 / 0.65, -20.0
PLACES = ((116.0, 46.0), (125.3, 42.5), (120.0, 29.0))  # east, north
COLOURS = ("#B00020", "#0072B2", "#009E73")
KM = 111.2  # of a degree


def main(target: str) -> None:
    world = World(HEIGHT, WIDTH)
    hours = list(simulate(world, START, LEAD + 1))
    now, later = hours[0], hours[-1]
    lat, lon = (torch.from_numpy(part) for part in (world.lat2d, world.lon2d))
    grid = Grid(lat, lon, None, torch.from_numpy(world.mask))
    u, v = (torch.from_numpy(now[name])[None, None] for name in "uv")
    points = Trajectories(grid, HOURS).departures(u, v, speed=SPEED, turn=TURN)
    inside = np.where(world.mask, now["pm25"], np.nan)
    moved = sample(torch.from_numpy(inside)[None, None], points[:, LEAD - 1 : LEAD])[0, 0, 0]

    figure, axes = plt.subplots(2, 2, figsize=(11, 6.6), layout="constrained")
    top = np.nanquantile(inside, 0.995)
    fields = (inside, inside, moved.numpy(), later["pm25"])
    for axis, field in zip(axes.flat, fields, strict=True):
        shown = np.where(world.mask, field, np.nan)
        image = axis.pcolormesh(
            world.lon, world.lat, shown, norm=PowerNorm(0.6, 0, top), cmap="YlOrBr"
        )
        axis.set(xlim=(73, 135), ylim=(18, 54), aspect=1.25)
        axis.tick_params(labelsize=8)
    for (east, north), colour in zip(PLACES, COLOURS, strict=True):
        row, column = nearest(world, east, north)
        path(axes[0, 0], world, points[0, :, :, row, column], (east, north), colour)
    row, column = nearest(world, *PLACES[1])
    scores(axes[0, 1], world, points[0, LEAD - 1, :, row, column], (row, column))
    titles = (
        "PM2.5 now, and where air comes from: a dot every 12 h to 48 h",
        "attention of one head and cell (x): travel time 24 h, width 600 km",
        f"(a), (b): what the air of now brings to each cell in {LEAD} h",
        f"PM2.5 {LEAD} h later",
    )
    for axis, title in zip(axes.flat, titles, strict=True):
        axis.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.6, label="ug/m3")
    figure.savefig(target, dpi=100)


def nearest(world: World, east: float, north: float) -> tuple[int, int]:
    return int(abs(world.lat - north).argmin()), int(abs(world.lon - east).argmin())


def path(
    axis: Axes, world: World, points: torch.Tensor, start: tuple[float, float], colour: str
) -> None:
    """The path of points [hours, 2] back from a place, a dot every twelve hours."""
    lat = np.interp(points[:, 0], range(HEIGHT), world.lat)
    lon = np.interp(points[:, 1], range(WIDTH), world.lon)
    axis.plot([start[0], *lon], [start[1], *lat], color=colour, linewidth=2)
    axis.plot(lon[11::12], lat[11::12], "o", color=colour, markersize=5)
    axis.plot(*start, "x", color=colour, markersize=9, markeredgewidth=2.5)


def scores(axis: Axes, world: World, point: torch.Tensor, cell: tuple[int, int]) -> None:
    """Levels of what the bias alone gives each sender for one receiver."""
    x = KM / 1000 * np.cos(np.radians(world.lat2d)) * (world.lon2d - 104)
    y = KM / 1000 * (world.lat2d - 36)
    position = torch.from_numpy(np.stack([x, y], axis=-1)).flatten(0, 1)[None]
    number = cell[0] * WIDTH + cell[1]
    ground = torch.from_numpy(np.stack([x, y]))[None]
    there = sample(ground, point.view(1, 1, 2, 1, 1)).flatten()
    displacement = (there - position[0, number]).expand(1, position.shape[1], 1, 2)
    one, width = torch.ones(1).double(), torch.tensor([0.6]).double()
    features = bias.travel(position, displacement, one, one, width)
    score = features.receivers[0, 0, number] @ features.senders[0].T
    share = (score - score.max()).exp().view(HEIGHT, WIDTH)
    levels = (0.1, 0.3, 0.5, 0.7, 0.9)
    lines = axis.contour(world.lon, world.lat, share, levels, colors="#0072B2", linewidths=1.5)
    axis.clabel(lines, fontsize=7)
    axis.plot(
        world.lon[cell[1]], world.lat[cell[0]], "x", color="k", markersize=9, markeredgewidth=2.5
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
