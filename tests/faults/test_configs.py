"""A config edited at random gives a start and a plan, or one clear line."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aqnet.config import reading
from aqnet.errors import AqnetError
from tests.faults import configs

NUMBER = int(os.environ.get("AQNET_FAULTS_CONFIGS", "40"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@settings(
    max_examples=NUMBER,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_an_edited_config_starts_or_is_refused_in_one_line(
    tiny: dict[str, Any], tmp_path: Path, data: st.DataObject
):
    configs.check(data.draw(configs.edits(tiny)), tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "a: !!int x",
        "a: !!python/object/apply:os.system ['touch executed']",
        "a: &x [1, 1]\nb: &y [*x, *x]\nc: [*y, *y]",
        "a: " + "[" * 5000,
        "a: " + "9" * 5000,
        "a: 0x" + "f" * 400,
        "a: \x00",
        'a: "\\udddd"',
        'a: "\\0"',
        "- " * 2000,
    ],
    ids=range(10),
)
def test_yaml_that_no_config_needs_is_refused_at_once(text: str):
    start = time.monotonic()
    with pytest.raises(AqnetError, match=r"^here: not valid YAML") as error:
        reading.parse(text, "here")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("key", ["model.decoder_depth", "model.depth", "train.workers"])
def test_a_size_that_would_take_the_machine_is_refused(
    tiny: dict[str, Any], tmp_path: Path, key: str
):
    section, _, name = key.partition(".")
    tree = {**tiny, section: {**tiny[section], name: 10**17}}
    import yaml

    assert configs.check(yaml.safe_dump(tree), tmp_path) == "refused"
