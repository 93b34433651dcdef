"""Weights from elsewhere and back, as a user runs the commands."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from aqnet import config as configs
from aqnet.checkpoint import files as checkpoint_files
from tests.conftest import run
from tests.model.weights.checkpoints import aq_net2_state, config, lightning


def test_a_run_starts_from_another_runs_weights_and_statistics(
    tiny: dict[str, Any], tmp_path: Path
):
    def train(name: str, *overrides: str) -> tuple[str, checkpoint_files.Loaded]:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**tiny, "run_dir": str(tmp_path / name)}))
        output = run("train.py", "--config", str(path), *overrides).stdout
        latest = (tmp_path / name / "checkpoints/latest").read_text().strip()
        return output, checkpoint_files.read(tmp_path / name / "checkpoints" / latest)

    short = ("train.max_steps=1", "train.checkpoint_every=1", "validation.every=1")
    _, first = train("first", *short)
    # a checkpoint whose statistics are not the data's
    statistics = first.state["statistics"]
    statistics["temp"]["mean"] += 1.0
    source = tmp_path / "step_00000001"
    checkpoint_files.write(source, {"model": first.model}, {}, first.state)

    names = json.dumps([name for name in reversed(tiny["data"]["variables"]) if name != "rh"])
    output, second = train(
        "second",
        *short,
        f"data.variables={names}",
        f"train.init_from={source}",
        "train.init_statistics=checkpoint",
        "train.learning_rate_factors={blocks: 0}",
    )
    assert f"{source}: dropped: variable rh: not in the config" in output
    assert f"{source}: taken: " in output
    assert second.state["statistics"]["temp"] == statistics["temp"]
    for name, value in first.model.items():
        if name.startswith("blocks."):  # frozen
            assert torch.equal(second.model[name], value)
    before, after = (each.model["token_embeds.proj_weights"] for each in (first, second))
    assert before.shape[0] == after.shape[0] + 1
    assert torch.allclose(after[-1], before[0], atol=0.01)  # one step later

    exported = tmp_path / "new/model.pt2"
    command = ("-m", "aqnet.model.export", str(tmp_path / "second"), "--output", str(exported))
    run(*command)
    assert list(exported.parent.iterdir()) == [exported]  # written beside and renamed
    assert "exists" in run(*command, status=2).stderr


def test_an_imported_checkpoint_is_evaluated(tiny: dict[str, Any], tmp_path: Path):
    tree = {**tiny, "model": configs.to_dict(config())["model"], "run_dir": str(tmp_path / "run")}
    path, source = tmp_path / "config.yaml", tmp_path / "best.ckpt"
    path.write_text(yaml.safe_dump(tree))
    torch.save(lightning(aq_net2_state()), source)
    output = tmp_path / "imported"
    command = ("-m", "aqnet.model.import_weights", str(source), "--config", str(path))
    printed = run(*command, "--output", str(output), "seed=1").stdout
    assert "taken: 91 tensors" in printed and "dropped: optimizer_states: " in printed
    refused = run(*command, "--output", str(output), status=2).stderr
    assert refused.count("\n") == 1 and "exists" in refused
    scores = tmp_path / "scores"
    checkpoint = ("--checkpoint", str(output), "--output", str(scores), "--max-samples", "8")
    run("evaluate.py", *checkpoint, "--no-pictures")
    assert (scores / "metrics.csv").exists()
