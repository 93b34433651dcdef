"""The simple forecasts: what each is made of, and how it is fitted.

Persistence x(t); climatology c; and weighted sums of a few fields known at the input time, the
weights per target and lead time by least squares pooled over the cells. Another forecast of this
kind is a line of REGRESSIONS and, where it needs a new field, a line of `Baselines.known`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aqnet import distributed, least_squares
from aqnet.errors import AqnetError
from aqnet.evaluation.baselines import climatology, transport
from aqnet.evaluation.baselines.climatology import Climatology, Hours, Stream
from aqnet.evaluation.baselines.transport import Air, Observed, Read, Truth
from aqnet.grid import Grid

Values = NDArray[np.float64]
# training times on which weights are fitted: with 2,048 the damped forecasts' RMSE on the embedded
# world differs by -0.1 to 0.4 %
TIMES = 512
SEARCHED = 64  # of these, those on which the speed and turn of the air are
RECENT_DAYS = (1, 7, 30)  # whose means are known


class Regression(NamedTuple):
    """Fields of `Baselines.known` whose weighted sum forecasts the value, or its anomaly."""

    fields: tuple[str, ...]
    of: Literal["value", "anomaly"]


REGRESSIONS = {
    "damped_persistence": Regression(("one", "value"), "value"),
    "damped_anomaly": Regression(("anomaly",), "anomaly"),
    "recent_anomaly": Regression(
        ("anomaly", *(f"anomaly_{days}" for days in RECENT_DAYS)), "anomaly"
    ),
    "transport": Regression(("one", "value", "moved"), "value"),
}
SIMPLE = ("persistence", "climatology", *REGRESSIONS)


@dataclass(frozen=True)
class Baselines:
    """What was fitted.

    Attributes:
        mask: the domain [H, W], of N cells.
        air: how the air moves; None where no wind is stored.
        weights: of the fields of each regression that can be made, shape [K, T, fields].
    """

    lead_times: tuple[int, ...]
    mask: NDArray[np.bool_]
    climatology: Climatology
    air: Air | None
    weights: dict[str, Values]

    @property
    def names(self) -> tuple[str, ...]:
        """The forecasts that there are, in the order of SIMPLE."""
        return tuple(name for name in SIMPLE if name not in REGRESSIONS or name in self.weights)

    def known(self, time: int, observed: Observed) -> dict[str, Values]:
        """Fields that are known at an input time, each [T, N] or, by lead time, [K, T, N]; all have
        a value where the value itself is known."""
        value = observed.targets[:, self.mask].astype(np.float64)
        latest = value - self.climatology.at(time)
        fields = {"one": np.ones(1), "value": value, "anomaly": latest}
        for days, mean in zip(RECENT_DAYS, observed.recent[..., self.mask], strict=True):
            anomaly = mean - self.climatology.over_days(time // 24, days)
            # over so many days nothing may be known: the shorter one stands in for the longer
            latest = np.where(np.isfinite(anomaly), anomaly, latest)
            fields[f"anomaly_{days}"] = latest
        if self.air is not None and observed.wind is not None:
            moved = self.air.moved(observed.targets, observed.wind)
            # where the air comes from nothing may be observed; no pair is to be lost by that
            fields["moved"] = np.where(np.isfinite(moved), moved, value)
        return fields

    def later(self, time: int) -> Values:
        """Climatology [K, T, N] at the target times."""
        return np.stack([self.climatology.at(time + lead) for lead in self.lead_times])

    def forecasts(self, time: int, observed: Observed) -> dict[str, Values]:
        """Each simple forecast [K, T, N] from what is observed at the input time, NaN where the
        value is missing there."""
        known, later = self.known(time, observed), self.later(time)
        found = {"persistence": np.broadcast_to(known["value"], later.shape), "climatology": later}
        for name, weights in self.weights.items():
            fields, of = REGRESSIONS[name]
            parts = [weights[..., row, None] * known[key] for row, key in enumerate(fields)]
            found[name] = sum(parts, later if of == "anomaly" else np.zeros(1))
        return found


def fit(
    stream: Stream,
    times: Hours,
    read: Read,
    truth: Truth,
    grid: Grid,
    lead_times: Sequence[int],
    later: Hours,
) -> Baselines:
    """The simple forecasts of the training hours; all ranks call, each gets the whole.

    Args:
        stream: given a function that says which hours to read, makes an iterator over
            (hour, targets [T, H, W]) in time order, NaN = missing: every hour counts for the
            climatology.
        times: input times, of which the weights are fitted: up to TIMES of them.
        read: gives what is known at an input time; truth: the targets of any hour, nothing but NaN
            of one that does not exist.
        later: the times to be forecast.
    Raises:
        AqnetError: a month of them has a truth of some target, but no training value; or a lead
            time no pair.
    """
    mask, first = grid.mask.numpy(), read(int(times[0]))
    climate = climatology.fit(stream, mask, len(first.targets), later, truth)
    air = None
    if first.wind is not None:
        air = transport.fit(times[:: -(-len(times) // SEARCHED)], read, truth, grid, lead_times)
    unfitted = Baselines(tuple(lead_times), mask, climate, air, {})

    def products(time: int) -> Values:
        """Sums over the cells of the products of all known fields and the truth."""
        known = unfitted.known(time, read(time))
        later = np.stack([truth(time + lead)[:, mask] for lead in lead_times])
        return least_squares.products(*known.values(), later, later - unfitted.later(time))

    sums = least_squares.summed(times, products)
    fields = list(unfitted.known(int(times[0]), first))
    count = sums[..., fields.index("one"), fields.index("one")]
    distributed.on_main(partial(_check_pairs, count, lead_times))
    weights = {}
    for name, regression in REGRESSIONS.items():
        if set(regression.fields) <= set(fields):
            places = [fields.index(key) for key in regression.fields]
            places.append(len(fields) + ("value", "anomaly").index(regression.of))
            weights[name], _ = least_squares.solve(sums[..., places, :][..., places])
    return replace(unfitted, weights=weights)


def _check_pairs(count: Values, lead_times: Sequence[int]) -> None:
    """Refuse lead times without a pair of training values; `count` is [K, T]."""
    lacking = [lead for lead, pairs in zip(lead_times, count, strict=True) if not pairs.all()]
    if lacking:
        raise AqnetError(
            f"data.split.train has no two values of some target {lacking} h apart, of which the "
            "damped forecasts are fitted; train on longer periods"
        )
