"""Score a model and the simple forecasts over the same samples, exactly for any world size."""

from __future__ import annotations

import time as clock
import zipfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from aqnet import distributed
from aqnet.batch import Batch, Forecast, Statistics
from aqnet.config import Config
from aqnet.errors import AqnetError
from aqnet.evaluation import metrics
from aqnet.evaluation.baselines import Baselines, Observed, month_of
from aqnet.evaluation.baselines.distributions import Distributions
from aqnet.evaluation.cell_errors import CellErrors
from aqnet.evaluation.forecasts.zarr_files import ExternalForecast
from aqnet.evaluation.histograms import Records
from aqnet.evaluation.odds.odds import OddsScores
from aqnet.evaluation.stations.stations import Observations, StationScores
from aqnet.grid import Grid, cell_areas
from aqnet.physical import clipped, in_units, physical, possible

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]
SEASONS = ("DJF", "MAM", "JJA", "SON")
BATCHES_BETWEEN_LOOKS = 8  # at a request to stop
SUBSETS = ("all", *SEASONS, "sudden_change")


class Item(NamedTuple):
    """What one input time adds: pairs left out, the model's values and quantiles that were below 0,
    sums [F, K, T, R, 2 + others, M], the forecasts at the stations [F, K, T, P] and the sums of
    `OddsScores`, if there are any."""

    time: int
    excluded: int
    clipped: tuple[int, int]
    sums: Values
    at_stations: NDArray[np.float32] | None
    odds: Values | None


class Besides(NamedTuple):
    """What is scored besides the model and the simple forecasts over the whole domain.

    Attributes:
        regions: further parts of the domain, bool [H, W].
        others: further forecasts; those that lack pairs are compared in a subset of their own.
        observations: at stations, at which all forecasts are scored as well.
        distributions: what the model's quantiles are scored against, where it has any.
    """

    regions: dict[str, Flags]
    others: Sequence[ExternalForecast] = ()
    observations: Observations | None = None
    distributions: Distributions | None = None


class Scorer:
    """Sums over samples on rank 0; every rank scores its own batches."""

    def __init__(
        self,
        config: Config,
        grid: Grid,
        statistics: Statistics,
        baselines: Baselines,
        observed: Callable[[int], Observed],
        besides: Besides,
    ) -> None:
        """`observed` gives what is known at an input time."""
        regions, others, observations, distributions = besides
        self.config, self.baselines = config, baselines
        self.observed, self.others = observed, tuple(others)
        self.grid, self.cells = grid, grid.mask.numpy()
        self.regions = ("all", *regions)
        area = cell_areas(grid.lat.numpy(), grid.lon.numpy())[self.cells]
        self.area = np.stack([area, *(area * mask[self.cells] for mask in regions.values())])
        self.statistics, self.mean = statistics, statistics.of(config.data.targets)[0].numpy()
        levels = metrics.EVENT_THRESHOLDS
        self.thresholds = np.array([levels.get(name, np.nan) for name in config.data.targets])
        self.records = Records(config, self.mean, self.thresholds)
        names = [other.name for other in others]
        self.own = 1 + len(baselines.names)  # forecasts that have a value wherever any has
        self.forecasts = ("aqnet", *baselines.names, *names)
        self.subsets = (*SUBSETS, *(f"common_{name}" for name in names))
        k, t = len(config.data.lead_times), len(config.data.targets)
        self.totals = np.zeros(
            (len(self.forecasts), k, t, len(self.regions), len(self.subsets), len(metrics.SUMS))
        )
        std = statistics.of(config.data.targets)[1].numpy()
        # of the forecasts that have a value wherever any has
        self.cell_errors = CellErrors(self.own, k, std, int(self.cells.sum()))
        self.stations: StationScores | None = None
        if observations is not None:
            about = config, self.mean, self.thresholds, self.forecasts, self.own
            self.stations = StationScores(observations, *about)
        self.odds: OddsScores | None = None
        if distributions is not None:
            what = config.data.targets, self.thresholds, self.area, len(SUBSETS)
            self.odds = OddsScores(distributions, *what)
        self.days: dict[int, Values] = {}
        self.samples = self.excluded = 0
        self.clipped = np.zeros(2, np.int64)  # values, quantiles

    def score(self, batch: Batch, forecast: Forecast) -> list[Item]:
        """What each item of a batch adds, given its forecast."""
        known = self.config.data.targets, self.statistics
        model = physical(self._in_domain(forecast.mean), *known)
        truth = in_units(self._in_domain(batch.targets), *known)  # as it is, below 0 too
        valid = batch.mask[..., torch.from_numpy(self.cells)].numpy()
        items = []
        for row, time in enumerate(batch.time.tolist()):
            quantiles = None
            if forecast.quantiles is not None:
                quantiles = physical(self._in_domain(forecast.quantiles[row]), *known)
            items.append(self._item(time, model[row], truth[row], valid[row], quantiles))
        return items

    def _in_domain(self, values: Tensor) -> Tensor:
        """Those of the values [..., T, H, W] in the cells of the domain, [..., T, N]."""
        return values.cpu()[..., torch.from_numpy(self.cells)]

    def add(self, item: Item) -> None:
        """Add an item; rank 0 calls it in time order, which makes the result exact."""
        sums = item.sums
        self.samples, self.excluded = self.samples + 1, self.excluded + item.excluded
        self.clipped += item.clipped
        self.records.keep(item.time, sums)
        later = [item.time + lead for lead in self.config.data.lead_times]
        seasons = [1 + (month_of(time) + 1) % 12 // 3 for time in later]
        places = [0, SUBSETS.index("sudden_change")]
        metrics.add_up(self.totals, sums, [*places, *self._common], seasons)
        if self.odds is not None and item.odds is not None:
            self.odds.add(item.time, item.odds, places, seasons)
        if self.stations is not None and item.at_stations is not None:
            self.stations.add(item.time, item.at_stations)
        pair = [metrics.SUMS.index("ee"), metrics.SUMS.index("w")]
        day = sums[..., 0, pair]
        self.days[item.time // 24] = self.days.get(item.time // 24, 0.0) + day

    @property
    def _common(self) -> range:
        return range(len(SUBSETS), len(self.subsets))

    def _item(
        self, time: int, model: Values, truth: Values, valid: Flags, quantiles: Values | None
    ) -> Item:
        """A pair counts where the truth is known and aqnet and the simple forecasts have a value;
        for another forecast, and in the subset common with it, where that has one as well. In none
        is a concentration below 0."""
        targets = self.config.data.targets
        simple = self.baselines.forecasts(time, self.observed(time))
        own = {"aqnet": model, **{name: possible(part, targets) for name, part in simple.items()}}
        complete = valid & np.all([np.isfinite(part) for part in own.values()], axis=0)
        self.records.count(model, truth, complete)
        for number, values in enumerate(own.values()):
            self.cell_errors.count(number, values, truth, complete)
        climate = np.nan_to_num(own["climatology"])
        subsets = np.stack([np.ones_like(complete[:, 0]), self._sudden(truth, own["persistence"])])
        fixed = truth, climate, self.mean, self.thresholds, self.area
        others = [possible(other.forecast(time), targets) for other in self.others]
        known = [complete & np.isfinite(values) for values in others]
        sums = []
        scored = [(values, complete) for values in own.values()]
        for values, pairs in (*scored, *zip(others, known, strict=True)):
            parts = [metrics.sums_of(values, pairs, *fixed, subsets)]
            parts += [metrics.sums_of(values, pairs & both, *fixed, subsets[:1]) for both in known]
            sums.append(np.concatenate(parts, axis=3))
        at_stations = None
        if self.stations is not None:
            points = self.stations.observations.points
            every = [points(values) for values in (*own.values(), *others)]
            at_stations = np.stack(every).astype(np.float32)
        odds, below = None, 0
        if self.odds is not None and quantiles is not None:
            odds = self.odds.of(time, quantiles, own, complete, truth, subsets)
            below = clipped(quantiles, targets)
        left_out = int(valid.sum() - complete.sum())
        counts = clipped(model, targets), below
        return Item(time, left_out, counts, np.stack(sums), at_stations, odds)

    def skill_by_cell(self) -> Values:
        """The model's skill in each cell against the simple forecast that is best over the whole
        domain, shape [K, T, H, W], NaN outside; rank 0 alone has all that it needs."""
        errors = self.totals[1 : self.own, :, :, 0, 0, metrics.SUMS.index("ee")]
        skill = np.full((*errors.shape[1:], *self.cells.shape), np.nan)
        skill[..., self.cells] = self.cell_errors.skill(1 + errors.argmin(axis=0))
        return skill

    def _sudden(self, truth: Values, present: Values) -> Flags:
        """Cells [K, N] whose PM2.5 is high and has changed since the input time."""
        if "pm25" not in self.config.data.targets:
            return np.zeros((len(truth), truth.shape[-1]), dtype=bool)
        at = self.config.data.targets.index("pm25")
        change = np.abs(truth[:, at] - present[:, at])
        sudden: Flags = truth[:, at] >= metrics.SUDDEN_LEVEL
        return sudden & (change >= metrics.SUDDEN_CHANGE)


def score_all(
    scorer: Scorer,
    forecast: Callable[[Batch], Forecast],
    loader: DataLoader[Batch],
    total: int,
    keep: Callable[[Batch, Forecast], object] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Forecast and score every batch of every rank; the sums are added up on rank 0.

    Args:
        loader: this rank's batches: batch j of all, in time order, goes to rank j mod world_size.
        total: samples of all ranks, for the progress.
        keep: called with each batch and its forecast, if given; every rank's calls are over when
            rank 0 returns.
        stop: whether a stop was asked for; the ranks agree in it.
    Returns:
        Whether all were scored, and not stopped before.
    """
    progress = Progress(total)
    batches = iter(loader)
    count = int(distributed.sum_(torch.tensor(len(loader))))
    for number in range(-(-count // distributed.world_size())):
        if number % BATCHES_BETWEEN_LOOKS == 0 and stop():
            return False
        batch = next(batches, None)
        items = []
        if batch is not None:
            values = forecast(batch)
            items = scorer.score(batch, values)
            if keep is not None:
                keep(batch, values)
        everyone = distributed.gather_objects(items)
        if everyone is not None:
            for item in (item for row in everyone for item in row):
                scorer.add(item)
            progress(scorer.samples)
    scorer.records.gather()
    scorer.cell_errors.gather()
    return True


class Progress:
    """Plain lines, at most one every 5 s."""

    def __init__(self, total: int, done: str = "evaluated") -> None:
        """`done`: what is done with each of `total` input times."""
        self._total, self._done, self._said = total, done, clock.monotonic()

    def __call__(self, done: int) -> None:
        """Say how many samples are done."""
        if clock.monotonic() - self._said > 5.0 or done == self._total:
            self._said = clock.monotonic()
            print(f"{self._done} {done} of {self._total} input times", flush=True)


def drawn(times: NDArray[np.int64], number: int | None, seed: int) -> NDArray[np.int64]:
    """At most `number` of `times`, ascending, the same for every model with these times.

    The draw ranks hours, not places in the list, so that a model that lacks a few of the times
    (because it needs earlier hours) is scored on the same others.
    """
    if number is None or number >= len(times):
        return times
    keys = np.random.default_rng(seed).random(int(times[-1]) + 1)[times]
    return np.sort(times[np.argsort(keys, kind="stable")[:number]])


def read_regions(path: str | None, domain: Flags) -> dict[str, Flags]:
    """Named masks, bool [H, W], of an .npz file.

    Raises:
        AqnetError: it cannot be read, or a mask has another shape than the grid, no cell of the
            domain, or the name of the whole.
    """
    if path is None:
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            masks = {name: file[name].astype(bool) for name in file.files}
    except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise AqnetError(
            f"{path}: cannot read the regions: {error}; expected an .npz file of masks by name"
        ) from None
    for name, mask in masks.items():
        if mask.shape != domain.shape:
            raise AqnetError(f"{path}: {name!r} has shape {mask.shape}, the grid {domain.shape}")
        if not (mask & domain).any():
            raise AqnetError(f"{path}: {name!r} has no cell of the domain; leave it out")
        if name == "all":
            raise AqnetError(f"{path}: 'all' is the name of the whole domain; choose another")
    return masks
