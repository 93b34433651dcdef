"""Lines of station files as people publish them: columns, pollutants, times and units by the names
that OpenAQ, EEA and others use."""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aqnet.errors import AqnetError
from aqnet.evaluation.forecasts.zarr_files import OffTheHour, hour_of

# the value of a target in its unit by its name, value, unit (None: not said) and place in the file;
# None where no such value can be
InOurUnit = Callable[[str, float, str | None, str], float | None]

# names of columns in lower case without blanks and underscores; the first that is there counts
_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "locationid", "samplingpoint", "samplingpointid", "stationid", "station", "site"),
    "lat": ("lat", "latitude"),
    "lon": ("lon", "lng", "longitude"),
    "time": (
        "time",
        "datetimeutc",
        "datetimeend",
        "end",
        "datetimeto",
        "datetime",
        "timestamp",
        "date",
    ),
    "begin": ("datetimebegin", "start", "datetimefrom"),
    "pollutant": ("pollutant", "parameter", "airpollutant", "species"),
    "value": ("value", "concentration"),
    "unit": ("unit", "units", "unitofmeasurement"),
    "averaged": ("averagingtime", "aggtype", "averagingperiod", "period"),
    "validity": ("validity",),
}
COLUMNS = ("id", "lat", "lon", "time", "pollutant", "value")
_POLLUTANTS: Mapping[str, tuple[str, ...]] = {
    "pm25": ("pm25", "pm2p5", "pm2,5", "fineparticulatematter", "6001"),
    "pm10": ("pm10", "5"),
    "so2": ("so2", "sulfurdioxide", "sulphurdioxide", "1"),
    "no2": ("no2", "nitrogendioxide", "8"),
    "co": ("co", "carbonmonoxide", "10"),
    "o3": ("o3", "ozone", "7"),
}  # the numbers are EEA's
_NAMED = {alias: name for name, aliases in _POLLUTANTS.items() for alias in aliases}
_MISSING = ("", "nan", "na", "n/a", "null", "none", "-", "--", "-999", "-999.0")
_HOURLY = ("", "hour", "hourly", "1h", "1hour", "60min", "pt1h", "01:00", "01:00:00", "var")
_EEA_ZONE = "+01:00"  # of hourly values, where the file names none
_DATE = re.compile(r"\d{4}-?\d{2}-?\d{2}")
_MIDNIGHT = re.compile(r"(\d{4}-\d{2}-\d{2})[T ]24(:?00)?(:?00)?(.*)")


class Line(NamedTuple):
    """One line of a file, its texts as they are; `where` names file and line."""

    where: str
    texts: Mapping[str, str]
    eea: bool

    def number(self, name: str) -> float:
        """
        Raises:
            AqnetError: the text is no number.
        """
        try:
            value = float(self.texts[name])
        except ValueError:
            value = np.nan
        if not np.isfinite(value):
            raise AqnetError(f"{self.where}: {name} is {self.texts[name]!r}, no number")
        return value


def lines(path: str) -> tuple[set[str], Iterator[Line]]:
    """Which of the columns a file has, and its lines.

    Raises:
        AqnetError: it cannot be read, or has no column of ids.
    """
    rows = _rows(path)
    try:
        _, header = next(rows)
    except StopIteration:
        raise AqnetError(f"{path}: is empty") from None
    written = {re.sub(r"[\s_]", "", name).lower(): at for at, name in enumerate(header)}
    places = {
        column: written[known]
        for column, aliases in _COLUMNS.items()
        for known in reversed(aliases)
        if known in written
    }
    eea = {"samplingpoint", "samplingpointid"} & set(written)

    def each() -> Iterator[Line]:
        for number, row in rows:
            where = f"{path}, line {number}"
            if len(row) < len(header):
                raise AqnetError(f"{where}: fewer columns than the header")
            texts = {column: row[at].strip() for column, at in places.items()}
            if eea:  # some downloads put the country before it
                texts["id"] = texts["id"].rpartition("/")[2]
            yield Line(where, texts, bool(eea))

    return set(places), each()


def _rows(path: str) -> Iterator[tuple[int, list[str]]]:
    opener = gzip.open if path.endswith(".gz") else Path.open
    try:
        with opener(Path(path), "rt", newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=first.count))
            for row in reader:
                if row:
                    yield reader.line_num, row
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise AqnetError(f"{path}: cannot read the stations: {error}") from None


def observation(line: Line, targets: tuple[str, ...], convert: InOurUnit) -> tuple[str, int, float]:
    """Target, hour since 1970 UTC and value of a line.

    Raises:
        LeftOut: the line does not count, and why.
        AqnetError: what is wrong with it.
    """
    pollutant = pollutant_of(line.texts["pollutant"], targets)
    if line.texts["value"].lower() in _MISSING:
        raise LeftOut("without a value")
    if (valid := line.texts.get("validity", "")) and line.eea and line.number("validity") <= 0:
        raise LeftOut(f"marked as not valid ({valid})")
    averaged = re.sub(r"\s", "", line.texts.get("averaged", "")).lower()
    if averaged not in _HOURLY:
        raise LeftOut(f"averaged over {line.texts['averaged']!r}, not an hour")
    hour = _hour(line, "time")
    if line.texts.get("begin") and hour - _hour(line, "begin") != 1:
        raise LeftOut("from begin to end no hour")
    value = convert(pollutant, line.number("value"), line.texts.get("unit"), line.where)
    if value is None:
        raise LeftOut(f"{pollutant} cannot be {line.texts['value']}")
    if value < 0:
        raise LeftOut("negative values")
    return pollutant, hour, value


class LeftOut(Exception):
    """Why a line does not count."""


def pollutant_of(text: str, targets: tuple[str, ...]) -> str:
    """The target that a file calls `text`, such as `PM2.5`, `NO\N{SUBSCRIPT TWO}` or `ozone`.

    Raises:
        LeftOut: it is none.
    """
    if text in targets:
        return text
    plain = text.rpartition("/")[2].translate(str.maketrans("₀₁₂₃₅.", "01235 ")).lower()
    plain = _NAMED.get(re.sub(r"[\s_()-]", "", plain), "")
    if plain not in targets:
        raise LeftOut(f"unknown pollutant {text}")
    return plain


def _hour(line: Line, column: str) -> int:
    text = line.texts[column]
    if _DATE.fullmatch(text):
        raise LeftOut("dates without an hour")
    text = re.sub(r"\s+(?=[+-]\d\d:?\d\d$)", "", text)  # EEA: 2019-01-01 00:00:00 +01:00
    try:
        if match := _MIDNIGHT.fullmatch(text):
            text = f"{date.fromisoformat(match[1]) + timedelta(days=1)}T00:00{match[4]}"
        if line.eea and not re.search(r"(Z|[+-]\d\d:?\d\d)$", text[10:]):
            text += _EEA_ZONE
        return hour_of(text)
    except OffTheHour:
        raise LeftOut("times that are no whole hour") from None
    except (AqnetError, ValueError, OverflowError):
        raise LeftOut("times that cannot be read") from None
