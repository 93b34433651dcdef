"""Stations: what a file's lines count, interpolation to them, and scores against a plain loop."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from aqnet.batch import Forecast
from aqnet.data.sources.limits import in_our_unit
from aqnet.errors import AqnetError
from aqnet.evaluation import run
from aqnet.evaluation.baselines import SIMPLE
from aqnet.evaluation.report import stations_section, table
from aqnet.evaluation.report.pictures.maps import Chart
from aqnet.evaluation.stations import station_files, stations
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
    observed_at,
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
        f"A,30,100,{at[:8]}31T12:00,no2,9",  # of February
        f"A,30,100,{at[:8]}30T24:00,no2,9",
        f"B,50,102.9,{at}+08:00,no2,9",
    )
    found = stations.read(path, CONFIG, GRID, np.append(WANTED, FIRST + 4), in_our_unit)
    assert found.names == ("A", "B")
    assert found.places == {"A": (30.0, 100.0), "B": (50.0, 102.9)}
    assert found.left_out == {
        "at other times": 1,
        "duplicates": 1,
        "duplicates with another value": 1,
        "negative values": 1,
        "stations outside the domain": 2,
        "times that are no whole hour": 1,
        "times that cannot be read": 2,
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
        ("A,30,100,noon,pm25,1", r"no line counts.*1 times that cannot be read"),
        ("A,30,100,2018-02-27T12", r"line 2: fewer columns"),
        ("far,10,100,2018-02-27T12,pm25,1", r"no line counts.*1 stations outside the domain"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, line: str, said: str):
    with pytest.raises(AqnetError, match=said):
        stations.read(write(tmp_path / "s.csv", line), CONFIG, GRID, WANTED, in_our_unit)


def test_moving_stations_and_missing_columns_are_refused(tmp_path: Path):
    lines = [f"A,{lat},100,2018-02-27T12,pm25,1" for lat in (30, 31)]
    with pytest.raises(AqnetError, match=r"line 3: station A was at \(30.0, 100.0\)"):
        stations.read(write(tmp_path / "s.csv", *lines), CONFIG, GRID, WANTED, in_our_unit)
    path = write(tmp_path / "t.csv", header="id,lat,time,pollutant,reading\n")
    with pytest.raises(AqnetError, match="lacks the columns lon, value"):
        stations.read(path, CONFIG, GRID, WANTED, in_our_unit)
    with pytest.raises(AqnetError, match=r"none\.csv: cannot read"):
        stations.read(str(tmp_path / "none.csv"), CONFIG, GRID, WANTED, in_our_unit)


def counted(tmp_path: Path, header: str, *lines: str) -> stations.Observations:
    """What counts of a file, and of a line that always does."""
    path = write(tmp_path / "s.csv", *lines, header=header + "\n")
    sure = write(tmp_path / "sure.csv", f"sure,30,101,{time(FIRST + 12)},pm25,1")
    return stations.read(f"{path},{sure}", CONFIG, GRID, WANTED, in_our_unit)


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [("ug/m3", 80, 80), ("µg/m³", 80, 80), ("mg m-3", 0.08, 80), ("", 80, 80), ("ng/m3", 8e4, 80)],
)
def test_values_are_read_in_the_unit_of_their_column(tmp_path, unit, value, expected):
    for column in ("unit", "units", "UnitOfMeasurement"):
        line = f"A,30,100,{time(FIRST + 12)},pm25,{value},{unit}"
        found = counted(tmp_path, f"id,lat,lon,time,pollutant,value,{column}", line)
        assert found.values[FIRST + 12][0, 0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("unit", ["ppm", "ppb", "kg kg-1"])
def test_mixing_ratios_at_stations_are_refused_with_the_reason(tmp_path, unit):
    line = f"A,30,100,{time(FIRST + 12)},no2,0.04,{unit}"
    with pytest.raises(AqnetError, match=rf"s\.csv, line 2: no2 has units '{unit}'.*pressure"):
        counted(tmp_path, "id,lat,lon,time,pollutant,value,unit", line)


@pytest.mark.parametrize("day", ["2018-02-27", "20180227"])
def test_a_date_without_an_hour_is_never_midnight(tmp_path, day):
    found = counted(tmp_path, HEADER.strip(), f"A,30,100,{day},pm25,80")
    assert found.left_out["dates without an hour"] == 1
    assert found.names == ("A", "sure") and not (found.values[FIRST + 12] == 80).any()


@pytest.mark.parametrize(
    ("column", "text"),
    [("averaging_period", "24 h"), ("AggType", "day"), ("AveragingTime", "month")],
)
def test_values_of_more_than_an_hour_are_left_out(tmp_path, column, text):
    line = f"A,30,100,{time(FIRST + 12)},pm25,80,"
    found = counted(tmp_path, f"id,lat,lon,time,pollutant,value,{column}", line + text)
    assert found.left_out[f"averaged over {text!r}, not an hour"] == 1
    found = counted(tmp_path, f"id,lat,lon,time,pollutant,value,{column}", line + "hour")
    assert found.values[FIRST + 12][0, 0] == 80


@pytest.mark.parametrize("text", ["NA", "null", "-", "n/a", "NaN", ""])
def test_words_for_missing_values_are_counted(tmp_path, text):
    found = counted(tmp_path, HEADER.strip(), f"A,30,100,{time(FIRST + 12)},pm25,{text}")
    assert found.left_out["without a value"] == 1


def test_codes_and_values_that_cannot_be_are_counted(tmp_path):
    at = time(FIRST + 12)
    found = counted(
        tmp_path, HEADER.strip(), f"A,30,100,{at},pm25,-9999", f"A,30,100,{at},no2,99999"
    )
    assert found.left_out == {"negative values": 1, "no2 cannot be 99999": 1}


def test_the_last_hour_of_a_day_may_be_its_twenty_fourth(tmp_path):
    hour = int(WANTED[WANTED % 24 == 0][0])
    day = str(np.datetime64(hour - 1, "h"))[:10]
    for text in (f"{day}T24:00", f"{day} 24:00:00", f"{day}T24:00Z"):
        found = counted(tmp_path, HEADER.strip(), f"A,30,100,{text},pm25,80")
        assert found.values[hour][0, 0] == 80


def test_a_station_that_moves_by_metres_stays_and_is_told(tmp_path):
    lines = [f"A,{30 + 0.001 * n},100,{time(FIRST + 12 + n)},pm25,80" for n in range(3)]
    found = counted(tmp_path, HEADER.strip(), *lines)
    assert found.names == ("A", "sure")
    assert found.tolerated == {"a station moved by metres; its first place is taken": 2}


@pytest.mark.parametrize("text", ["PM2.5", "pm2p5", "PM₂.₅", "PM_2.5", "pm25"])
def test_pollutants_are_known_by_the_names_that_people_write(text):
    assert station_files.pollutant_of(text, ("pm25", "no2", "o3")) == "pm25"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NO₂", "no2"),
        ("Nitrogen dioxide", "no2"),
        ("ozone", "o3"),
        ("O3", "o3"),
        ("http://dd.eionet.europa.eu/vocabulary/aq/pollutant/7", "o3"),
        ("8", "no2"),
    ],
)
def test_other_pollutants_too(text, expected):
    assert station_files.pollutant_of(text, ("pm25", "no2", "o3")) == expected
    with pytest.raises(station_files.LeftOut, match="unknown pollutant"):
        station_files.pollutant_of(text, ("pm25",))


def test_openaqs_archive_is_read_by_its_own_columns(tmp_path):
    header = "location_id,sensors_id,location,datetime,lat,lon,parameter,units,value\n"
    at = str(np.datetime64(FIRST + 12 + 8, "h")) + ":00:00+08:00"
    path = tmp_path / "location-1-20180227.csv.gz"
    line = f"2178,3916,Somewhere-2178,{at},30,100,pm25,µg/m³,80\n"
    path.write_bytes(gzip.compress((header + line).encode()))
    found = stations.read(str(path), CONFIG, GRID, WANTED, in_our_unit)
    assert (found.names, found.values[FIRST + 12][0, 0]) == (("2178",), 80)


def test_openaqs_explorer_is_read_by_its_own_columns(tmp_path):
    header = (
        "location_id,location_name,parameter,value,unit,datetimeUtc,datetimeLocal,timezone,"
        "latitude,longitude"
    )
    at = str(np.datetime64(FIRST + 12, "h")) + ":00:00Z"
    line = f"2178,Here,no2,20,µg/m³,{at},2018-02-27T20:00:00+08:00,Asia/Shanghai,30,100"
    found = counted(tmp_path, header, line)
    assert found.values[FIRST + 12][1, 0] == 20


def test_eeas_files_take_places_from_a_second_file(tmp_path):
    begin, end = (str(np.datetime64(FIRST + 11 + n + 1, "h")).replace("T", " ") for n in (0, 1))
    header = "Samplingpoint,Pollutant,Start,End,Value,Unit,AggType,Validity\n"
    lines = [  # times are UTC+1
        f"AT/SPO-1,8,{begin}:00:00,{end}:00:00,20,ug.m-3,hour,1",
        f"AT/SPO-1,5,{begin}:00:00,{end}:00:00,20,ug.m-3,hour,1",
        f"AT/SPO-1,6001,{begin}:00:00,{end}:00:00,20,ug.m-3,hour,-1",
        f"AT/SPO-2,6001,{begin}:00:00,{end}:00:00,20,ug.m-3,hour,1",
    ]
    path = write(tmp_path / "data.csv", *lines, header=header)
    with pytest.raises(AqnetError, match=r"lacks the columns lat, lon.*DATA,PLACES"):
        stations.read(path, CONFIG, GRID, WANTED, in_our_unit)
    places = write(
        tmp_path / "places.csv",
        "AT\tSPO-1\t100\t30",
        header="Country\tSamplingPoint\tLongitude\tLatitude\n",
    )
    found = stations.read(f"{path},{places}", CONFIG, GRID, WANTED, in_our_unit)
    assert found.values[FIRST + 12][:, 0].tolist()[1] == 20
    assert found.left_out == {
        "unknown pollutant 5": 1,
        "marked as not valid (-1)": 1,
        "stations whose place is not known": 1,
    }
    old = "AirQualityStationEoICode,SamplingPoint,AirPollutant,AveragingTime,Concentration,"
    old += "UnitOfMeasurement,DatetimeBegin,DatetimeEnd,Validity\n"
    line = f"AT1,SPO-1,NO2,hour,20,µg/m3,{begin}:00:00 +01:00,{end}:00:00 +01:00,1"
    path = write(tmp_path / "old.csv", line, header=old)
    again = stations.read(f"{path},{places}", CONFIG, GRID, WANTED, in_our_unit)
    assert again.values[FIRST + 12][1, 0] == 20


def observed(hour: int) -> float:
    return float(np.random.default_rng(int(hour) + 3).gamma(3.0, 25.0))


def test_scores_agree_with_a_loop_over_hand_interpolated_forecasts(tmp_path: Path):
    # A lies a quarter of the way between two cells of the southern row; its northern corners have
    # the weight 0.1, one of them lies outside the domain
    lines = [f"A,32,100.25,{time(hour)},pm25,{observed(hour)}" for hour in WANTED]
    lines += [f"B,50,103,{time(hour)},pm25,50" for hour in WANTED[::2]]
    found = stations.read(write(tmp_path / "s.csv", *lines), CONFIG, GRID, WANTED, in_our_unit)
    others = (ExternalForecast(),)
    scorer = run.Scorer(
        CONFIG, GRID, STATISTICS, fitted(), observed_at, run.Besides({}, others, found)
    )
    for batch, forecast in batches():
        for item in scorer.score(batch, Forecast(forecast)):
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
    assert {row["forecast"] for row in rows} == {"aqnet", *SIMPLE, "cams"}
    section = stations_section.html(rows, None)
    best = find(rows, forecast=pooled["best_simple"], region="all", **ours)
    for line in (
        rf"values</td>(<td>\d+</td>)*<td>{pooled['n']}</td></tr>",
        rf"aqnet</td>(<td>[\d.]+</td>)*<td>{pooled['rmse']:.2f}</td></tr>",
        rf"best simple</td>(<td>[\d.]+</td>)*<td>{best['rmse']:.2f}</td></tr>",
    ):
        assert re.search(line, section), line
    assert "All 2 stations" in section and "no intervals" in section
    assert "PM<sub>2.5</sub>" in section and "NO<sub>2</sub>" not in section
    lead, figure = stations_section.skill_map(Chart(GRID), rows, found.places, LEADS)
    panel, _bar = figure.axes
    assert lead == 24 and panel.get_title().endswith("2 stations")
    (dots,) = [part for part in panel.collections if isinstance(part, PathCollection)]
    np.testing.assert_allclose(dots.get_offsets(), [[100.25, 32.0], [103.0, 50.0]])
    skills = [
        find(rows, forecast="aqnet", region=name, **ours)["skill_best_simple"] for name in "AB"
    ]
    np.testing.assert_allclose(dots.get_array(), skills)


def test_without_stations_there_is_no_section():
    assert stations_section.html([], None) == ""


def find(rows: list[dict], **wanted: object) -> dict:
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row
