"""Sums per day survive the file, and a file of something else is one line."""

from pathlib import Path

import numpy as np
import pytest

from aqnet.errors import AqnetError
from aqnet.evaluation import daily_sums


def test_what_is_written_is_read(tmp_path: Path):
    sums = np.random.default_rng(0).random((2, 3, 2, 1, 2, 1))
    names = np.array(["aqnet", "persistence"]), np.array(["o3"]), np.array([12, 24])
    times = np.array([24, 30, 48])
    written = daily_sums.Daily(*names, np.array(["all"]), times, np.arange(1, 4), *sums)
    daily_sums.write(tmp_path / "days.npz", written)
    read = daily_sums.read(tmp_path / "days.npz")
    assert all(np.array_equal(a, b) for a, b in zip(written, read, strict=True))


def test_the_weather_to_come_is_kept_and_of_older_files_taken_from_metrics_json(tmp_path: Path):
    one = np.ones((1, 1, 1, 1, 1, 1))[0]
    names = np.array(["aqnet"]), np.array(["o3"]), np.array([12]), np.array(["all"])
    written = daily_sums.Daily(*names, np.array([24]), np.array([1]), one, one)
    path = tmp_path / "days.npz"
    for weather, given in (("persisted", "persisted"), ("", None)):
        daily_sums.write(path, written._replace(weather=np.array(weather)))
        assert daily_sums.read(path).given == given
    daily_sums.write(path, written)
    assert daily_sums.read(path).given == daily_sums.UNKNOWN
    for text, given in (('{"weather": "none"}', "none"), ('{"weather": null}', None)):
        (tmp_path / "metrics.json").write_text(text)
        assert daily_sums.read(path).given == given
    (tmp_path / "metrics.json").write_text('{"weather": ')
    with pytest.raises(AqnetError, match=r"or metrics\.json beside it"):
        daily_sums.read(path)


@pytest.mark.parametrize("content", [None, b"", b"no sums"])
def test_other_files_are_refused_by_name(tmp_path: Path, content: bytes | None):
    path = tmp_path / "days.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AqnetError, match=r"days\.npz: cannot read the sums per day"):
        daily_sums.read(path)
