"""What docs show is what the code has, and works."""

import json
import re
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from aqnet import config as configs
from aqnet.batch import Statistics
from aqnet.config.reading import flattened, to_dict
from aqnet.data import statistics
from aqnet.data.dataset import ForecastDataset
from aqnet.data.stores.record import open_stores
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs/config.md").read_text()
MAKER = runpy.run_path(str(REPOSITORY / "docs/make_config.py"))


def test_the_reference_of_keys_is_made_of_the_code():
    _, line, below = PAGE.partition(MAKER["LINE"])
    assert line and below == MAKER["reference"](), "run python docs/make_config.py"


def test_the_reference_holds_every_key_of_a_config():
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    config = configs.from_dict(yaml.safe_load(example), "docs/config.md")
    for key in flattened(to_dict(config)):
        section = re.sub(r"^data\.sources$", "data.sources[].path", key)
        parents = [section, section.rpartition(".")[0]]  # data.static_files.elevation
        assert any(f"| `{name}` |" in PAGE for name in parents), key


def test_a_key_without_its_line_is_refused():
    @dataclass
    class Bare:
        """Says one key.

        Attributes:
            told: the one.
        """

        told: int
        silent: int

    with pytest.raises(ValueError, match="silent"):
        MAKER["rows"](Bare, "")


def test_the_input_of_an_exported_model_is_cut_from_the_stores(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = configs.from_dict(
        {**tiny, "data": {**tiny["data"], "history_hours": [0, -12], "recent_days": [1, 2, 9]}},
        "here",
    )
    stores = open_stores(config)
    numbers: Statistics = statistics.read(config, stores)
    dataset = ForecastDataset(config, "test", numbers, stores)
    batch = dataset[len(dataset) - 1]
    names = config.input_variables
    mean, std = (part[:, None, None].float() for part in numbers.of(names))

    def load(path: str, extra_files: dict[str, str]) -> None:
        extra_files["aqnet.json"] = json.dumps({"variables": names})

    monkeypatch.setattr(torch.export, "load", load)
    time = str(np.datetime64(int(batch.time), "h"))
    output = tmp_path / "input.npz"
    arguments = ["input_of_store.py", "model.pt2", config.data.stores, time, str(output)]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(REPOSITORY / "docs/examples/input_of_store.py"))
    found = np.load(output)
    assert found["time"].tolist() == [int(batch.time)]
    physical = (batch.fields * std + mean).numpy()
    scale = std.numpy()
    np.testing.assert_allclose(found["fields"][0] / scale, physical / scale, atol=1e-4)
    assert any("@-12h" in name for name in names)
    of_two_days = found["fields"][0][[name.endswith("@mean2d") for name in names]]
    assert np.isfinite(of_two_days[:, dataset.grid.mask]).any()
