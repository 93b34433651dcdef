"""AQ_NET2 checkpoints: the same forecasts, every key accounted for, nothing run."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aqnet import config as configs
from aqnet.checkpoint import files as checkpoint_files
from aqnet.errors import AqnetError
from aqnet.model.attention.bias import Places
from aqnet.model.weights.import_weights import blank_model, import_weights, read_source
from tests.model.weights import checkpoints
from tests.model.weights.checkpoints import (
    HEADS,
    SHAPE,
    TARGETS,
    VARIABLES,
    aq_net2_state,
    config,
    lightning,
)
from tests.reference.aq_net2 import forecast

COMPATIBILITY = {
    "barrier": "aq_net2_barrier",
    "uphill": "aq_net2_uphill",
    "alpha": "aq_net2_uphill",
    "relative": "aq_net2_relative",
    "published": "aq_net2_relative",
}


def inputs() -> Tensor:
    """Two samples of normalised fields; outside a mask all is missing."""
    generator = torch.Generator().manual_seed(1)
    fields = torch.randn(2, 15, *SHAPE, generator=generator)
    fields[:, 10:12] = torch.tensor([30.0, 110.0])[None, :, None, None] + fields[:, 10:12]
    fields[:, :10, :3, :5] = torch.nan
    fields[:, 12:, :3, :5] = torch.nan
    return fields


def saved(tree: Any, tmp_path: Path) -> Path:
    path = tmp_path / "best.ckpt"
    torch.save(tree, path)
    return path


def run(path: Path, where: configs.Config, fields: Tensor) -> Tensor:
    """Forecasts [B, 4, T, H, W] of the checkpoint directory `path`."""
    loaded = checkpoint_files.read(path)
    model = blank_model(where, SHAPE).eval()
    model.load_state_dict(loaded.model)
    hours = torch.tensor([[12, 24, 48, 96]]).expand(len(fields), 4)
    with torch.no_grad():
        return model(fields, torch.zeros(len(fields), dtype=torch.int64), hours)


def expected(state: dict[str, Tensor], fields: Tensor) -> Tensor:
    state = {key.replace("patch_embed", "token_embeds"): value for key, value in state.items()}
    hours = (12, 24, 48, 96)
    parts = [forecast(state, fields, torch.full((len(fields),), h), HEADS) for h in hours]
    return torch.stack(parts, dim=1)


@pytest.mark.parametrize(
    "variant",
    [
        "plain",
        "row_major",
        "named",
        "single",
        "barrier",
        "uphill",
        "alpha",
        "relative",
        "published",
    ],
)
def test_forecasts_of_every_variant_are_the_originals(variant: str, tmp_path: Path):
    state = aq_net2_state(variant)
    where = config(
        compatibility=COMPATIBILITY.get(variant, "aq_net2"),
        decoder_depth=0 if variant == "single" else 2,
    )
    output = tmp_path / "step_00000000"
    report = import_weights(saved(lightning(state), tmp_path), where, output)
    fields = inputs()
    ours, theirs = run(output, where, fields), expected(state, fields)
    assert theirs.std() > 0.05
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert not report.initialised


def test_the_generated_keys_have_the_published_number_of_parameters(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(checkpoints, "DIM", 768)
    monkeypatch.setattr(checkpoints, "SHAPE", (128, 256))
    state = aq_net2_state()
    del state["target_indices"]
    assert sum(value.numel() for value in state.values()) == 52_481_340


@pytest.mark.parametrize("variant", ["barrier", "uphill", "relative"])
def test_the_terms_of_block_0_are_seen_in_the_forecast(variant: str):
    state, fields = aq_net2_state(variant), inputs()
    without = {
        key: value
        for key, value in state.items()
        if not key.endswith(
            ("elevation_barrier_strength", "elevation_alpha", "H_scale", "bias_table", ".alpha")
        )
    }
    assert (expected(state, fields) - expected(without, fields)).abs().max() > 1e-3


def test_queries_in_chunks_give_the_same_and_gradients(monkeypatch: pytest.MonkeyPatch):
    where = config(compatibility="aq_net2_relative")
    model = blank_model(where, SHAPE)
    attention = model.blocks[0].attn
    torch.nn.init.normal_(attention.bias_table)
    attention.eval()
    x, z = torch.randn(2, 32, 16), torch.randn(2, 32)

    def result() -> list[Tensor]:
        attention.zero_grad()
        out = attention(x, Places(z))
        out.square().sum().backward()
        return [out.detach(), attention.bias_table.grad.clone(), attention.qkv.weight.grad.clone()]

    whole = result()
    monkeypatch.setattr("aqnet.model.weights.compatibility.CHUNK", 5)
    for one, other in zip(result(), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_another_order_of_variables_and_targets_is_no_change(tmp_path: Path):
    state, fields = aq_net2_state(), inputs()
    order = list(reversed(VARIABLES))
    where = config(variables=order, targets=["o3", "pm25"])
    import_weights(saved(lightning(state), tmp_path), where, tmp_path / "out")
    ours = run(tmp_path / "out", where, fields.flip(1))
    torch.testing.assert_close(ours, expected(state, fields)[:, :, [5, 0]], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("data", "target_variables", ["pm2.5"], ["target_variables", "pm2.5"]),
        ("data", "target_variables", None, ["target_variables", "None"]),
        ("data", "variables", None, ["data.variables None"]),
        ("data", "variables", "u", ["data.variables u"]),
        ("data", "variables", VARIABLES[::-1], ["in this order"]),
    ],
)
def test_a_checkpoint_whose_config_names_other_variables_is_refused(
    section: str, key: str, value: Any, words: list[str], tmp_path: Path
):
    tree = lightning(aq_net2_state())
    tree["hyper_parameters"]["config"][section][key] = value
    with pytest.raises(AqnetError) as error:
        import_weights(saved(tree, tmp_path), config(), tmp_path / "out")
    assert all(word in str(error.value) for word in words), error.value


def test_hyper_parameters_without_sections_count_as_none(tmp_path: Path):
    tree = lightning(aq_net2_state())
    tree["hyper_parameters"] = {"config": {"model": None, "data": None}}
    report = import_weights(saved(tree, tmp_path), config(), tmp_path / "out")
    assert any("num_heads" in note for note in report.notes)


def test_a_grid_that_contradicts_the_files_mask_is_refused(tmp_path: Path):
    path = saved(lightning(aq_net2_state()), tmp_path)  # as many patches, but elsewhere
    with pytest.raises(AqnetError, match=r"china_mask is \(8, 16\), .* \(16, 8\)"):
        import_weights(path, config(), tmp_path / "out", SHAPE[::-1])


def test_a_bare_state_dict_is_read_and_scan_and_calendar_start_without_effect(tmp_path: Path):
    state, fields = aq_net2_state(), inputs()
    where = config(calendar="day", scan="wind", scan_embedding=True)
    report = import_weights(saved(state, tmp_path), where, tmp_path / "out", SHAPE)
    ours = run(tmp_path / "out", where, fields)
    torch.testing.assert_close(ours, expected(state, fields), rtol=0, atol=1e-5)
    assert {name.partition(".")[0] for name in report.initialised} == {
        "scan_embed",
        "calendar_embed",
    }
    assert any("num_heads" in note for note in report.notes)


def test_every_key_is_taken_or_dropped_with_a_reason(tmp_path: Path):
    tree = lightning(aq_net2_state("uphill"))
    where = config(compatibility="aq_net2_uphill")
    report = import_weights(saved(tree, tmp_path), where, tmp_path / "out")
    outside = {"china_mask", "target_indices", "blocks.0.attn.H_scale"}
    left = {key for key in report.dropped if key in outside}
    assert left == outside
    assert len(report.taken) == len(tree["state_dict"]) - len(outside)
    assert tree.keys() - {"state_dict"} <= report.dropped.keys()
    assert all(report.dropped.values())
    stored = checkpoint_files.read(tmp_path / "out").state["imported"]
    assert stored["dropped"] == report.dropped


def test_the_normalisation_of_that_time_is_installed(tmp_path: Path):
    import_weights(saved(lightning(aq_net2_state()), tmp_path), config(), tmp_path / "out")
    values = checkpoint_files.read(tmp_path / "out").state["statistics"]
    assert values["co"] == {"mean": 200.0, "std": 100.0}
    assert values["lat2d"] == values["lon2d"] == {"mean": 0.0, "std": 1.0}
    assert set(values) == set(VARIABLES)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("model.climax.patch_embed.norm.weight", ["LayerNorm", "TopoFlow"]),
        ("model.climax.token_embeds.norm.bias", ["LayerNorm"]),
        ("model.pollutant_projections.0.weight", ["pollutant_projections", "not supported"]),
        ("model.hierarchical_physics.x", ["hierarchical_physics"]),
        ("model.climax.blocks.0.attn.elevation_barrier_strength", ["aq_net2_barrier"]),
        ("model.climax.blocks.1.attn.gate", ["blocks.1.attn.gate", "unknown variants"]),
        ("model.climax.blocks.6.norm1.weight", ["blocks.6.norm1.weight", "model.depth"]),
        ("model.climax.head.6.weight", ["decoder_depth", "3"]),
        ("climax.norm.bias", ["norm.bias", "two names"]),
        ("model.climax.head_fc1.bias", ["head.0.bias", "two names"]),
    ],
)
def test_unknown_variants_are_refused_by_name(key: str, words: list[str], tmp_path: Path):
    tree = lightning(aq_net2_state())
    tree["state_dict"][key] = torch.ones(3)
    with pytest.raises(AqnetError) as error:
        import_weights(saved(tree, tmp_path), config(), tmp_path / "out")
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"embed_dim": 32}, ["shape", "16", "32"]),
        ({"num_heads": 4}, ["8 heads", "num_heads 4"]),
        ({"depth": 7}, ["lacks blocks.6"]),
        ({"decoder_depth": 1}, ["2 hidden layers", "decoder_depth"]),
        ({"compatibility": "aq_net2_barrier"}, ["needs model.compatibility: aq_net2 "]),
        ({"variables": VARIABLES[:-1]}, ["population", "data.variables"]),
        ({"targets": ["pm25", "temp"]}, ["temp", "data.targets"]),
    ],
)
def test_another_model_is_refused_by_name(
    settings: dict[str, Any], words: list[str], tmp_path: Path
):
    path = saved(lightning(aq_net2_state()), tmp_path)
    with pytest.raises(AqnetError) as error:
        import_weights(path, config(**settings), tmp_path / "out")
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokens", "domain"),
        ("missing", "ignore"),
        ("lead_time_mode", "joint"),
        ("attention", "window"),
        ("predict", "change"),
        ("terrain", {"enabled": True}),
    ],
)
def test_settings_that_contradict_the_compatibility_are_refused(key: str, value: Any):
    with pytest.raises(AqnetError, match=rf"aq_net2_barrier needs model\.{key}"):
        config(compatibility="aq_net2_barrier", **{key: value})


@pytest.mark.parametrize("variant", ["row_major", "uphill", "relative"])
def test_a_tensor_that_is_missing_or_of_another_shape_is_named(variant: str, tmp_path: Path):
    state, where = (
        aq_net2_state(variant),
        config(compatibility=COMPATIBILITY.get(variant, "aq_net2")),
    )
    optional = ("target_indices", "H_scale")
    blocks = [key for key in state if "blocks." in key and "blocks.0.attn" not in key]
    for key in state.keys() - set(blocks):
        for other in (None, torch.ones(7)):
            tree = lightning(state)
            tree["state_dict"][f"model.{key}"] = other
            if other is None:
                del tree["state_dict"][f"model.{key}"]
                if key.endswith(optional):
                    continue
            with pytest.raises(AqnetError) as error:
                import_weights(saved(tree, tmp_path), where, tmp_path / "out")
            assert "best.ckpt" in str(error.value) and "\n" not in str(error.value)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (exec, (f"open({str(self.path)!r}, 'w').write('run')",))


@pytest.mark.parametrize("place", ["state_dict", "hyper_parameters", "plain"])
def test_a_malicious_pickle_runs_nothing_and_is_refused_in_one_line(place: str, tmp_path: Path):
    evil, written = Malicious(tmp_path / "evil"), tmp_path / "best.ckpt"
    if place == "plain":
        written.write_bytes(pickle.dumps(evil))
    else:
        tree = lightning(aq_net2_state())
        tree[place]["model.evil"] = evil
        torch.save(tree, written)
    with pytest.raises(AqnetError) as error:
        import_weights(written, config(), tmp_path / "out")
    message = str(error.value)
    assert "refused" in message and "best.ckpt" in message and message.isprintable()
    assert "weights_only" not in message and "can still be loaded" not in message
    assert place == "plain" or "GLOBAL exec was not an allowed global" in message
    assert not (tmp_path / "evil").exists() and not (tmp_path / "out").exists()
    # the same file does write when it is run: the test can fail
    if place == "plain":
        pickle.loads(written.read_bytes())
        assert (tmp_path / "evil").exists()


def test_lightnings_own_dict_is_read_as_a_plain_one(tmp_path: Path):
    import sys
    import types

    module = types.ModuleType("lightning.fabric.utilities.data")
    kind = type("AttributeDict", (dict,), {"__module__": module.__name__})
    module.AttributeDict = kind  # type: ignore[attr-defined]
    tree = lightning(aq_net2_state())
    names = ["lightning", "lightning.fabric", "lightning.fabric.utilities", module.__name__]
    for name in names:
        sys.modules[name] = types.ModuleType(name) if name != module.__name__ else module
    try:
        tree["hyper_parameters"] = kind(tree["hyper_parameters"])
        path = saved(tree, tmp_path)
    finally:
        for name in names:
            del sys.modules[name]
    report = import_weights(path, config(), tmp_path / "out")
    assert not report.notes  # the number of heads was found


def test_what_is_no_checkpoint_is_refused(tmp_path: Path):
    path = tmp_path / "best.ckpt"
    path.write_text("hello")
    for tree, words in (
        (None, "refused"),
        ({"weights": torch.ones(2)}, "neither AQ_NET2 nor ClimaX"),
        ({"state_dict": {"a": 1}}, "expected a state dict"),
        ({1: torch.ones(2)}, "expected a state dict"),
        ({"net.model.var_embed": torch.ones(1, 16, 4)}, "neither AQ_NET2 nor ClimaX"),
    ):
        if tree is not None:
            torch.save(tree, path)
        with pytest.raises(AqnetError, match=words):
            import_weights(path, config(), tmp_path / "out", SHAPE)
    with pytest.raises(AqnetError, match="no such file"):
        import_weights(tmp_path / "absent", config(), tmp_path / "out")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_short_anywhere_is_refused(zipped: bool, tmp_path: Path):
    path = tmp_path / "best.ckpt"
    tree = {"state_dict": {"a": torch.ones(3)}}
    torch.save(tree, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        with pytest.raises(AqnetError, match="refused"):
            read_source(path)


def test_targets_of_a_checkpoint_that_contradicts_itself_are_refused(tmp_path: Path):
    tree = lightning(aq_net2_state())
    tree["state_dict"]["model.target_indices"] = torch.tensor([5, 12, 6, 7, 8, 9])
    assert TARGETS[0] == "pm25"
    with pytest.raises(AqnetError, match="target_indices"):
        import_weights(saved(tree, tmp_path), config(), tmp_path / "out")
