"""What evaluate.py takes for files and what for settings."""

import pytest

from aqnet.data.weather import STORED
from aqnet.evaluation.options import check, command_line


@pytest.mark.parametrize(
    ("text", "override"),
    [
        ("data.units={temp: K}", True),
        ("run_dir=/elsewhere/x=1", True),
        ("seed=1", True),
        ("in/date=2026/*.nc", False),
        ("date=2026/*.nc", False),
        ("/data=1/*.nc", False),
        ("./data=1/*.nc", False),
        ("a.nc", False),
    ],
)
def test_what_follows_the_weather_is_an_override_where_it_begins_with_a_key_of_a_config(
    text: str, override: bool
):
    start = ["--checkpoint", "run", "--output", "out", "--weather", "first.nc", text]
    options = command_line().parse_args(start)
    check(options, STORED)
    assert (options.overrides == [text]) == override
    assert options.weather == (["first.nc"] if override else ["first.nc", text])
