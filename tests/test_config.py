"""Strictness of the configuration: every mistake is one line that names the key."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from aqnet import config as configs
from aqnet.errors import AqnetError

SHIPPED = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def tree() -> dict[str, Any]:
    return {
        "run_dir": "run",
        "data": {
            "stores": "stores",
            "variables": ["u", "v", "pm25", "no", "elevation"],
            "targets": ["pm25"],
            "split": {"train": ["2013"], "validation": ["2014-10"], "test": ["2015"]},
        },
        "train": {"max_steps": 10},
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tree()))
    return file


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_load_and_round_trip(shipped: Path, tmp_path: Path):
    config = configs.load(shipped)
    (tmp_path / "resolved.yaml").write_text(configs.to_yaml(config))
    assert configs.load(tmp_path / "resolved.yaml") == config
    assert configs.from_dict(configs.to_dict(config), "dict") == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.learning_rat=1", ["unknown key 'train.learning_rat'", "'train.learning_rate'"]),
        ("trin.max_steps=1", ["unknown key 'trin'", "'train'"]),
        ("train.max_steps=1.5", ["train.max_steps", "1.5", "whole number"]),
        ("train.compile=1", ["train.compile", "true or false"]),
        ("seed=true", ["seed", "whole number"]),
        ("model.calendar=dya", ["model.calendar", "did you mean day?"]),
        ("model.regions=4xa", ["model.regions[1]", "'a'"]),
        ("data.lead_times=12", ["data.lead_times", "list"]),
        ("data.lead_times=[12, 12]", ["data.lead_times", "twice"]),
        ("data.lead_times=[-12]", ["data.lead_times", "positive"]),
        ("data.history_hours=[-24]", ["data.history_hours"]),
        ("data.split.train=[Spring]", ["data.split.train", "Spring"]),
        ("data.targets=[so2]", ["model.predict", "so2"]),
        ("data.targets=[elevation]", ["data.targets", "elevation"]),
        ("data.variables=[pm25, elevation]", ["model.scan", "raster"]),
        ("data.variables=[u, v, pm25]", ["terrain", "elevation"]),
        ("data.shape=3x4", ["data.shape", "data.resample"]),
        ("model.num_heads=7", ["model.embed_dim", "model.num_heads"]),
        ("model.terrain.blocks=[6]", ["model.terrain.blocks", "6"]),
        ("model.drop_path=1.0", ["model.drop_path"]),
        ("train.max_steps=null", ["run length"]),
        ("train.target_weights.so2=1", ["train.target_weights.so2"]),
        ("train.init_from=somewhere", ["train.init_statistics"]),
        ("train.max_steps", ["key=value"]),
        ("run_dir.x=1", ["holds a value"]),
        ("seed=[", ["not valid YAML"]),
    ],
)
def test_mistakes_are_named(path: Path, override: str, words: list[str]):
    with pytest.raises(AqnetError) as error:
        configs.load(path, [override])
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_regions_and_windows_exclude_each_other(path: Path):
    with pytest.raises(AqnetError, match=r"model\.regions"):
        configs.load(path, ["model.regions=2x2", "model.attention=window"])


@pytest.mark.parametrize("text", ["[1, 2]", "a: b: c", "run_dir: a\nrun_dir: b", ""])
def test_files_that_are_no_mapping_are_refused_by_name(tmp_path: Path, text: str):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(AqnetError, match=r"bad\.yaml"):
        configs.load(file)


def test_missing_file_and_missing_key_are_named(tmp_path: Path):
    with pytest.raises(AqnetError, match=r"absent\.yaml"):
        configs.load(tmp_path / "absent.yaml")
    short = tree()
    del short["data"]["targets"]
    with pytest.raises(AqnetError, match=r"data\.targets"):
        configs.from_dict(short, "here")


def test_scalars_follow_the_yaml_1_2_core_schema(path: Path):
    config = configs.load(
        path, ["train.learning_rate=1e-4", "model.calendar=off", "run_dir=12:30", "seed=010"]
    )
    assert config.train.learning_rate == 1e-4
    assert config.model.calendar == "off"
    assert config.run_dir == "12:30"
    assert config.seed == 10
    file = path.with_name("no.yaml")
    file.write_text(path.read_text().replace("'no'", "no"))
    assert "no" in configs.load(file).data.variables


def test_history_adds_variables_after_the_plain_ones(path: Path):
    config = configs.load(path, ["data.history_hours=[0, -24]"])
    earlier = ("u@-24h", "v@-24h", "pm25@-24h", "no@-24h")
    assert config.input_variables == ("u", "v", "pm25", "no", "elevation", *earlier)


def test_accumulation_divides_or_names_the_nearest(path: Path):
    config = configs.load(path, ["train.effective_batch=96", "train.micro_batch=4"])
    assert [config.accumulation(world_size) for world_size in (1, 2, 3)] == [6, 3, 2]
    with pytest.raises(AqnetError, match=r"64 or 128"):
        config.accumulation(4)


def test_continuation_allows_run_length_and_paths_only(path: Path):
    old = configs.to_dict(configs.load(path))
    allowed = ["train.max_steps=20", "run_dir=x", "data.stores=y", "train.micro_batch=2"]
    new = configs.to_dict(configs.load(path, allowed))
    assert configs.changes_forbidden_on_continuation(old, new) == []
    new = configs.to_dict(configs.load(path, ["seed=1", "model.depth=2", "train.workers=0"]))
    changed = configs.changes_forbidden_on_continuation(old, new)
    assert [line.split()[0] for line in changed] == ["model.depth", "seed"]
