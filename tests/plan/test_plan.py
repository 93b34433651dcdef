"""The plan against the real model and a real process, and its figures against each other."""

import dataclasses
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

from aqnet.config import Config, from_dict, load, periods, to_dict
from aqnet.errors import AqnetError
from aqnet.model.climax import ClimaX
from aqnet.plan import machine as machines
from aqnet.plan import run as plan
from aqnet.plan.extent import extent_of
from aqnet.plan.flops import item_flops, loss, random_batch
from aqnet.plan.machine import Machine, Rates
from aqnet.plan.rehearsal import make_model, rehearse, timed
from tests.conftest import REPOSITORY, run

VARIABLES = ["u", "v", "temp", "pm25", "co", "o3", "elevation"]
HEIGHT, WIDTH = 24, 40
RATES = Rates(
    flops={"matrix products": 1e12, "attention": 5e11, "own operators": 3e11},
    bandwidth=1e11,
    link=1e10,
    link_latency=1e-5,
    network=1e9,
    network_latency=1e-4,
)
TOY = Machine("toy", 16e9, 1e9, True, RATES, ("invented",))


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
    return make_model(config, extent_of(config).grid)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"lead_time_mode": "conditioned", "calendar": "off", "predict": "value"},
    {"calendar": "day_and_year", "scan_embedding": False, "terrain": {"blocks": [1]}},
    {"patch": 4, "decoder_depth": 0, "attention": "window", "window": 20, "mlp_ratio": 3.0},
]


def attention_flops(config: Config, width: int) -> float:
    """Of the forward of one item in all blocks, with heads of this width."""
    model, (height, columns) = config.model, (HEIGHT, WIDTH)
    tokens = height // model.patch * columns // model.patch
    passes = 1 if model.lead_time_mode == "joint" else len(config.data.lead_times)
    window = model.window if model.attention == "window" else tokens
    assert tokens % window == 0
    return 4.0 * passes * model.depth * model.num_heads * tokens * window * width


@pytest.mark.parametrize("settings", SETTINGS)
def test_flops_are_those_of_real_tensors(settings: dict[str, Any]) -> None:
    config = config_of(**{**settings, "terrain": {"enabled": False}, "transport": "fields"})
    model = model_of(config)
    batch = random_batch(config, (HEIGHT, WIDTH), items=config.train.micro_batch)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss(model, batch, config).backward()
    # flash attention makes the scores again in its backward: half of its forward more
    again = 0.5 * attention_flops(config, config.model.embed_dim // config.model.num_heads)
    counted = counter.get_total_flops() / config.train.micro_batch + again
    assert item_flops(model_of(config), config) == pytest.approx(counted)


@pytest.mark.parametrize(("hilly", "windy"), [(True, False), (False, True), (True, True)])
def test_flops_of_biased_attention_are_those_of_its_wider_heads(hilly: bool, windy: bool) -> None:
    plain = config_of(terrain={"enabled": False}, transport="off")
    wind = "attention" if windy else "off"
    biased = config_of(terrain={"enabled": hilly}, transport=wind)
    more = item_flops(model_of(biased), biased) - item_flops(model_of(plain), plain)
    # heads of 8 with up to five features more, padded to 16; the backward is 2.5 times the forward
    few = 1e-3 if windy else 1e-6  # where a head's air comes from, three products of a token
    assert more == pytest.approx(3.5 * attention_flops(biased, 16 - 8), rel=few)


def test_flops_of_an_item_are_counted_without_what_checkpointing_repeats() -> None:
    once, twice = (config_of(activation_checkpointing=flag) for flag in (False, True))
    assert item_flops(model_of(once), once) == item_flops(model_of(twice), twice)
    grid = extent_of(once).grid
    done = [sum(rehearse(config, grid, True).flops.values()) for config in (once, twice)]
    assert done[0] == pytest.approx(2 * item_flops(model_of(once), once))  # of two items
    assert done[1] > 1.2 * done[0]


def test_counting_flops_leaves_the_model_as_it_is() -> None:
    config = config_of({"learning_rate_factors": {"blocks": 0.0}})
    model = model_of(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = item_flops(model, config)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.requires_grad and value.grad is None for value in model.parameters())
    assert model.training
    assert frozen < 0.95 * item_flops(model, config_of())


@pytest.mark.parametrize("drop_rate", [0.0, 0.1])
@pytest.mark.parametrize("settings", SETTINGS)
def test_memory_holds_what_autograd_keeps(settings: dict[str, Any], drop_rate: float) -> None:
    config = config_of(**settings, drop_rate=drop_rate)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)
        return tensor

    held: list[Tensor] = []
    model = model_of(config).train()
    batch = random_batch(config, (HEIGHT, WIDTH), items=config.train.micro_batch)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(model, batch, config)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *batch)}
    own |= {buffer.untyped_storage().data_ptr() for buffer in model.buffers()}
    measured = sum(size for pointer, size in kept.items() if pointer not in own)
    memory = rehearse(config, extent_of(config).grid, gradients_stay=True).memory
    assert measured < memory["activations"] < 1.5 * measured
    weights = sum(value.nbytes for value in model.parameters())
    assert memory["gradients"] == weights and memory["optimizer"] >= 2 * weights
    assert memory["parameters"] == weights + sum(value.nbytes for value in model.buffers())
    assert memory["batch"] == sum(value.nbytes for value in batch) - 4 * 3 * 2  # times are shared


def test_gradients_count_at_the_peak_where_another_micro_batch_left_them() -> None:
    config = config_of()
    grid = extent_of(config).grid
    first, later = (rehearse(config, grid, stay).memory for stay in (False, True))
    assert first["gradients"] < later["gradients"]
    assert sum(first.values()) < sum(later.values())


def test_a_large_validation_batch_counts_where_it_takes_more_than_training() -> None:
    config = config_of()
    large = dataclasses.replace(
        config, validation=dataclasses.replace(config.validation, micro_batch=64)
    )
    grid = extent_of(config).grid
    small, big = (sum(rehearse(c, grid, True).memory.values()) for c in (config, large))
    assert big > small


@pytest.mark.slow
def test_memory_is_within_a_tenth_of_a_process() -> None:
    # alone in a process, whose peak is its own
    code = """
from aqnet.distributed.launch import peak_bytes
from aqnet.plan.extent import extent_of
from aqnet.plan.rehearsal import base_of_a_process, rehearse, timed
from tests.plan.test_plan import config_of
config = config_of({"micro_batch": 8, "effective_batch": 24}, embed_dim=512, depth=4)
grid = extent_of(config).grid
base = base_of_a_process(config)
timed(config, grid)
print(base, peak_bytes(), sum(rehearse(config, grid, gradients_stay=False).memory.values()))
"""
    base, peak, planned = map(float, run("-c", code).stdout.split())
    assert base + planned == pytest.approx(peak, rel=0.1)
    assert planned > 0.2 * peak


def test_hours_of_leap_years_and_domain_fraction_are_assumed_and_said() -> None:
    config = config_of()
    extent = extent_of(config)
    assert extent.hours == 24 + 8784 and len(model_of(config).tokens) == 12 * 20
    assert "assumed" in extent.assumptions[0]
    with pytest.raises(AqnetError, match=r"plan\.grid"):
        extent_of(load(REPOSITORY / "configs/demo.yaml", ["data.stores=nowhere"]))


def test_stores_are_read_where_they_exist(tiny: dict[str, Any]) -> None:
    config = from_dict(tiny, "tiny")
    extent = extent_of(config)
    assert (*extent.grid.shape, extent.hours) == (8, 16, 14 * 24)
    assert 0 < len(make_model(config, extent.grid).tokens) < 4 * 8


def test_a_training_period_over_two_years_reads_both_stores(tmp_path: Path) -> None:
    for year in ("2015", "2016"):
        group = zarr.open_group(tmp_path / f"{year}.zarr", mode="w")
        start, end = periods.intervals((year,))[0]
        group.create_array("mask", data=np.ones((4, 6), bool))
        group.create_array("time", data=np.arange(start, end))
    tree = to_dict(config_of())
    tree["data"]["stores"] = str(tmp_path)
    assert extent_of(from_dict(tree, "test")).hours == 24 + 8784
    tree["plan"]["grid"] = None
    (tmp_path / "2016.zarr").rename(tmp_path / "elsewhere")
    with pytest.raises(AqnetError, match=r"2016\.zarr: no such store"):
        extent_of(from_dict(tree, "test"))


def test_ring_and_tree_follow_the_alpha_beta_model() -> None:
    size = 1e9
    assert machines.all_reduce_seconds(size, 1, 1, RATES) == 0
    ring = 2 * 3 * 1e-5 + 2 * 3 / 4 * size / 1e10
    assert machines.all_reduce_seconds(size, 1, 4, RATES) == pytest.approx(ring)
    tree = 2 * (7 * 1e-5 + math.ceil(math.log2(100)) * 1e-4) + 2 * 1e3 / 1e9
    assert machines.all_reduce_seconds(1e3, 100, 8, RATES) == pytest.approx(tree)


def test_figures_add_up_and_more_processes_are_faster_but_less_efficient() -> None:
    config = config_of({"effective_batch": 384})
    one, many = (plan.plan(config, extent_of(config), nodes, 4, TOY) for nodes in (1, 8))
    assert one["accumulation"] == 16 and many["accumulation"] == 2
    assert one["items_per_step"] == many["items_per_step"] == 128
    assert many["items_per_second"] > one["items_per_second"]
    assert many["efficiency"] < one["efficiency"] < 1
    parts = one["micro_step_seconds"] * 16 + one["update_seconds"]
    assert one["step_seconds"] == pytest.approx(parts + one["all_reduce_exposed_seconds"])
    with pytest.raises(AqnetError, match="effective_batch"):
        plan.plan(config, extent_of(config), 5, 1, TOY)


def test_command_prints_assumptions_and_writes_json(tmp_path: Path) -> None:
    options = ["--nodes", "100", "--gpus-per-node", "8", "--preset", "lumi-g"]
    path = tmp_path / "plan.json"
    said = run("-m", "aqnet.plan", "--config", "configs/lumi_800.yaml", *options,
               "--json", str(path)).stdout  # fmt: skip
    assert "6400 forecasts = 800 processes x 1 items x 4 lead times x accumulation 2" in said
    assert "assumed, not measured" in said
    figures = json.loads(path.read_text())
    assert figures["processes"] == 800 and figures["parameters"] > 50e6
    assert "stores kept" not in figures["memory"]


def test_without_a_machine_sizes_are_planned_and_times_unknown_until_measured(
    tiny: dict[str, Any],
) -> None:
    config = from_dict(tiny, "tiny")
    extent, here = extent_of(config), Machine("here", 1e9, 1e8, False, None, ())
    figures = plan.plan(config, extent, 1, 1, here)
    assert figures["step_seconds"] is None
    assert "--measure" in plan.described(config, extent, figures, here)
    measured = timed(config, extent.grid)
    figures = plan.plan(config, extent, 1, 1, here, measured)
    seconds = figures["accumulation"] * measured[0] + measured[1]
    assert 0 < figures["step_seconds"] == pytest.approx(seconds)
    assert "items/s" in plan.described(config, extent, figures, here)
    assert figures["memory"]["checkpoint copy"] == figures["checkpoint_bytes"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nodes", "0"], "--nodes 0"),
        (["--gpus-per-node", "-1"], "--gpus-per-node -1"),
        (["model.embed_dim=66", "model.num_heads=6"], "embed_dim 66 must be a multiple of 4"),
        (["model.regions=[7, 7]"], "model.regions"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options: list[str], message: str) -> None:
    config = ["--config", "configs/lumi_800.yaml", "--preset", "lumi-g"]
    error = run("-m", "aqnet.plan", *config, *options, status=2).stderr
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_a_store_without_a_mask_is_refused_by_name(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "2015.zarr", mode="w").create_array("time", data=np.arange(4))
    stores = [f"data.stores={tmp_path}", "data.split.train=[2015]"]
    error = run("-m", "aqnet.plan", "--config", "configs/demo.yaml", *stores, status=2).stderr
    assert "2015.zarr" in error and "'mask'" in error and error.count("\n") == 1
