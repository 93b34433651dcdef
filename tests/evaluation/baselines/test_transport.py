"""The air that the simple forecast follows."""

import numpy as np
import pytest
import torch

from aqnet import least_squares
from aqnet.evaluation.baselines import transport
from aqnet.grid import Grid

ROWS, COLUMNS, LEADS = 20, 24, (3, 12)
LAT, LON = torch.meshgrid(
    torch.linspace(-1.9, 1.9, ROWS, dtype=torch.float64),
    torch.linspace(100.0, 104.6, COLUMNS, dtype=torch.float64),
    indexing="ij",
)
MASK = torch.ones(ROWS, COLUMNS, dtype=torch.bool)
GRID = Grid(LAT, LON, None, MASK)
METRES = np.radians(0.2) * 6_371_000.0  # from cell to cell, near the equator
SPEED, TURN = 1.5, -20.0  # of what moves the air, relative to the stored wind


def way(hour: int) -> complex:
    """Metres per hour east + i north of the air, the same everywhere, another in every 16 hours."""
    angle = np.random.default_rng(hour // 16).uniform(0, 2 * np.pi)
    return 0.3 * METRES * np.exp(1j * angle)


def read(hour: int) -> transport.Observed:
    """Waves that have drifted with the air since the 16 hours began, and the stored wind."""
    rng = np.random.default_rng(hour // 16 + 1000)
    gone = way(hour) * (hour % 16) / METRES
    y, x = np.meshgrid(np.arange(ROWS), np.arange(COLUMNS), indexing="ij")
    values = np.zeros((2, ROWS, COLUMNS))
    for field in values:
        for _ in range(6):
            kx, ky, phase = rng.normal(0, 0.35), rng.normal(0, 0.35), rng.uniform(0, 6)
            field += np.cos(kx * (x - gone.real) + ky * (y - gone.imag) + phase)
    stored = way(hour) / 3600.0 / SPEED * np.exp(-1j * np.radians(TURN))
    wind = np.empty((2, ROWS, COLUMNS), np.float32)
    wind[0], wind[1] = stored.real, stored.imag
    nothing = np.full((3, *values.shape), np.nan, np.float32)
    return transport.Observed(values.astype(np.float32), wind, nothing)


def test_speed_and_turn_of_what_moves_the_air_are_found():
    air = transport.fit(
        np.arange(0, 16 * 12, 16), read, lambda hour: read(hour).targets, GRID, LEADS
    )
    assert air.speed.tolist() == [SPEED] * 2 and air.turn.tolist() == [TURN] * 2


def test_a_pair_whose_air_comes_from_outside_is_not_judged_by_fewer_cells():
    mask = torch.zeros_like(MASK)
    mask[4:16, 4:20] = True
    noise = np.random.default_rng(5)

    def truth(hour: int) -> transport.Fields:
        targets = read(hour).targets
        return (targets + noise.normal(0, 2, targets.shape)).astype(np.float32)

    grid = Grid(LAT, LON, None, mask)
    air = transport.fit(np.arange(0, 16 * 16, 16), read, truth, grid, LEADS)
    assert np.abs(air.speed - SPEED).max() <= 0.5 and np.abs(air.turn - TURN).max() <= 10.0


@pytest.mark.parametrize(("row", "lead"), list(enumerate(LEADS)))
def test_moved_values_are_those_that_the_air_brings(row: int, lead: int):
    air = transport.Air(GRID, LEADS, np.full(2, SPEED), np.full(2, TURN))
    now, later = read(160), read(160 + lead)
    assert now.wind is not None
    moved = air.moved(now.targets, now.wind)[row].reshape(2, ROWS, COLUMNS)
    inner = (slice(None), slice(5, -5), slice(5, -5))  # the air of the rim comes from outside
    error = np.square(moved - later.targets)[inner].mean()
    stayed = np.square(now.targets - later.targets)[inner].mean()
    assert error < 0.02 * stayed


def test_each_lead_time_has_its_own_speed_and_turn():
    now = read(160)
    assert now.wind is not None
    mixed = transport.Air(GRID, LEADS, np.array([1.0, 2.5]), np.array([10.0, -30.0]))
    found = mixed.moved(now.targets, now.wind)
    for row, (speed, turn) in enumerate(((1.0, 10.0), (2.5, -30.0))):
        alone = transport.Air(GRID, LEADS, np.full(2, speed), np.full(2, turn))
        expected = alone.moved(now.targets, now.wind)[row]
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-5)


def test_values_come_from_the_domain_alone_where_they_are_known():
    mask = MASK.clone()
    mask[:, :12] = False
    air = transport.Air(Grid(LAT, LON, None, mask), LEADS, np.ones(2), np.zeros(2))
    values = np.full((1, ROWS, COLUMNS), 7.0, np.float32)
    values[:, ~mask.numpy()] = 9.0
    wind = np.zeros((2, ROWS, COLUMNS), np.float32)
    wind[0] = 5.0  # from the west: after 12 h ten cells, of which none is known
    found = air.moved(values, wind)[1, 0].reshape(ROWS, 12)
    assert np.isnan(found[:, :8]).all() and (found[:, -1] == 7.0).all()


def test_products_count_cells_where_all_fields_have_a_value():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 50))
    x[0, :5], y[0, 3:9] = np.nan, np.nan
    found = least_squares.products(np.ones(1), x, y)
    assert found.shape == (3, 3, 3)
    known = np.isfinite(x[0]) & np.isfinite(y[0])
    assert found[0, 0, 0] == known.sum() == 41
    assert found[0, 1, 2] == pytest.approx((x[0] * y[0])[known].sum())
    assert found[1, 2, 2] == pytest.approx((y[1] ** 2).sum())


def test_least_squares_of_equal_regressors_shares_their_weight():
    rng = np.random.default_rng(0)
    x = rng.normal(300.0, 40.0, 200)
    y = 0.6 * x + rng.normal(0, 1, 200)
    alone, left_alone = least_squares.solve(least_squares.products(np.ones(1), x, y))
    twice, left_twice = least_squares.solve(least_squares.products(np.ones(1), x, x, y))
    assert twice[1] == pytest.approx(twice[2]) == pytest.approx(alone[1] / 2)
    assert left_twice == pytest.approx(left_alone)
    residual = y - alone[0] - alone[1] * x
    assert left_alone == pytest.approx((residual**2).sum())
