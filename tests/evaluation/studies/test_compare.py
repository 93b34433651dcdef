"""Paired comparison: Diebold-Mariano against a hand-written formula, its size, what is refused."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from aqnet.errors import AqnetError
from aqnet.evaluation import daily_sums
from aqnet.evaluation.studies import compare

DAYS = 200


def made(gap: float, seed: int = 0, **other: object) -> daily_sums.Daily:
    """A run whose squared errors are those of `seed` plus noise of its own plus `gap`."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(5, 25, DAYS).astype(float)
    weights[17] = 0.0
    noise = np.random.default_rng(int(gap * 1000) + 77).normal(0, 0.3, DAYS)
    losses = weights * (50 + 10 * np.sin(np.arange(DAYS) / 9) + noise + gap)
    shape = (DAYS, 2, 1, 1, 1)
    errors = np.zeros(shape)
    errors[:, 1, 0, 0, 0] = losses
    values = {
        "forecasts": np.array(["persistence", "aqnet"]),
        "targets": np.array(["pm25"]),
        "lead_times": np.array([12]),
        "regions": np.array(["all"]),
        "times": 420_000 + 24 * np.arange(DAYS),
        "days": 17_500 + np.arange(DAYS),
        "errors": errors,
        "weights": np.broadcast_to(weights[:, None, None, None, None], shape),
        **other,
    }
    return daily_sums.Daily(**values)


def written(folder: Path, run: daily_sums.Daily) -> Path:
    folder.mkdir(parents=True)
    daily_sums.write(folder / "days.npz", run)
    return folder


def test_diebold_mariano_agrees_with_the_formula_written_by_hand():
    rng = np.random.default_rng(1)
    losses = 0.4 + np.convolve(rng.normal(size=DAYS + 4), np.ones(5) / 5, mode="valid")
    mean = sum(losses) / DAYS
    variance = 0.0
    for t in range(DAYS):
        for s in range(DAYS):
            if abs(t - s) <= 10:
                variance += (1 - abs(t - s) / 11) * (losses[t] - mean) * (losses[s] - mean)
    by_hand = mean / np.sqrt(variance / DAYS**2)
    assert compare.diebold_mariano(losses, np.ones(DAYS)) == pytest.approx(by_hand, rel=1e-12)
    found = compare.difference(losses + 1.0, np.ones(DAYS), np.ones(DAYS))
    share = 11 / DAYS
    stretched = 1.96 / (1.96 + 2.9694 * share + 0.416 * share**2 - 0.5324 * share**3)
    assert found["p_value"] == pytest.approx(2 * stats.norm.sf(stretched * abs(by_hand)), rel=1e-9)


def test_unequal_days_count_by_their_pairs():
    rng = np.random.default_rng(2)
    weights = rng.integers(0, 20, DAYS).astype(float)
    losses = weights * rng.normal(0.2, 1.0, DAYS)
    mean = losses.sum() / weights.sum()
    parts = losses - mean * weights
    variance = sum(
        max(0.0, 1 - abs(t - s) / 11) * parts[t] * parts[s]
        for t in range(DAYS)
        for s in range(DAYS)
    )
    expected = mean / (np.sqrt(variance) / weights.sum())
    assert compare.diebold_mariano(losses, weights) == pytest.approx(expected, rel=1e-10)


def test_four_blocks_of_days_are_too_few_also_where_a_gap_lies_between():
    losses, weights = np.random.default_rng(4).normal(1.0, 0.1, DAYS), np.ones(DAYS)
    losses[20:180] = weights[20:180] = 0.0
    assert compare.diebold_mariano(losses, weights) is None


@pytest.mark.parametrize(("days", "alike"), [(50, 1), (50, 2), (200, 1), (365, 4)])
def test_equal_forecasts_are_called_different_as_seldom_as_the_level_says(days: int, alike: int):
    """With daily errors that are means of so many days' noise. Without the correction for the
    autocorrelation 365 days would be in 30 %, without that for its estimation 50 days in 14 %."""
    rng = np.random.default_rng(3)
    called = 0
    for _ in range(400):
        noise = np.convolve(rng.normal(size=days + alike - 1), np.ones(alike), mode="valid")
        statistic = compare.diebold_mariano(noise, np.ones(days))
        assert statistic is not None
        called += compare.significance(statistic, days) < compare.LEVEL
    assert 0.02 < called / 400 < 0.09


def test_a_better_run_is_found_and_equal_ones_are_not(tmp_path: Path):
    first = written(tmp_path / "a/evaluation", made(0.0)).parent  # a run directory
    second = written(tmp_path / "b", made(1.0))
    (row,) = compare.compare(first, second)
    assert row["better"] == "A" and row["p_value"] < 1e-6
    assert row["mse_difference"] == pytest.approx(-1.0, abs=0.1)
    assert row["mse_difference_low"] < row["mse_difference"] < row["mse_difference_high"] < 0
    (same,) = compare.compare(first, first)
    assert (same["better"], same["mse_difference"], same["p_value"]) == ("", 0.0, None)
    assert "A is better in 1, B in 0 of 1" in compare.text([row])


def test_runs_over_other_times_or_pairs_are_refused(tmp_path: Path):
    first = written(tmp_path / "a", made(0.0))
    other = written(tmp_path / "b", made(0.0, times=np.arange(7)))
    with pytest.raises(AqnetError, match=r"at 200 input times and .* at 7, 0 of them the same"):
        compare.compare(first, other)
    pairs = written(tmp_path / "c", made(0.0, weights=made(0.0).weights + 1.0))
    with pytest.raises(AqnetError, match="pm25 at 12 h was scored over other cells"):
        compare.compare(first, pairs)
    errors = made(0.0).errors.copy()
    errors[:, 0] = made(0.0).weights[:, 0] * 40.0
    other = errors.copy()
    other[:, 0] *= 1.01
    runs = [
        written(tmp_path / name, made(0.0, errors=values))
        for name, values in (("e", errors), ("f", other))
    ]
    with pytest.raises(AqnetError, match="pm25 at 12 h was scored against another truth"):
        compare.compare(*runs)
    names = written(tmp_path / "d", made(0.0, targets=np.array(["o3"])))
    with pytest.raises(AqnetError, match="no pollutant and lead time in common"):
        compare.compare(first, names)
    with pytest.raises(AqnetError, match=r"days\.npz: cannot read"):
        compare.compare(first, tmp_path / "never")


def test_weather_that_a_scored_run_does_not_name_is_called_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    older = written(tmp_path / "a", made(0.0))
    newer = written(tmp_path / "b", made(0.5, weather=np.array("analysed")))
    compare.run(older, newer, tmp_path / "out")
    said = capsys.readouterr().out
    assert f"A: {older} (weather to come not known)" in said
    assert "whether A and B were given the same weather to come is not known" in said
    assert ",not known,analysed" in (tmp_path / "out/compare.csv").read_text()
