"""A trained model as one file that runs without aqnet, on physical values.

python -m aqnet.model.export CHECKPOINT --output FILE
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aqnet import config as configs
from aqnet.batch import Forecast, Statistics
from aqnet.checkpoint import files as checkpoint_files
from aqnet.checkpoint.files import Loaded
from aqnet.config import Config
from aqnet.errors import AqnetError
from aqnet.files import write_beside
from aqnet.grid import Grid
from aqnet.model.climax import ClimaX

METADATA = "aqnet.json"  # inside the file; torch.export.load(..., extra_files={METADATA: ""})


class Physical(nn.Module):
    """The model between physical inputs and physical forecasts."""

    input_mean: Tensor
    input_std: Tensor
    output_mean: Tensor
    output_std: Tensor
    output_lowest: Tensor
    domain: Tensor

    def __init__(self, model: ClimaX, config: Config, statistics: Statistics, grid: Grid) -> None:
        super().__init__()
        self.model = model
        for side, names in (("input", config.input_variables), ("output", config.data.targets)):
            mean, std = (values.float().view(-1, 1, 1) for values in statistics.of(names))
            self.register_buffer(f"{side}_mean", mean)
            self.register_buffer(f"{side}_std", std)
        low = torch.tensor(configs.lowest(config.data.targets)).view(-1, 1, 1)
        self.register_buffer("output_lowest", low)
        self.register_buffer("domain", grid.mask)

    def forward(
        self, fields: Tensor, time: Tensor, lead_time: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Forecast the targets.

        Args:
            fields: in the units of the training stores, NaN where missing, float32, shape
                [B, V, H, W].
            time: input time, hours since 1970-01-01 00:00 UTC, int64, shape [B].
            lead_time: hours, int64, shape [B, K].
        Returns:
            In the same units, concentrations at least 0, shape [B, K, T, H, W]; NaN outside the
            domain. With `model.quantiles` besides it the quantiles at these levels, [B, Q, K, T, H,
            W].
        """
        normalised = (fields - self.input_mean) / self.input_std
        mean, quantiles, _ = Forecast.of(self.model(normalised, time, lead_time))
        if quantiles is None:
            return self._published(mean)
        return self._published(mean), self._published(quantiles)

    def _published(self, values: Tensor) -> Tensor:
        """Normalised values as `--forecast` writes them."""
        physical = torch.maximum(values * self.output_std + self.output_mean, self.output_lowest)
        return physical.where(self.domain, torch.nan)


def main() -> int:
    """Parse the command line and export; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m aqnet.model.export", description=__doc__)
    parser.add_argument("checkpoint", help="run directory (its best, else latest) or step_*")
    parser.add_argument("--output", required=True, help="file to write, such as model.pt2")
    options = parser.parse_args()
    output = Path(options.output)
    if output.exists():
        raise AqnetError(f"{output}: exists; give another --output, or move it away")
    export(checkpoint_files.read(options.checkpoint), output)
    print(f"written: {output}; docs/examples/run_exported.py runs it", flush=True)
    return 0


def export(loaded: Loaded, output: Path) -> None:
    """Write weights, statistics, grid and config of a checkpoint to one file.

    The moving average is taken where there is one.

    Raises:
        AqnetError: the checkpoint does not hold its grid.
    """
    config, _ = configs.from_checkpoint(loaded.state["config"], str(loaded.path))
    statistics = Statistics.from_dict(loaded.state["statistics"])
    if loaded.grid is None:
        raise AqnetError(
            f"{loaded.path}: holds no grid (it was imported, or is older than the grid's storing); "
            "train from it with train.init_from, and export the run"
        )
    grid = Grid.from_dict(loaded.grid)
    model = ClimaX(config, grid, statistics)
    model.load_state_dict(loaded.ema if loaded.ema is not None else loaded.model)
    module = Physical(model, config, statistics, grid).eval()
    batch = torch.export.Dim("batch", min=1)
    shapes = {name: {0: batch} for name in ("fields", "time", "lead_time")}
    with torch.no_grad():
        program = torch.export.export(module, example(config, grid), dynamic_shapes=shapes)
    text = json.dumps(metadata(config, grid, statistics))
    output.parent.mkdir(parents=True, exist_ok=True)
    with write_beside(output) as file:
        torch.export.save(program, file, extra_files={METADATA: text})


def example(config: Config, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Two input times without a value, with all lead times."""
    fields = torch.full((2, len(config.input_variables), *grid.shape), float("nan"))
    leads = torch.tensor(config.data.lead_times).expand(2, -1)
    return fields, torch.zeros(2, dtype=torch.int64), leads


def metadata(config: Config, grid: Grid, statistics: Statistics) -> dict[str, Any]:
    """What a user of the file must know; numbers and text only."""
    return {
        "variables": config.input_variables,
        "targets": config.data.targets,
        "lead_times": config.data.lead_times,
        "quantiles": config.model.quantiles,
        "lat": grid.lat.tolist(),
        "lon": grid.lon.tolist(),
        "mask": grid.mask.int().tolist(),
        "statistics": statistics.to_dict(),
        "config": configs.to_dict(config),
    }
