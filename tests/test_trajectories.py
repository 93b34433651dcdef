"""Departure points against exact positions, and reading at them around what is missing."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aqnet.grid import Grid
from aqnet.trajectories import EARTH_RADIUS, SECONDS_PER_HOUR, Trajectories, sample

HOURS = [12, 24, 48, 96]
KM_PER_DEGREE = math.radians(EARTH_RADIUS) / 1000


def degrees(height: int = 21, width: int = 41, step: float = 1.0, lat: float = 30.0) -> Grid:
    """Rows from the south."""
    rows = lat + step * (torch.arange(height) - (height - 1) / 2).double()
    columns = 104 + step * (torch.arange(width) - (width - 1) / 2).double()
    lat2d, lon2d = torch.meshgrid(rows, columns, indexing="ij")
    return Grid(lat2d, lon2d, None, torch.ones(height, width, dtype=torch.bool))


def polar(size: int = 61, radius: float = 0.15) -> Grid:
    """Stereographic around the north pole, `radius` (of the earth's) to each side."""
    line = torch.linspace(-radius, radius, size, dtype=torch.float64)
    y, x = torch.meshgrid(line, line, indexing="ij")
    lat = torch.rad2deg(math.pi / 2 - 2 * torch.atan(torch.hypot(x, y) / 2))
    return Grid(lat, torch.rad2deg(torch.atan2(y, x)), None, torch.ones(size, size).bool())


def steady(grid: Grid, u: Tensor | float, v: Tensor | float) -> tuple[Tensor, Tensor]:
    """A wind in m/s, [1, 1, H, W]."""
    return tuple((torch.ones_like(grid.lat) * part)[None, None] for part in (u, v))


def cells(grid: Grid) -> tuple[Tensor, Tensor]:
    height, width = grid.shape
    rows = torch.arange(height).double()[:, None].expand(height, width)
    return rows, torch.arange(width).double().expand(height, width)


def turbulent(grid: Grid, batch: int = 3, winds: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth in space, different for each sample and hour, m/s."""
    generator = torch.Generator().manual_seed(seed)
    phase = 6 * torch.rand(2, batch, winds, 1, 1, generator=generator, dtype=torch.float64)
    lat, lon = torch.deg2rad(grid.lat) * 5, torch.deg2rad(grid.lon) * 5
    return 12 * torch.sin(lat + phase[0]) + 3, 9 * torch.cos(lon + phase[1])


def test_eastward_wind_on_degrees_comes_from_the_west_at_its_speed():
    grid = degrees(width=81)
    points = Trajectories(grid, HOURS).departures(*steady(grid, 4.0, 0.0))
    assert points.shape == (1, 4, 2, 21, 81)
    row, column = cells(grid)
    shift = 4.0 * SECONDS_PER_HOUR / 1000 / KM_PER_DEGREE / torch.cos(torch.deg2rad(grid.lat))
    for lead, (rows, columns) in zip(HOURS, points[0].unbind(), strict=True):
        expected = (column - lead * shift).clamp(min=0)
        assert torch.allclose(rows, row, atol=1e-4)
        # the last digit: central differences along a curved parallel
        assert torch.allclose(columns, expected, atol=5e-4 * lead / 12)


def test_speed_and_turn_are_those_of_the_wind():
    grid = degrees()
    follow = Trajectories(grid, [12]).departures
    u, v = turbulent(grid)
    angle = math.radians(30.0)
    moved = (
        1.5 * (math.cos(angle) * u - math.sin(angle) * v),
        1.5 * (math.sin(angle) * u + math.cos(angle) * v),
    )
    assert torch.allclose(follow(u, v, speed=1.5, turn=30.0), follow(*moved))
    each = follow(u, v, speed=torch.tensor([1.0, 1.5, 0.0]), turn=torch.tensor([0.0, 30.0, 0.0]))
    assert torch.allclose(each[1], follow(*moved)[1]) and torch.allclose(each[0], follow(u, v)[0])
    assert torch.allclose(each[2, 0], torch.stack(cells(grid)))


def rotation_error(hours: int, degrees_per_hour: float) -> float:
    """Of solid-body rotation about the pole, in cells; far enough inside to stay there."""
    grid = polar()
    omega = math.radians(degrees_per_hour) / SECONDS_PER_HOUR
    u = omega * EARTH_RADIUS * torch.cos(torch.deg2rad(grid.lat))
    points = Trajectories(grid, [hours]).departures(*steady(grid, u, 0.0))[0, 0]
    row, column = (part - 30 for part in cells(grid))
    angle = -math.radians(degrees_per_hour) * hours
    expected = [
        30 + math.sin(angle) * column + math.cos(angle) * row,
        30 + math.cos(angle) * column - math.sin(angle) * row,
    ]
    inside = torch.hypot(row, column) < 25
    return (points - torch.stack(expected))[:, inside].abs().max().item()


def test_solid_body_rotation_is_followed_with_second_order():
    # steps of 1 h over 12 h, of 2 h over 24 h: error = constant * time * step^2
    one, two = rotation_error(12, 6.0), rotation_error(24, 6.0)
    assert one < 0.3
    assert two / one == pytest.approx(8.0, rel=0.1)
    # over a fixed time the error goes with the third power of the speed
    assert one / rotation_error(12, 3.0) == pytest.approx(8.0, rel=0.2)


def curved(grid: Grid) -> tuple[Grid, Tensor, Tensor]:
    """A bent index space inside a grid on degrees, and the rows and columns of its cells there."""
    row, column = cells(grid)
    height, width = grid.shape
    x, y = column / (width - 1), row / (height - 1)
    rows = (height - 1) * (0.15 + 0.7 * y + 0.1 * torch.sin(2 * x))
    columns = (width - 1) * (0.15 + 0.7 * x - 0.1 * torch.sin(2 * y))
    lat = grid.lat[0, 0] + rows * (grid.lat[1, 0] - grid.lat[0, 0])
    lon = grid.lon[0, 0] + columns * (grid.lon[0, 1] - grid.lon[0, 0])
    return Grid(lat, lon, None, grid.mask), rows, columns


def test_curved_coordinates_give_the_paths_of_the_regular_grid():
    grid = degrees(61, 61, 0.5)
    bent, rows, columns = curved(grid)
    u, v = (3 + 2 * torch.sin(torch.deg2rad(8 * part)) for part in (grid.lat, grid.lon))
    bent_u, bent_v = (3 + 2 * torch.sin(torch.deg2rad(8 * part)) for part in (bent.lat, bent.lon))
    there = Trajectories(grid, HOURS[:2]).departures(*steady(grid, u, v))
    points = Trajectories(bent, HOURS[:2]).departures(*steady(bent, bent_u, bent_v))
    places = torch.stack([rows, columns])
    # of the regular grid: from the cells of the bent one, and where its paths lead
    expected = sample(there.flatten(1, 2), places[None, None])[0, 0].unflatten(0, (2, 2))
    found = sample(places[None], points)[0]
    moved = (points[0, :, 0] > 0.5) & (points[0, :, 1] > 0.5)  # not clamped at the edge
    assert moved.float().mean() > 0.5
    difference = (found - expected).abs().amax(dim=1)
    assert difference[moved].max() < 0.05


@pytest.mark.parametrize("winds", [1, 3])
def test_rows_and_columns_stored_the_other_way_change_nothing(winds):
    grid, (u, v) = degrees(), turbulent(degrees(), winds=winds)
    points = Trajectories(grid, HOURS).departures(u, v, [0, 20, 60][:winds])
    turned = Grid(grid.lat.flip(0, 1), grid.lon.flip(0, 1), None, grid.mask)
    other = Trajectories(turned, HOURS)
    flipped = other.departures(u.flip(2, 3), v.flip(2, 3), [0, 20, 60][:winds]).flip(3, 4)
    last = torch.tensor([20.0, 40.0]).view(2, 1, 1)
    assert torch.allclose(last - flipped, points)


def test_the_180th_meridian_is_no_edge():
    grid = degrees()
    moved = Grid(grid.lat, (grid.lon + 76 + 180) % 360 - 180, None, grid.mask)
    assert (moved.lon[0, 0] > 0) and (moved.lon[0, -1] < 0)
    paths = [Trajectories(where, HOURS).departures(*turbulent(grid)) for where in (grid, moved)]
    assert torch.allclose(*paths)


@pytest.mark.parametrize(("height", "width"), [(1, 9), (9, 1), (1, 1), (2, 2)])
def test_air_of_few_rows_or_columns_moves_along_them(height, width):
    grid = degrees(height, width, 2.0)
    points = Trajectories(grid, HOURS).departures(*steady(grid, 2.0, 2.0))
    row, column = cells(grid)
    assert points.isfinite().all()
    for part, start, size in ((points[0, 1, 0], row, height), (points[0, 1, 1], column, width)):
        assert (part <= start).all() and (part < start).any() == (size > 1)
    assert sample(grid.lat[None, None], points).isfinite().all()


def test_air_over_the_edge_departs_from_the_edge():
    grid = degrees()
    points = Trajectories(grid, HOURS).departures(*steady(grid, 30.0, -30.0))[0, 3]
    assert (points[0] == 20).all() and (points[1] == 0).all()


def test_air_without_wind_stays():
    grid = degrees()
    for u, v in (steady(grid, math.nan, math.nan), steady(grid, 0.0, 0.0)):
        points = Trajectories(grid, HOURS).departures(u, v)
        assert torch.allclose(points, torch.stack(cells(grid)).expand_as(points))


def test_missing_wind_is_the_nearest_of_the_domain_then_its_mean_then_that_of_before():
    grid = degrees(9, 9)
    inside = torch.zeros(9, 9, dtype=torch.bool)
    inside[4, 2:7] = True
    domain = Grid(grid.lat, grid.lon, None, inside)
    wind = torch.full((1, 3, 9, 9), math.nan, dtype=torch.float64)
    wind[0, 0, 4, 2:7] = torch.tensor([1.0, 2.0, 3.0, math.nan, 5.0])
    wind[0, 2, 4, 2] = 7.0
    wind[0, 2, 0, 0] = 100.0  # outside the domain: counts there alone
    filled = Trajectories(domain, HOURS)._without_gaps(torch.stack([wind, -wind], dim=2))
    assert torch.equal(filled[:, :, 0], -filled[:, :, 1])
    first, second, third = filled[0, :, 0]
    nearest = torch.tensor([1.0, 1.0, 1.0, 2.0, 3.0, 2.75, 5.0, 5.0, 5.0]).double()
    assert torch.equal(first, nearest.expand(9, 9))
    assert torch.equal(second, first)
    assert third[0, 0] == 100.0 and (third.flatten()[1:] == 7.0).all()


def test_nearest_cell_of_the_domain_is_that_of_all_distances():
    grid = degrees(15, 25, 2.0, lat=60.0)
    inside = torch.rand(15, 25, generator=torch.Generator().manual_seed(0)) < 0.1
    inside[3:8, 4:12] = True
    nearest = Trajectories(Grid(grid.lat, grid.lon, None, inside), [12]).nearest
    lat, lon = (torch.deg2rad(part.flatten()) for part in (grid.lat, grid.lon))
    place = torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], dim=1)
    distance = torch.cdist(place, place)
    distance[:, ~inside.flatten()] = math.inf
    found = distance.gather(1, nearest[:, None]).squeeze(1)
    assert torch.allclose(found, distance.min(dim=1).values)


def test_wind_is_linear_between_its_hours_and_held_beyond():
    grid = degrees(41, 81)
    follow = Trajectories(grid, [12, 24]).departures
    still = follow(*steady(grid, 0.0, 0.0))
    # v = h - 6 for h from 6 to 18, then 12: 18 over the first 12 h, 72 + 72 up to 24 h
    v = torch.tensor([0.0, 12.0]).view(1, 2, 1, 1).expand(1, 2, 41, 81).double()
    shift = (still - follow(0 * v, v, [6, 18]))[0, :, 0, 20, 40] * KM_PER_DEGREE
    assert torch.allclose(shift, 3.6 * torch.tensor([18.0, 144.0]).double(), rtol=1e-4)


def test_a_wind_that_stays_is_the_same_at_one_hour_and_at_several():
    grid = degrees()
    u, v = turbulent(grid)
    follow = Trajectories(grid, [24, 12, 96]).departures
    held = follow(u, v)
    repeated = follow(u.expand(-1, 3, -1, -1), v.expand(-1, 3, -1, -1), [0, 6, 96])
    # the long steps lie at the start of the way back in one, at its end in the other
    assert (held - repeated).square().mean().sqrt() < 0.03
    ascending = Trajectories(grid, [12, 24, 96]).departures(u, v)
    assert torch.equal(held, ascending[:, [1, 0, 2]])


def test_samples_of_a_batch_do_not_touch():
    grid = degrees()
    follow = Trajectories(grid, HOURS).departures
    u, v = turbulent(grid, winds=2)
    u[1, 0, 3:9], v[2] = math.nan, math.nan
    whole = follow(u, v, [0, 48])
    alone = [follow(u[i : i + 1], v[i : i + 1], [0, 48]) for i in range(3)]
    assert torch.equal(whole, torch.cat(alone))


def test_float32_departures_are_those_of_float64():
    grid = degrees()
    u, v = turbulent(grid)
    follow = Trajectories(grid, HOURS).departures
    single = follow(u.float(), v.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), follow(u, v), atol=1e-4)


def test_a_field_is_read_bilinearly():
    generator = torch.Generator().manual_seed(0)
    fields = torch.randn(2, 3, 5, 7, generator=generator, dtype=torch.float64)
    points = torch.rand(2, 4, 2, 6, 8, generator=generator, dtype=torch.float64)
    points *= torch.tensor([4.0, 6.0]).view(2, 1, 1)
    found = sample(fields, points)
    assert found.shape == (2, 4, 3, 6, 8)
    row, column = points[1, 2, :, 3, 4].tolist()
    r, c = int(row), int(column)
    a, b = row - r, column - c
    expected = (1 - a) * ((1 - b) * fields[1, :, r, c] + b * fields[1, :, r, c + 1]) + a * (
        (1 - b) * fields[1, :, r + 1, c] + b * fields[1, :, r + 1, c + 1]
    )
    assert torch.allclose(found[1, 2, :, 3, 4], expected)


def test_missing_cells_are_never_read():
    generator = torch.Generator().manual_seed(0)
    fields = torch.full((1, 2, 12, 16), 5.0)
    missing = torch.rand(1, 2, 12, 16, generator=generator) < 0.5
    fields[missing] = math.nan
    points = torch.rand(1, 3, 2, 20, 30, generator=generator) * torch.tensor([11.0, 15.0]).view(
        2, 1, 1
    )
    found = sample(fields, points)
    known = found.isfinite()
    assert 0.5 < known.float().mean() < 1.0
    assert torch.allclose(found[known], torch.tensor(5.0))
    rows, columns = points[0].long().unbind(1)
    around = [
        ~missing[0][:, (rows + r).clamp(max=11), (columns + c).clamp(max=15)]
        for r in (0, 1)
        for c in (0, 1)
    ]
    nothing = ~torch.stack(around).any(dim=0).transpose(0, 1)
    assert nothing.any() and not known[0][nothing].any()


def test_a_missing_cell_on_the_point_itself_is_missing():
    fields = torch.arange(12.0).view(1, 1, 3, 4)
    fields[0, 0, 1, 1] = math.nan
    rows, columns = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")
    found = sample(fields, torch.stack([rows, columns])[None, None])
    assert torch.allclose(found[0, 0], fields[0], equal_nan=True)


WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "is_nonzero", "item")


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for a device, and copies from one to another."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in WAITS, name
        if name in ("index", "index_put"):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), name
        if name in ("_to_copy", "lift_fresh", "lift_fresh_copy"):
            assert "device" not in (kwargs or {}) and not name.startswith("lift"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("winds", [1, 3])
def test_the_host_never_waits_for_the_device(winds):
    grid = degrees()
    trajectories = Trajectories(grid, HOURS)
    u, v = turbulent(grid, winds=winds)
    speed, turn = torch.tensor(1.2), torch.tensor(5.0)
    with NoWaiting():
        points = trajectories.departures(u, v, [0, 24, 48][:winds], speed, turn)
        sample(u, points)
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            points.sum().item()


@pytest.mark.parametrize("winds", [1, 3])
def test_paths_and_reading_compile_as_one_graph(winds):
    grid = degrees()
    trajectories = Trajectories(grid, HOURS)
    u, v = turbulent(grid, winds=winds)

    def moved(u: Tensor, v: Tensor) -> Tensor:
        return sample(u, trajectories.departures(u, v, [0, 24, 48][:winds]))

    torch._dynamo.reset()
    compiled = torch.compile(moved, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(u, v), moved(u, v))
