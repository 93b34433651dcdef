"""report.html: one page that needs nothing else, with names escaped."""

import re
from pathlib import Path

import numpy as np

from aqnet.evaluation import metrics, report

SETTINGS: dict = {"data": {"stores": "<i>"}, "model": {"patch": 2}, "train": {}}


def row(forecast: str, pollutant: str, rmse: float) -> dict:
    values = metrics.scores(np.ones(len(metrics.SUMS)), 1.0)
    return {
        "forecast": forecast,
        "pollutant": pollutant,
        "lead_time_hours": 12,
        "region": "all",
        "subset": "all",
        "unit": "ug m-3",
        **values,
        "rmse": rmse,
        "skill_best_simple": -0.25,
        "skill_best_simple_low": -0.5,
        "skill_best_simple_high": 0.1,
    }


def test_page_marks_the_best_escapes_names_and_needs_no_network(tmp_path: Path):
    table = [row("aqnet", "<b>pm25", 5.0), row("persistence", "<b>pm25", 4.0)]
    facts = {"checkpoint": "a & b", "samples": 3, "notes": ["x < y"]}
    text = report.write(tmp_path, facts, table, SETTINGS).read_text()
    assert "<b>pm25" not in text and "&lt;b&gt;pm25" in text
    assert "a &amp; b" in text and "x &lt; y" in text
    assert "<td class=best>4.00</td>" in text and "<td>5.00</td>" in text
    assert "-0.250 (-0.500 to 0.100)" in text
    assert not re.search(r"(src|href)=|https?://", text)
