"""Weights of AQ_NET2 and of Microsoft's ClimaX as an aqnet checkpoint; nothing in them is run.

python -m aqnet.model.import_weights SOURCE --config C --output CHECKPOINT
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aqnet import config as configs
from aqnet.batch import Statistics
from aqnet.checkpoint import files as checkpoint_files
from aqnet.config import Config
from aqnet.errors import AqnetError
from aqnet.grid import Grid
from aqnet.model.climax import ClimaX
from aqnet.model.weights import import_aq_net2, import_climax
from aqnet.model.weights.transfer import Report

# Lightning keeps hyper-parameters in a dict of its own, under these names: read as a plain dict
_PLAIN_CONTAINERS: list[Any] = [
    (dict, f"{module}.AttributeDict")
    for module in (
        "pytorch_lightning.utilities.parsing",
        "lightning_fabric.utilities.data",
        "lightning.fabric.utilities.data",
        "lightning.pytorch.utilities.parsing",
    )
]
_TOP_LEVEL = {
    "optimizer_states": "the optimizer starts anew",
    "hyper_parameters": "compared with the config; the config holds",
}
_VARIABLE_TABLES = ("var_embed", "channel_embed")


def main() -> int:
    """Parse the command line and import; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m aqnet.model.import_weights", description=__doc__
    )
    parser.add_argument("source", help=".ckpt or .pt file of AQ_NET2 or ClimaX")
    parser.add_argument("--config", required=True, help="the model that takes the weights")
    parser.add_argument("--output", required=True, help="checkpoint directory to write")
    parser.add_argument("--grid", help="HEIGHTxWIDTH of the stores, where the source has none")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()  # key=value may stand behind the options
    output = Path(options.output)
    if output.exists():
        raise AqnetError(f"{output}: exists; give another --output, or move it away")
    config = configs.load(options.config, options.overrides)
    report = import_weights(Path(options.source), config, output, _shape(options.grid))
    for line in report.lines():
        print(line)
    print(f"written: {output}", flush=True)
    return 0


def import_weights(
    source: Path, config: Config, output: Path, shape: tuple[int, int] | None = None
) -> Report:
    """Write the checkpoint directory `output` from the file `source`.

    Args:
        config: the model that takes the weights.
        shape: the grid's (H, W), where neither the source nor `data.shape` gives it.
    Raises:
        AqnetError: the file holds something else than tensors and plain values, or weights that
            this config cannot take; nothing is written.
    """
    tree = read_source(source)
    report = Report()
    tensors, settings = _parts(source, tree, report)
    mask = tensors.get("china_mask")
    known = None if mask is None or mask.ndim != 2 else (mask.shape[0], mask.shape[1])
    shape = shape or config.data.shape or known
    if known not in (None, shape):
        raise AqnetError(f"{source}: its china_mask is {known}, --grid or data.shape {shape}")
    if shape is None:
        raise AqnetError(f"{source}: does not say the grid; give --grid HEIGHTxWIDTH")
    model = blank_model(config, shape)
    first = model.state_dict()
    if _is_climax(tensors):
        statistics: dict[str, dict[str, float]] = {}  # not in the file
        patches = model.patch_shape
        state = import_climax.convert(str(source), tensors, config, first, patches, report)
    else:
        statistics = import_aq_net2.statistics().to_dict()
        state = import_aq_net2.convert(str(source), tensors, settings, config, first, report)
    described = {
        "global_step": 0,
        "config": configs.to_dict(config),
        "statistics": statistics,
        "data_checksums": {},
        "imported": {"source": str(source), **report.to_dict()},
    }
    checkpoint_files.write(output, {"model": state}, {}, described)
    return report


def read_source(path: Path) -> dict[str, Any]:
    """The file's tree of tensors, numbers, text, lists and dicts.

    Raises:
        AqnetError: it cannot be read, or holds anything else: that is not run.
    """
    if not path.is_file():
        raise AqnetError(f"{path}: no such file")
    with torch.serialization.safe_globals(_PLAIN_CONTAINERS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle protocols
        tree = checkpoint_files.load_tensors(path)
    return tree


def blank_model(config: Config, shape: tuple[int, int]) -> ClimaX:
    """A model of the config with its first weights; of the grid only the shape matters to these."""
    lat, lon = torch.meshgrid(
        torch.linspace(1, 0, shape[0], dtype=torch.float64),
        torch.linspace(0, 1, shape[1], dtype=torch.float64),
        indexing="ij",
    )
    everywhere = torch.ones(shape, dtype=torch.bool)
    names = config.data.variables
    statistics = Statistics(names, (0.0,) * len(names), (1.0,) * len(names))
    torch.manual_seed(config.seed)
    return ClimaX(config, Grid(lat, lon, torch.zeros(shape), everywhere), statistics)


def _parts(
    source: Path, tree: dict[str, Any], report: Report
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and hyper-parameters' config of a file; the report says what else is dropped."""
    tensors = tree
    if isinstance(tree.get("state_dict"), Mapping):
        tensors = dict(tree["state_dict"])
        for key in sorted(tree.keys() - {"state_dict"}):
            report.dropped[key] = _TOP_LEVEL.get(key, "state of that training run")
    for key, value in tensors.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise AqnetError(f"{source}: expected a state dict of tensors by name; {key} is none")
    if not any(key.endswith(_VARIABLE_TABLES) and v.ndim == 3 for key, v in tensors.items()):
        raise AqnetError(
            f"{source}: neither AQ_NET2 nor ClimaX: no variable embedding (var_embed or "
            f"channel_embed) among {len(tensors)} tensors"
        )
    hyper = tree.get("hyper_parameters")
    settings = hyper.get("config", hyper) if isinstance(hyper, dict) else {}
    return tensors, settings if isinstance(settings, dict) else {}


def _is_climax(tensors: dict[str, Tensor]) -> bool:
    """Whether the file embeds other than AQ_NET2's variables."""
    tables = [value for key, value in tensors.items() if key.endswith(_VARIABLE_TABLES)]
    return all(table.shape[1:2] != (len(import_aq_net2.VARIABLES),) for table in tables)


def _shape(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise AqnetError(f"--grid {text}: expected HEIGHTxWIDTH, such as 128x256")
    return int(parts[0]), int(parts[1])
