"""Strictness of the configuration: every mistake is one line that names the key."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from aqnet import config as configs
from aqnet.errors import AqnetError

SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


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
        ("model.quantiles=[0.5, 0.25]", ["model.quantiles [0.5, 0.25]", "larger than the one"]),
        ("model.quantiles=[0.5, 0.5]", ["model.quantiles [0.5, 0.5]", "larger than the one"]),
        ("model.quantiles=[0.0, 0.5]", ["model.quantiles [0.0, 0.5]", "between 0 and 1"]),
        ("model.quantiles=[0.5, 1.0]", ["model.quantiles [0.5, 1.0]", "between 0 and 1"]),
        ("model.quantiles=[0.5, .nan]", ["model.quantiles [0.5, nan]", "between 0 and 1"]),
        ("model.quantiles=[0.5]", ["model.quantiles [0.5]", "at least two"]),
        ("data.lead_times=12", ["data.lead_times", "list"]),
        ("data.lead_times=[12, 12]", ["data.lead_times", "twice"]),
        ("data.lead_times=[-12]", ["data.lead_times", "positive"]),
        ("data.history_hours=[-24]", ["data.history_hours"]),
        ("data.split.train=[Spring]", ["data.split.train", "Spring"]),
        ("data.split.train=[2013-13]", ["data.split.train", "2013-13", "is no year"]),
        ("data.split.test=[2014/2013]", ["data.split.test", "2014/2013", "ends before"]),
        ("data.split.train=[]", ["data.split.train", "empty"]),
        ("data.units.c0=mg m-3", ["data.units.c0", "data.variables"]),
        ("data.static_files.lat2d=x", ["data.static_files.lat2d", "elevation"]),
        ("plan.grid=[0, 256]", ["plan.grid", "positive"]),
        ("report.places={Beijing: [116.4, 39.9]}", ["report.places.Beijing", "latitude and long"]),
        ("report.places={Beijing: [39.9]}", ["report.places.Beijing", "expected 2 values"]),
        ("model.regions=[4, -1]", ["model.regions", "positive", "-1"]),
        ("validation.micro_batch=0", ["validation.micro_batch", "positive"]),
        ("validation.max_items=-3", ["validation.max_items", "positive"]),
        ("train.workers=-1", ["train.workers", "negative"]),
        ("train.learning_rate=.nan", ["train.learning_rate", "positive"]),
        ("train.learning_rate=.inf", ["train.learning_rate must be finite"]),
        ("train.ema_decay=1.0", ["train.ema_decay", "below 1"]),
        ("train.target_weights.pm25=-1", ["train.target_weights.pm25", "negative"]),
        ("seed=-1", ["seed", "negative"]),
        ("data.targets=[so2]", ["model.predict", "so2"]),
        ("data.targets=[elevation]", ["data.targets", "elevation"]),
        ("data.variables=[pm25, elevation]", ["model.scan", "raster"]),
        ("data.variables=[u, v, pm25]", ["terrain", "elevation"]),
        ("model.transport=no", ["model.transport", "off"]),
        ("data.shape=3x4", ["data.shape", "data.resample"]),
        ("data.weather=[u]", ["data.weather", "data.weather_hours", "both"]),
        ("data.weather_hours=[12]", ["data.weather", "data.weather_hours", "both"]),
        ("data.recent_days=[0]", ["data.recent_days", "positive"]),
        ("data.recent_days=[7, 7]", ["data.recent_days", "twice"]),
        ("data.variables=[u, v, pm25@-24h, pm25, elevation]", ["pm25@-24h", "no @"]),
        ("model.num_heads=7", ["model.embed_dim", "model.num_heads"]),
        ("model.terrain.blocks=[6]", ["model.terrain.blocks", "6"]),
        ("model.drop_path=1.0", ["model.drop_path"]),
        ("train.max_steps=null", ["run length"]),
        ("train.target_weights.so2=1", ["train.target_weights.so2"]),
        ("train.init_from=somewhere", ["train.init_statistics"]),
        ("data.variables=[]", ["data.variables", "empty"]),
        ("data.variables={u: v}", ["data.variables", "list"]),
        ("data.history_hours=[0, 24]", ["data.history_hours", "negative"]),
        ("data.split.test=[2015-1]", ["data.split.test", "2015-1"]),
        ("data.split.tst=[2015]", ["unknown key 'data.split.tst'", "'data.split.test'"]),
        ("data.targets=[pm25@-24h]", ["data.targets", "pm25@-24h"]),
        ("data.static_files.slope=x", ["data.static_files.slope", "elevation"]),
        ("data.resample=area", ["data.shape", "data.resample"]),
        ("data.units.pm25=1", ["data.units.pm25", "text"]),
        ("data.sources=[{path: x, nams: {}}]", ["data.sources[0].nams", "data.sources[0].names"]),
        ("model=3", ["model is 3", "section"]),
        ("model.patch=0", ["model.patch", "positive"]),
        ("model.regions=4x4x4", ["model.regions", "2 values"]),
        ("model.mlp_ratio=wide", ["model.mlp_ratio", "a number"]),
        ("model.terrain.enabled=on", ["model.terrain.enabled", "true or false"]),
        ("model.scan_embedding=null", ["model.scan_embedding", "true or false"]),
        ("model.zzzzzzzz=1", ["unknown key 'model.zzzzzzzz'", "model.patch"]),
        ("train.precision=fp16", ["train.precision", "bf16"]),
        ("train.keep_best=0", ["train.keep_best", "positive"]),
        ("train.warmup_steps=-1", ["train.warmup_steps", "negative"]),
        ("train.init_statistics=data", ["train.init_statistics"]),
        ("train.lead_time_weights.13=1", ["train.lead_time_weights.13"]),
        ("validation.every=0", ["validation.every", "positive"]),
        ("seed=null", ["seed", "whole number"]),
        ("seed=1.0", ["seed", "whole number"]),
        ("run_dir=7", ["run_dir", "text"]),
        ("=1", ["key=value"]),
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


def test_transport_needs_wind_and_the_targets_among_the_inputs(path: Path):
    without = ["data.variables=[pm25, elevation]", "model.scan=raster"]
    with pytest.raises(AqnetError, match=r"model\.transport is wind.*set model\.transport: off"):
        configs.load(path, without)
    assert configs.load(path, [*without, "model.transport=off"]).model.transport == "off"
    others = ["data.targets=[so2]", "model.predict=value", "model.transport=fields"]
    with pytest.raises(AqnetError, match=r"model\.transport is fields.*'so2'"):
        configs.load(path, others)


def test_a_checkpoint_older_than_transport_has_none(path: Path):
    tree = configs.to_dict(configs.load(path))
    del tree["model"]["transport"]
    config, _ = configs.from_checkpoint(tree, "state.json")
    assert config.model.transport == "off"
    new = configs.to_dict(configs.load(path, ["model.transport=off"]))
    assert configs.changes_forbidden_on_continuation(tree, new) == []
    changes = configs.changes_forbidden_on_continuation(tree, configs.to_dict(configs.load(path)))
    assert changes == ["model.transport ('off' -> 'wind')"]


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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("+.inf", float("inf")),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 17),
        ("-3", -3),
        ("no", "no"),
        ("Off", "Off"),
        ("y", "y"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("2013-01-01", "2013-01-01"),
        ("=", "="),
        ("<<", "<<"),
        ("TRUE", True),
        ("~", None),
        ("'1e-4'", "1e-4"),
        ('"true"', "true"),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(path: Path, text: str, value: Any):
    with pytest.raises(AqnetError) as error:
        configs.load(path, [f"model=[{text}]"])
    assert f"model is [{value!r}]" in str(error.value)


def test_texts_that_look_like_other_scalars_survive_writing(path: Path, tmp_path: Path):
    texts = ("no", "off", "12:30", "1e-4", "null", "~", "true", "010", "0x1F", "2013", "", "a: #b")
    changed = tree()
    names = {name or "empty": name for name in texts}
    changed["data"]["sources"] = [{"path": "x", "names": names}]
    config = configs.from_dict(changed, "here")
    (tmp_path / "resolved.yaml").write_text(configs.to_yaml(config))
    assert configs.load(tmp_path / "resolved.yaml") == config


@pytest.mark.parametrize("text", ["seed: 1\nseed: 1\n", "train:\n  workers: 1\n  workers: 2\n"])
def test_a_key_that_stands_twice_is_named_with_its_line(path: Path, text: str):
    path.write_text(text)
    with pytest.raises(AqnetError, match=r"config\.yaml.*'(seed|workers)' stands twice.*line"):
        configs.load(path)


def test_an_override_makes_the_sections_it_needs_and_later_ones_win(path: Path):
    overrides = ["validation.every=7", "model.terrain.enabled=false", "model.regions=4x8"]
    config = configs.load(path, [*overrides, "train.max_steps=11", "train.max_steps=12"])
    assert config.validation.every == 7
    assert config.model.terrain == configs.Terrain(enabled=False)
    assert config.model.regions == (4, 8)
    assert config.train.max_steps == 12
    assert config.data.split.train == ("2013",)


def test_history_adds_variables_after_the_plain_ones(path: Path):
    config = configs.load(path, ["data.history_hours=[0, -24]"])
    earlier = ("u@-24h", "v@-24h", "pm25@-24h", "no@-24h")
    assert config.input_variables == ("u", "v", "pm25", "no", "elevation", *earlier)


def test_weather_to_come_and_recent_days_follow_the_earlier_hours(path: Path):
    more = ["data.history_hours=[0, -24]", "data.weather=[v, blh]", "data.weather_hours=[6, 12]"]
    config = configs.load(path, [*more, "data.recent_days=[1, 30]"])
    assert config.input_variables[5:] == (
        *("u@-24h", "v@-24h", "pm25@-24h", "no@-24h"),
        *("v@+6h", "blh@+6h", "v@+12h", "blh@+12h", "pm25@mean1d", "pm25@mean30d"),
    )
    assert config.data.stored_weather == ("u", "v", "no", "blh")
    assert config.data.stored == ("u", "v", "no", "blh", "pm25")
    for channel in config.input_channels:
        assert configs.channel(channel.name) == channel
    kinds = [channel for channel in config.input_channels if channel.to_come]
    assert [channel.hours for channel in kinds] == [6, 6, 12, 12]
    with pytest.raises(ValueError, match="is no channel"):
        configs.channel("pm25@12")


@pytest.mark.parametrize(
    ("weather", "words"),
    [
        ("data.weather=[pm25]", "'pm25' is a target; read after the input time it is the truth"),
        ("data.weather=[elevation]", "'elevation' does not change"),
        ("data.weather_hours=[12, 100]", "100 is beyond the longest of data.lead_times, 96"),
        ("data.weather_hours=[0, 12]", "must be positive, found 0"),
    ],
)
def test_weather_that_cannot_be_is_refused(path: Path, weather: str, words: str):
    with pytest.raises(AqnetError, match=words):
        configs.load(path, ["data.weather=[u]", "data.weather_hours=[12]", weather])


def test_recent_days_need_the_value_they_are_relative_to(path: Path):
    with pytest.raises(AqnetError, match=r"data\.recent_days: the mean of 'co' .*data\.variables"):
        configs.load(
            path, ["data.targets=[pm25, co]", "model.predict=value", "data.recent_days=[7]"]
        )


def test_accumulation_divides_or_names_the_nearest(path: Path):
    config = configs.load(path, ["train.effective_batch=96", "train.micro_batch=4"])
    assert [configs.accumulation(config, world_size) for world_size in (1, 2, 3)] == [6, 3, 2]
    with pytest.raises(AqnetError, match=r"64 or 128"):
        configs.accumulation(config, 4)
    with pytest.raises(AqnetError, match=r"train\.micro_batch one of \[1, 2, 3, 6\]"):
        configs.accumulation(config, 4)
    with pytest.raises(AqnetError, match=r"effective_batch to 1600$"):  # 96 is below one item each
        configs.accumulation(config, 100)


def test_continuation_allows_run_length_and_paths_only(path: Path):
    old = configs.to_dict(configs.load(path))
    allowed = ["train.max_steps=20", "run_dir=x", "data.stores=y", "train.micro_batch=2"]
    allowed.append("report.places={Rio: [-22.9, -43.2]}")
    new = configs.to_dict(configs.load(path, allowed))
    assert configs.changes_forbidden_on_continuation(old, new) == []
    new = configs.to_dict(configs.load(path, ["seed=1", "model.depth=2", "train.workers=0"]))
    changed = configs.changes_forbidden_on_continuation(old, new)
    assert [line.split()[0] for line in changed] == ["model.depth", "seed"]


@pytest.mark.parametrize(
    "change",
    [
        "data.lead_times=[12]",
        "data.split.train=[2012]",
        "model.terrain.enabled=false",
        "train.learning_rate=1e-3",
        "train.effective_batch=32",
        "train.target_weights.pm25=2",
        "train.precision=bf16",
        "validation.max_items=3",
    ],
)
def test_continuation_names_each_change_with_both_values(path: Path, change: str):
    old, new = (configs.to_dict(configs.load(path, extra)) for extra in ([], [change]))
    lines = configs.changes_forbidden_on_continuation(old, new)
    assert lines and all(" -> " in line for line in lines)
    assert any(line.startswith(change.partition("=")[0]) for line in lines)


def test_a_config_kept_as_json_compares_equal_on_continuation(path: Path):
    old = configs.to_dict(configs.load(path, ["model.regions=2x2"]))
    assert configs.changes_forbidden_on_continuation(json.loads(json.dumps(old)), old) == []
