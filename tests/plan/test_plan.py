"""The planner's formulas against the real model, and its figures against each other."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from aqnet.batch import Statistics
from aqnet.config import Config, from_dict, load, periods, to_dict
from aqnet.errors import AqnetError
from aqnet.grid import Grid
from aqnet.model.climax import ClimaX
from aqnet.plan import formulas
from aqnet.plan import machine as machines
from aqnet.plan import run as plan
from aqnet.plan.machine import Machine
from tests.conftest import REPOSITORY, run

VARIABLES = ["u", "v", "temp", "pm25", "co", "o3", "elevation"]
HEIGHT, WIDTH = 24, 40
TOY = Machine(
    "toy",
    linear=1e12,
    attention=5e11,
    terrain=3e11,
    elementwise=1e11,
    aggregation=1e10,
    overhead=1e-4,
    memory=16e9,
    base=1e9,
    holes=0.25,
    link=1e10,
    link_latency=1e-5,
    network=1e9,
    network_latency=1e-4,
    disk=1e8,
    said=("invented",),
)


def config_of(train: dict[str, Any] | None = None, **model: Any) -> Config:
    tree = {
        "run_dir": "none",
        "data": {
            "stores": "nowhere",
            "variables": VARIABLES,
            "targets": ["pm25", "o3"],
            "lead_times": [12, 24, 48],
            "split": {"train": ["2015-12-31/2016-12-31"], "validation": [2017], "test": [2018]},
        },
        "model": {"embed_dim": 32, "depth": 3, "num_heads": 4, "drop_path": 0.0, **model},
        "train": {"max_steps": 10, "effective_batch": 24, "micro_batch": 2, **(train or {})},
        "plan": {"grid": [HEIGHT, WIDTH]},
    }
    return from_dict(tree, "test")


def model_of(config: Config) -> ClimaX:
    lat, lon = torch.meshgrid(
        torch.linspace(20, 50, HEIGHT), torch.linspace(80, 130, WIDTH), indexing="ij"
    )
    grid = Grid(lat.double(), lon.double(), torch.zeros(HEIGHT, WIDTH), lon > 0)
    return ClimaX(config, grid, Statistics(tuple(VARIABLES), (0.0,) * 7, (1.0,) * 7))


def forward(model: ClimaX, config: Config) -> Tensor:
    items = config.train.micro_batch
    fields = torch.randn(items, len(config.input_variables), HEIGHT, WIDTH)
    lead_time = torch.tensor([config.data.lead_times] * items)
    result: Tensor = model(fields, torch.zeros(items, dtype=torch.int64), lead_time)
    return result


SETTINGS: list[dict[str, Any]] = [
    {},
    {"lead_time_mode": "conditioned", "calendar": "off", "predict": "value"},
    {"calendar": "day_and_year", "scan_embedding": False, "terrain": {"blocks": [1]}},
    {"patch": 4, "decoder_depth": 0, "attention": "window", "window": 20, "mlp_ratio": 3.0},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_parameters_are_those_of_the_model(settings: dict[str, Any]) -> None:
    config = config_of(**settings)
    counted = sum(parameter.numel() for parameter in model_of(config).parameters())
    assert sum(formulas.parameters(config, plan.size_of(config)).values()) == counted


@pytest.mark.parametrize("settings", SETTINGS)
def test_flops_are_those_that_torch_counts(settings: dict[str, Any]) -> None:
    settings = {**settings, "terrain": {"enabled": False}}  # a custom operator is not counted
    config = config_of(**settings)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        forward(model_of(config), config)
    flops = formulas.forward_flops(config, plan.size_of(config))
    mine = config.train.micro_batch * sum(flops.values())
    assert mine == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_flops_of_an_item_count_terrain_blocks_but_not_what_checkpointing_repeats() -> None:
    flat, hilly, again = (
        config_of(terrain={"enabled": terrain}, activation_checkpointing=twice)
        for terrain, twice in ((False, False), (True, False), (True, True))
    )
    size = plan.size_of(flat)
    assert formulas.item_flops(hilly, size) > formulas.item_flops(flat, size)
    assert formulas.item_flops(again, size) == pytest.approx(formulas.item_flops(hilly, size))


@pytest.mark.parametrize("drop_rate", [0.0, 0.1])
@pytest.mark.parametrize("settings", SETTINGS)
def test_activations_are_what_autograd_keeps(settings: dict[str, Any], drop_rate: float) -> None:
    config = config_of(**settings, drop_rate=drop_rate)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)
        return tensor

    held: list[Tensor] = []
    model = model_of(config).train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward(model, config)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    measured = sum(size for pointer, size in kept.items() if pointer not in own)
    measured += result.untyped_storage().nbytes()
    stated = formulas.activation_bytes(config, plan.size_of(config))["kept"]
    stated *= config.train.micro_batch
    assert stated == pytest.approx(measured, rel=0.1)


def test_hours_of_leap_years_and_domain_fraction_are_assumed_and_said() -> None:
    config = config_of()
    size = plan.size_of(config)
    assert size.hours == 24 + 8784 and size.tokens == 12 * 20
    assert "assumed" in size.said[0]
    with pytest.raises(AqnetError, match=r"plan\.grid"):
        plan.size_of(load(REPOSITORY / "configs/demo.yaml", ["data.stores=nowhere"]))


def test_stores_are_read_where_they_exist(tiny: dict[str, Any]) -> None:
    size = plan.size_of(from_dict(tiny, "tiny"))
    assert (size.height, size.width, size.hours) == (8, 16, 14 * 24)
    assert 0 < size.tokens < 4 * 8


def test_a_training_period_over_two_years_reads_both_stores(tmp_path: Path) -> None:
    for year in ("2015", "2016"):
        group = zarr.open_group(tmp_path / f"{year}.zarr", mode="w")
        start, end = periods.intervals((year,))[0]
        group.create_array("mask", data=np.ones((4, 6), bool))
        group.create_array("time", data=np.arange(start, end))
    tree = to_dict(config_of())
    tree["data"]["stores"] = str(tmp_path)
    size = plan.size_of(from_dict(tree, "test"))
    assert (size.hours, size.stored_hours) == (24 + 8784, 8760 + 8784)
    tree["plan"]["grid"] = None
    (tmp_path / "2016.zarr").rename(tmp_path / "elsewhere")
    with pytest.raises(AqnetError, match=r"2016\.zarr: no such store"):
        plan.size_of(from_dict(tree, "test"))


def test_ring_and_tree_follow_the_alpha_beta_model() -> None:
    size = 1e9
    assert machines.all_reduce_seconds(size, 1, 1, TOY) == 0
    ring = 2 * 3 * 1e-5 + 2 * 3 / 4 * size / 1e10
    assert machines.all_reduce_seconds(size, 1, 4, TOY) == pytest.approx(ring)
    tree = 2 * (7 * 1e-5 + math.ceil(math.log2(100)) * 1e-4) + 2 * 1e3 / 1e9
    assert machines.all_reduce_seconds(1e3, 100, 8, TOY) == pytest.approx(tree)


def test_figures_add_up_and_more_processes_are_faster_but_less_efficient() -> None:
    config = config_of({"effective_batch": 384})
    one, many = (plan.plan(config, plan.size_of(config), nodes, 4, TOY) for nodes in (1, 8))
    assert one["accumulation"] == 16 and many["accumulation"] == 2
    assert one["items_per_step"] == many["items_per_step"] == 128
    assert many["items_per_second"] > one["items_per_second"]
    assert many["efficiency"] < one["efficiency"] < 1
    parts = one["micro_step_seconds"] * 16 + one["update_seconds"]
    assert one["step_seconds"] == pytest.approx(parts + one["all_reduce_exposed_seconds"])
    with pytest.raises(AqnetError, match="effective_batch"):
        plan.plan(config, plan.size_of(config), 5, 1, TOY)


def test_command_prints_assumptions_and_writes_json(tmp_path: Path) -> None:
    options = ["--nodes", "100", "--gpus-per-node", "8", "--preset", "lumi-g"]
    path = tmp_path / "plan.json"
    said = run("-m", "aqnet.plan", "--config", "configs/lumi_800.yaml", *options,
               "--json", str(path)).stdout  # fmt: skip
    assert "6400 forecasts = 800 processes x 1 items x 4 lead times x accumulation 2" in said
    assert "assumed, not measured" in said
    figures = json.loads(path.read_text())
    assert figures["processes"] == 800 and figures["parameters"] > 50e6
