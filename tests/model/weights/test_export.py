"""An exported model runs without the training code and forecasts the same."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aqnet import config as configs
from aqnet.batch import Statistics
from aqnet.checkpoint import files as checkpoint_files
from aqnet.errors import AqnetError
from aqnet.model.attention import bias, biased_attention
from aqnet.model.climax import ClimaX
from aqnet.model.weights.export import METADATA, export
from tests.conftest import REPOSITORY
from tests.model.builders import LEADS, TARGETS, VARIABLES, config_of, grid, inputs, model_of
from tests.reference.attention import dense_attention, travel_bias

EXAMPLE = REPOSITORY / "docs/examples/run_exported.py"
# -I keeps this repository off the path; that it is not used is checked besides
ALONE = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0])
assert not any(name.partition(".")[0] == "aqnet" for name in sys.modules)
"""
MEAN = (1.0, -1.0, 280.0, 40.0, 60.0, 32.0, 106.0, 1000.0)
STD = (8.0, 7.0, 12.0, 30.0, 25.0, 12.0, 16.0, 1900.0)
AQ_NET2 = {
    "compatibility": "aq_net2_barrier",
    "tokens": "all",
    "missing": "fill",
    "lead_time_mode": "conditioned",
    "predict": "value",
    "transport": "off",
    "terrain": {"enabled": False},
}


def saved(folder: Path, **settings: Any) -> checkpoint_files.Loaded:
    """A checkpoint of a random model, as training writes it."""
    statistics = Statistics(tuple(VARIABLES), MEAN, STD)
    weights = model_of(**settings).float().state_dict()
    state = {
        "global_step": 7,
        "config": configs.to_dict(config_of(**settings)),
        "statistics": statistics.to_dict(),
        "data_checksums": {},
    }
    path = folder / "step_00000007"
    checkpoint_files.write(path, {"model": weights, "grid": grid().to_dict()}, {}, state)
    return checkpoint_files.read(path)


def physical(fields: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    return fields.float() * std + mean


def expected(fields: Tensor, time: Tensor, lead_time: Tensor, **settings: Any) -> Tensor:
    """The model's own normalised forecast."""
    model = ClimaX(config_of(**settings), grid(), Statistics(tuple(VARIABLES), MEAN, STD))
    model.load_state_dict(model_of(**settings).float().state_dict())
    with torch.no_grad():
        return model.eval()(fields.float(), time, lead_time)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="default"),
        pytest.param({"attention": "window"}, id="window", marks=pytest.mark.slow),
        pytest.param(AQ_NET2, id="aq_net2", marks=pytest.mark.slow),
    ],
)
def test_the_example_runs_it_alone_and_forecasts_the_same(settings: dict[str, Any], tmp_path: Path):
    loaded = saved(tmp_path, **settings)
    export(loaded, tmp_path / "model.pt2")
    fields, time, lead_time = inputs()
    fields, time = torch.cat([fields, fields[:1]]), torch.cat([time, time[:1]])  # another batch
    np.savez(tmp_path / "input.npz", fields=physical(fields).numpy(), time=time.numpy())
    arguments = [tmp_path / name for name in ("model.pt2", "input.npz", "forecast.npz")]
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(EXAMPLE), *map(str, arguments)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert " ".join(VARIABLES) in done.stdout
    written = np.load(tmp_path / "forecast.npz")
    ours = torch.from_numpy(written["forecast"])
    own = expected(fields, time, lead_time[:1].repeat(3, 1), **settings)
    at = [VARIABLES.index(name) for name in TARGETS]
    mean, std = (torch.tensor(numbers)[at].view(-1, 1, 1) for numbers in (MEAN, STD))
    theirs = own * std + mean
    domain = grid().mask
    assert settings or (theirs[..., domain] < -1).any()
    assert not theirs[..., ~domain].isnan().all()
    theirs = theirs.clamp(min=0).where(domain, torch.nan)
    assert ours.shape == (3, len(LEADS), len(TARGETS), 8, 12)
    torch.testing.assert_close(ours / std, theirs / std, rtol=0, atol=1e-5, equal_nan=True)
    np.testing.assert_array_equal(written["lat"], grid().lat.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["joint", "conditioned"])
def test_winds_to_come_and_means_of_days_count_as_in_the_model(mode: str, tmp_path: Path):
    more = {"weather": ["temp", "u", "v"], "weather_hours": [48, 12, 24, 96], "recent_days": [1, 7]}
    settings: dict[str, Any] = {"more": more, "lead_time_mode": mode}
    names = config_of(**settings).input_variables
    export(saved(tmp_path, **settings), tmp_path / "model.pt2")
    fields, time, lead_time = inputs()
    generator = torch.Generator().manual_seed(3)
    others = torch.randn(2, len(names) - fields.shape[1], 8, 12, generator=generator)
    fields = torch.cat([fields.float(), 0.5 * others], dim=1)
    fields[1, 10] = torch.nan
    numbers = Statistics(tuple(VARIABLES), MEAN, STD)
    mean, std = (values.float().view(-1, 1, 1) for values in numbers.of(names))
    alone = torch.export.load(tmp_path / "model.pt2").module()
    found = alone(fields * std + mean, time, lead_time)
    mean, std = (values.float().view(-1, 1, 1) for values in numbers.of(TARGETS))
    own = (expected(fields, time, lead_time, **settings) * std + mean).clamp(min=0)
    own = own.where(grid().mask, torch.nan)
    torch.testing.assert_close(found / std, own / std, rtol=0, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("windy", [False, True])
def test_biased_attention_in_an_exported_file_is_the_same_in_chunks(
    windy: bool, monkeypatch: pytest.MonkeyPatch
):
    q, k, v = torch.randn(3, 2, 4, 23, 8, dtype=torch.float64)
    z = torch.rand(2, 23, dtype=torch.float64).sort().values
    up, down, time, width = 0.3 + torch.rand(4, 4, dtype=torch.float64)
    position, displacement = torch.rand(2, 2, 23, 2, dtype=torch.float64)
    terms, more = [bias.terrain(z, up, down)], None
    if windy:
        paths, days = displacement.unsqueeze(2), torch.tensor([0.5], dtype=torch.float64)
        terms.append(bias.travel(position, paths, days, time, width))
        more = travel_bias(position, paths, [12], time, width)
    expected = dense_attention(q, k, v, z, up, down, bias=more)
    features = bias.joined(terms)
    for chunk in (5, 23, 512):
        monkeypatch.setattr(biased_attention, "_CHUNK", chunk)
        torch.testing.assert_close(biased_attention._in_chunks(q, k, v, *features), expected)


def test_the_file_says_what_it_is(tmp_path: Path):
    loaded = saved(tmp_path)
    export(loaded, tmp_path / "model.pt2")
    found = {METADATA: ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=found)
    facts = json.loads(found[METADATA])
    assert facts["variables"] == VARIABLES and facts["targets"] == TARGETS
    assert facts["statistics"]["temp"] == {"mean": 280.0, "std": 12.0}
    assert facts["config"] == loaded.state["config"]
    assert np.array_equal(np.array(facts["mask"], dtype=bool), grid().mask.numpy())


def test_the_example_is_about_20_lines_and_knows_nothing_of_aqnet():
    text = EXAMPLE.read_text()
    code = text.split('"""', 2)[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    assert "import aqnet" not in text and "from aqnet" not in text


def test_a_checkpoint_without_its_grid_is_refused(tmp_path: Path):
    loaded = saved(tmp_path)
    path = tmp_path / "step_00000008"
    checkpoint_files.write(path, {"model": loaded.model}, {}, {**loaded.state, "global_step": 8})
    with pytest.raises(AqnetError, match="holds no grid"):
        export(checkpoint_files.read(path), tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()
