"""Score a model and the simple forecasts over the same samples, exactly for any world size."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from aqnet import distributed
from aqnet.batch import Batch, Grid, Statistics
from aqnet.checkpoint_files import replace_text
from aqnet.config import Config
from aqnet.evaluation import metrics
from aqnet.evaluation.baselines import SIMPLE, Baselines, month_of
from aqnet.evaluation.records import Records

Values = NDArray[np.float64]
FORECASTS = ("aqnet", *SIMPLE)
SEASONS = ("DJF", "MAM", "JJA", "SON")
SUBSETS = ("all", *SEASONS, "sudden_change")
KEYS = ("forecast", "pollutant", "lead_time_hours", "region", "subset", "unit")


class Scorer:
    """Sums over samples on rank 0; every rank scores its own batches."""

    def __init__(
        self,
        config: Config,
        grid: Grid,
        statistics: Statistics,
        baselines: Baselines,
        regions: dict[str, NDArray[np.bool_]],
    ) -> None:
        """`regions`: further parts of the domain, bool [H, W], besides `all` of it."""
        self.config, self.baselines = config, baselines
        self.cells = grid.mask.numpy()
        self.regions = ("all", *regions)
        area = _area(grid)[self.cells]
        self.area = np.stack([area, *(area * mask[self.cells] for mask in regions.values())])
        mean, std = statistics.of(config.data.targets)
        self.mean, self.std = mean.numpy(), std.numpy()
        levels = metrics.EVENT_THRESHOLDS
        self.thresholds = np.array([levels.get(name, np.nan) for name in config.data.targets])
        self.records = Records(config, self.mean, self.thresholds)
        self.channels = [config.input_variables.index(name) for name in config.data.targets]
        k, t = len(config.data.lead_times), len(config.data.targets)
        shape = (len(FORECASTS), k, t, len(self.regions), len(SUBSETS), len(metrics.SUMS))
        self.totals = np.zeros(shape)
        self.days: dict[int, Values] = {}
        self.samples = self.excluded = 0

    def score(self, batch: Batch, forecast: Tensor) -> list[tuple[int, int, Values]]:
        """Input time, pairs left out and sums [F, K, T, R, 2, M] of each item of a batch."""
        scaled = (forecast.double().cpu().numpy(), batch.targets.double().numpy())
        model, truth = (self._physical(part) for part in scaled)
        present = self._physical(batch.fields[:, self.channels].double().numpy())
        valid = batch.mask.numpy()[..., self.cells]
        return [
            (int(time), *self._item(int(time), model[i], truth[i], present[i], valid[i]))
            for i, time in enumerate(batch.time)
        ]

    def add(self, time: int, excluded: int, sums: Values) -> None:
        """Add an item; rank 0 calls it in time order, which makes the result exact."""
        self.samples, self.excluded = self.samples + 1, self.excluded + excluded
        self.records.keep(time, sums)
        self.totals[..., [0, SUBSETS.index("sudden_change")], :] += sums
        for row, lead in enumerate(self.config.data.lead_times):
            season = (month_of(time + lead) + 1) % 12 // 3
            self.totals[:, row, :, :, 1 + season] += sums[:, row, :, :, 0]
        pair = [metrics.SUMS.index("ee"), metrics.SUMS.index("w")]
        day = sums[..., 0, pair]
        self.days[time // 24] = self.days.get(time // 24, 0.0) + day

    def _item(
        self, time: int, model: Values, truth: Values, present: Values, valid: NDArray[np.bool_]
    ) -> tuple[int, Values]:
        """A pair counts where the truth is known and every forecast has a value."""
        leads = self.config.data.lead_times
        forecasts = {"aqnet": model, **self.baselines.forecasts(present, time, leads)}
        complete = valid & np.all([np.isfinite(part) for part in forecasts.values()], axis=0)
        self.records.count(model, truth, complete)
        climate = np.nan_to_num(forecasts["climatology"])
        subsets = np.stack([np.ones_like(complete[:, 0]), self._sudden(truth, present)])
        sums = [
            metrics.sums_of(
                forecasts[name],
                truth,
                complete,
                climate,
                self.mean,
                self.thresholds,
                self.area,
                subsets,
            )
            for name in FORECASTS
        ]
        return int(valid.sum() - complete.sum()), np.stack(sums)

    def _sudden(self, truth: Values, present: Values) -> NDArray[np.bool_]:
        """Cells [K, N] whose PM2.5 is high and has changed since the input time."""
        if "pm25" not in self.config.data.targets:
            return np.zeros((len(truth), truth.shape[-1]), dtype=bool)
        at = self.config.data.targets.index("pm25")
        change = np.abs(truth[:, at] - present[at])
        sudden: NDArray[np.bool_] = truth[:, at] >= metrics.SUDDEN_LEVEL
        return sudden & (change >= metrics.SUDDEN_CHANGE)

    def _physical(self, values: Values) -> Values:
        """[..., T, H, W] normalised to [..., T, N] in physical units."""
        return values[..., self.cells] * self.std[:, None] + self.mean[:, None]


def score_all(
    scorer: Scorer,
    forecast: Callable[[Batch], Tensor],
    loader: DataLoader[Batch],
    progress: Callable[[int], None],
) -> None:
    """Forecast and score every batch of every rank; the sums come together on rank 0.

    Args:
        loader: this rank's batches: batch j of all, in time order, goes to rank j mod world_size.
        progress: called on rank 0 with the number of samples done.
    """
    batches = iter(loader)
    count = int(distributed.sum_(torch.tensor(len(loader))))
    for _ in range(-(-count // distributed.world_size())):
        batch = next(batches, None)
        items = scorer.score(batch, forecast(batch)) if batch is not None else []
        everyone = distributed.gather_objects(items)
        if everyone is not None:
            for item in (item for row in everyone for item in row):
                scorer.add(*item)
            progress(scorer.samples)
    scorer.records.gather()


def rows(scorer: Scorer, units: dict[str, str]) -> list[dict[str, Any]]:
    """One row per forecast, pollutant, lead time, region and subset that holds any pair."""
    found = []
    limits = _limits(scorer)
    for at in np.ndindex(scorer.totals.shape[1:5]):
        lead, target, region, subset = at
        group = scorer.totals[:, lead, target, region, subset]
        if group[0, metrics.SUMS.index("n")] == 0:
            continue
        errors = group[:, metrics.SUMS.index("ee")]
        best = 1 + int(np.argmin(errors[1:]))
        name = scorer.config.data.targets[target]
        for number, forecast in enumerate(FORECASTS):
            row: dict[str, Any] = {
                "forecast": forecast,
                "pollutant": name,
                "lead_time_hours": scorer.config.data.lead_times[lead],
                "region": scorer.regions[region],
                "subset": SUBSETS[subset],
                "unit": units[name],
            }
            values = metrics.scores(group[number], float(scorer.mean[target]))
            first = ("n", "rmse", "mae", "bias", "r", "acc")
            row |= {key: values[key] for key in first}
            row["skill_persistence"] = metrics.skill(group[number], group[1])
            row["skill_best_simple"] = metrics.skill(group[number], group[best])
            row["best_simple"] = FORECASTS[best]
            row |= _interval_columns(limits, number, best, at)
            row |= {key: value for key, value in values.items() if key not in first}
            if name not in metrics.EVENT_THRESHOLDS:
                row |= dict.fromkeys((*metrics.COUNTED[1:], "far", "hit_rate", "csi"))
            found.append(row)
    return found


def write(output: Path, facts: dict[str, Any], table: list[dict[str, Any]]) -> None:
    """metrics.json (`facts` and rows) and metrics.csv, atomically."""
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**facts, "rows": table}, indent=1, allow_nan=False)
    replace_text(output / "metrics.json", text + "\n")
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    replace_text(output / "metrics.csv", buffer.getvalue())


def skill_table(table: list[dict[str, Any]]) -> str:
    """RMSE of every forecast and aqnet's skill against the best simple one, as text."""
    whole = [row for row in table if row["region"] == "all" and row["subset"] == "all"]
    groups: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in whole:
        key = row["pollutant"], row["lead_time_hours"]
        groups.setdefault(key, {})[row["forecast"]] = row
    short = ("aqnet", "persist", "climat", "damped", "damp.anom", "skill vs best simple")
    lines = [f"{'RMSE':8s}{'unit':8s}{'lead':>5s}" + "".join(f"{name:>10s}" for name in short)]
    beaten = 0
    for (name, lead), group in sorted(groups.items(), key=lambda item: _order(whole, item[0])):
        errors = "".join(f"{group[forecast]['rmse']:10.2f}" for forecast in FORECASTS)
        ours = group["aqnet"]
        skill = ours["skill_best_simple"]
        beaten += skill is not None and skill > 0
        said = "" if skill is None else f"{skill:10.3f}  {ours['best_simple']}"
        lines.append(f"{name:8s}{ours['unit']:8s}{lead:4d}h{errors}{said}")
    lines.append(f"aqnet is better than the best simple forecast in {beaten} of {len(groups)}")
    return "\n".join(lines)


def _order(whole: list[dict[str, Any]], key: tuple[str, int]) -> tuple[int, int]:
    names = list(dict.fromkeys(row["pollutant"] for row in whole))
    return names.index(key[0]), key[1]


def _limits(scorer: Scorer) -> tuple[Values, Values]:
    """Intervals of each MSE, and of each MSE over each simple forecast's; subset `all` alone.

    Shapes [2, F, K, T, R] and [2, F, F, K, T, R].
    """
    if not scorer.days:
        shape = scorer.totals.shape[:4]
        return np.full((2, *shape), np.nan), np.full((2, shape[0], *shape), np.nan)
    first, last = min(scorer.days), max(scorer.days)
    none = np.zeros((*scorer.totals.shape[:4], 2))
    days = np.stack([scorer.days.get(day, none) for day in range(first, last + 1)])
    errors, weights = days[..., 0], days[..., 1]
    mse = metrics.intervals(np.stack([errors, weights], axis=1))
    above = np.broadcast_to(errors[:, :, None], (len(days), len(FORECASTS), *errors.shape[1:]))
    below = np.broadcast_to(errors[:, None], above.shape)
    return mse, metrics.intervals(np.stack([above, below], axis=1))


def _interval_columns(
    limits: tuple[Values, Values], number: int, best: int, at: tuple[int, ...]
) -> dict[str, float | None]:
    lead, target, region, subset = at
    keys = ("rmse_low", "rmse_high", "skill_best_simple_low", "skill_best_simple_high")
    if subset != 0:
        return dict.fromkeys(keys)
    mse = np.sqrt(limits[0][:, number, lead, target, region])
    skill = 1.0 - limits[1][::-1, number, best, lead, target, region]
    values = [float(value) if np.isfinite(value) else None for value in (*mse, *skill)]
    return dict(zip(keys, values, strict=True))


def _area(grid: Grid) -> Values:
    """cos(latitude) on a degree grid; 1 where the grid is projected (cells of equal size)."""
    lat = grid.lat.numpy()
    on_degrees = np.allclose(lat, lat[:, :1]) and np.allclose(grid.lon, grid.lon[:1])
    return np.cos(np.radians(lat)) if on_degrees else np.ones_like(lat)
