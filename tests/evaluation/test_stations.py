"""Stations: what a file's lines count, interpolation to them, and scores against a plain loop."""

from pathlib import Path

import numpy as np
import pytest

from aqnet.errors import AqnetError
from aqnet.evaluation import run, stations
from aqnet.evaluation.report import table
from tests.evaluation.test_scorer import (
    CONFIG,
    FIRST,
    GRID,
    HOURS,
    LEADS,
    STATISTICS,
    UNITS,
    ExternalForecast,
    batches,
    fitted,
    model_at,
    truth_at,
)

WANTED = np.unique([hour + lead for hour in HOURS for lead in LEADS])
HEADER = "id,lat,lon,time,pollutant,value\n"


def time(hour: int) -> str:
    return str(np.datetime64(int(hour), "h"))


def write(path: Path, *lines: str, header: str = HEADER) -> str:
    path.write_text(header + "".join(line + "\n" for line in lines))
    return str(path)


def test_every_line_counts_or_is_reported(tmp_path: Path):
    at = time(FIRST + 12)
    path = write(
        tmp_path / "stations.csv",
        f"A,30,100,{at},pm25,80",
        f"A,30,100,{at},pm25,80.0",
        f"A,30,100,{at},pm25,81",
        f"A,30,100,{at}:00Z,no2,20",
        f"A,30,100,{at},dust,5",
        f"A,30,100,{at},no2,-999",
        f"A,30,100,{time(FIRST + 18)},no2,-3",
        f"A,30,100,{at}:30,no2,3",
        f"A,30,100,{time(FIRST - 999)},no2,3",
        f"far,10,100,{at},no2,3",
        f'"masked, but near",30.4,102,{at},no2,3',
        f"B,50,102.9,{at}+08:00,no2,9",
    )
    found = stations.read(path, CONFIG, GRID, np.append(WANTED, FIRST + 4))
    assert found.names == ("A", "B")
    assert found.left_out == {
        "at other times": 1,
        "duplicates": 1,
        "duplicates with another value": 1,
        "negative values": 1,
        "stations outside the domain": 2,
        "times that are no whole hour": 1,
        "unknown pollutant dust": 1,
        "without a value": 1,
    }
    assert found.values[FIRST + 12][:, 0].tolist() == [80, 20]
    assert found.values[FIRST + 4][1, 1] == 9  # local time


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("A,30,100,2018-02-27T12,pm25,high", r"line 2: value is 'high'"),
        ("A,north,100,2018-02-27T12,pm25,1", r"line 2: lat is 'north'"),
        ("A,30,100,noon,pm25,1", r"line 2: 'noon' is no time"),
        ("A,30,100,2018-02-27T12", r"line 2: fewer columns"),
        ("far,10,100,2018-02-27T12,pm25,1", r"no line counts.*1 stations outside the domain"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, line: str, said: str):
    with pytest.raises(AqnetError, match=said):
        stations.read(write(tmp_path / "s.csv", line), CONFIG, GRID, WANTED)


def test_moving_stations_and_missing_columns_are_refused(tmp_path: Path):
    lines = [f"A,{lat},100,2018-02-27T12,pm25,1" for lat in (30, 31)]
    with pytest.raises(AqnetError, match=r"line 3: station A was at \(30.0, 100.0\)"):
        stations.read(write(tmp_path / "s.csv", *lines), CONFIG, GRID, WANTED)
    path = write(tmp_path / "t.csv", header="id,lat,time,pollutant,concentration\n")
    with pytest.raises(AqnetError, match="lacks the columns lon, value"):
        stations.read(path, CONFIG, GRID, WANTED)
    with pytest.raises(AqnetError, match=r"none\.csv: cannot read"):
        stations.read(str(tmp_path / "none.csv"), CONFIG, GRID, WANTED)


def observed(hour: int) -> float:
    return float(np.random.default_rng(int(hour) + 3).gamma(3.0, 25.0))


def test_scores_agree_with_a_loop_over_hand_interpolated_forecasts(tmp_path: Path):
    # A lies a quarter of the way between two cells of the southern row; its northern corners have
    # the weight 0.1, one of them lies outside the domain
    lines = [f"A,32,100.25,{time(hour)},pm25,{observed(hour)}" for hour in WANTED]
    lines += [f"B,50,103,{time(hour)},pm25,50" for hour in WANTED[::2]]
    found = stations.read(write(tmp_path / "s.csv", *lines), CONFIG, GRID, WANTED)
    others = (ExternalForecast(),)
    scorer = run.Scorer(
        CONFIG, GRID, STATISTICS, fitted(), truth_at, run.Besides({}, others, found)
    )
    for batch, forecast in batches():
        for item in scorer.score(batch, forecast):
            scorer.add(item)
    assert scorer.stations is not None
    rows = table.rows(scorer.stations, UNITS)
    weights = np.array([[0.75 * 0.9, 0.25 * 0.9], [0.75 * 0.1, 0.0]])
    weights /= weights.sum()

    def interpolated(values: np.ndarray) -> float:
        part = values[:2, :2]
        known = np.isfinite(part)
        total = weights[known].sum()
        return float((weights[known] * part[known]).sum() / total) if total >= 0.5 else np.nan

    errors = []
    for hour in HOURS:
        present = interpolated(truth_at(hour)[0])
        if np.isfinite(present):
            errors.append(interpolated(model_at(hour)[1, 0]) - observed(hour + 24))
    ours = {"pollutant": "pm25", "lead_time_hours": 24, "subset": "all"}
    row = find(rows, forecast="aqnet", region="A", **ours)
    expected = np.sqrt(np.mean(np.square(errors)))
    assert (row["n"], row["rmse"]) == pytest.approx((len(errors), expected), rel=1e-5)
    pooled = find(rows, forecast="aqnet", region="all", **ours)
    single = [find(rows, forecast="aqnet", region=name, **ours) for name in "AB"]
    assert pooled["n"] == sum(row["n"] for row in single)
    total = sum(row["n"] * row["rmse"] ** 2 for row in single) / pooled["n"]
    assert pooled["rmse"] == pytest.approx(np.sqrt(total))
    assert {row["pollutant"] for row in rows} == {"pm25"}  # nobody observes NO2
    assert {row["forecast"] for row in rows} == {*run.FORECASTS, "cams"}


def find(rows: list[dict], **wanted: object) -> dict:
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row
