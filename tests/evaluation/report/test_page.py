"""report.html: one page that needs nothing else, with names escaped."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aqnet.evaluation import metrics
from aqnet.evaluation.report import page as report
from aqnet.evaluation.report import summary

FACTS: dict = {
    **{"checkpoint": "a & b", "global_step": 600, "split": "test", "periods": ["2018"]},
    **{"samples": 3, "notes": ["x < y"], "weather": None},
}
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
        "skill_best_simple": -0.21,
        "skill_best_simple_low": -0.5,
        "skill_best_simple_high": 0.1,
    }


def test_page_marks_the_best_escapes_names_and_needs_no_network(tmp_path: Path):
    table = [row("aqnet", "<b>pm25", 5.0), row("persistence", "<b>pm25", 4.0)]
    text = report.write(tmp_path, FACTS, table, SETTINGS).read_text()
    assert "<b>pm25" not in text and "&lt;b&gt;pm25" in text
    assert "a &amp; b" in text and "x &lt; y" in text
    assert "<td class=best>4.00</td>" in text and "<td>5.00</td>" in text
    assert "-0.210<small>-0.500 to<br>0.100</small>" in text
    assert not re.search(r"(src|href)=|https?://", text)


def test_head_says_model_data_period_and_weather_and_names_are_written_as_people_do(tmp_path: Path):
    settings = {**SETTINGS, "data": {"stores": "stores", "sources": [{"path": "cams_*.nc"}]}}
    table = [row("aqnet", name, 5.0) for name in ("pm25", "o3")]
    facts = {**FACTS, "max_samples": 3, "seed": 7, "weather": "persisted"}
    text = report.write(tmp_path, facts, table, settings).read_text()
    held = "(given the input time&#x27;s weather, held)"
    assert f"<title>Forecasts of PM2.5, O3 in 2018, scored {held}</title>" in text
    assert f"<h1>Forecasts of PM<sub>2.5</sub>, O<sub>3</sub> in 2018, scored {held}</h1>" in text
    for key, value in {
        "Model": "a &amp; b, after 600 optimizer steps",
        "Data": "stores, prepared from cams_*.nc",
        "Period": "2018, split test; 3 input times, drawn (--max-samples 3, seed 7)",
        "Weather": "given the input time&#x27;s weather, held",
    }.items():
        assert f"<dt>{key}</dt><dd>{value}</dd>" in text
    assert f"<h3>PM<sub>2.5</sub> [µg m⁻³] {held}</h3>" in text and "pm25" not in text


def test_summary_says_what_is_better_open_and_worse():
    skills = {12: (0.36, 0.3, 0.4), 24: (0.19, -0.1, 0.3), 48: (-0.44, -0.6, -0.2)}
    rows = []
    for lead, (skill, low, high) in skills.items():
        values = {"lead_time_hours": lead, "skill_best_simple": skill}
        limits = {"skill_best_simple_low": low, "skill_best_simple_high": high}
        rows.append({**row("aqnet", "so2", 5.0), **values, **limits})
    text = summary.html([*rows, row("persistence", "so2", 4.0)])
    # the RMSE is 0.8, 0.9 and 1.2 times that of the best simple forecast: 0.952 in the mean
    assert "<b>5 % lower</b>" in text
    assert "(\N{MINUS SIGN}20\N{NO-BREAK SPACE}% at 12 h, " in text
    better, open_, worse = re.findall("<li>(.*?)</li>", text)
    assert better.startswith("<b>Better</b> in 1 of 3") and ": SO<sub>2</sub> at 12 h." in better
    assert "No difference shown</b> in 1 of 3" in open_ and "at 24 h" in open_
    assert "Worse</b> in 1 of 3" in worse and "at 48 h" in worse
    cells = re.findall('<td class="(.*?)">(.*?)</td>', text.replace("\N{NO-BREAK SPACE}", " "))
    assert cells == [
        *(("better", "\N{MINUS SIGN}20 %"), ("open", "(\N{MINUS SIGN}10 %)")),
        ("worse", "+20 %"),
    ]
    assert "no intervals" not in text
    none = {"skill_best_simple_low": None, "skill_best_simple_high": None}
    text = summary.html([{**rows[0], **none}])
    assert "No difference shown</b> in 1 of 1" in text and "There are no intervals" in text
    assert summary.html([{**rows[0], "skill_best_simple": None}]) == ""


def browse(page: Path, *options: str) -> str:
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    result = subprocess.run(
        [*command, *options, page.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_page_fits_a_phone_and_a_desk_and_prints(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 255, (800, 1100, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "map.png")
    picture = report.Picture(tmp_path / "map.png", "A <map>", "What it shows & how")
    names = (
        "aqnet",
        "persistence",
        "climatology",
        "damped_persistence",
        "damped_anomaly",
        "transport",
        "x" * 40,
    )
    table = [row(name, pollutant, 5.0) for pollutant in ("pm25", "o3") for name in names]
    facts = {**FACTS, "checkpoint": "/a/very/long/path" * 9}
    page = report.write(tmp_path, facts, table, SETTINGS, [picture])
    measured = tmp_path / "measured.html"
    for width in (390, 1200):
        # a window has no less than 500 pixels, a frame may
        measured.write_text(
            f'<iframe width={width} height=900 srcdoc="{html.escape(page.read_text())}"></iframe>'
            "<script>onload = () => { const d = frames[0].document; document.title = ["
            "d.documentElement.scrollWidth, d.images[0].naturalWidth, d.images[0].clientWidth"
            "].join(); }</script>"
        )
        dom = browse(measured, "--dump-dom")
        found = re.search(r"<title>([\d,]+)</title>", dom)
        assert found, "the script ran"
        whole, natural, shown = map(int, found[1].split(","))
        assert whole <= width, "nothing but tables scrolls sideways"
        assert natural == 1100 and shown <= width
        screenshot = tmp_path / f"{width}.png"
        browse(page, f"--window-size={width},900", f"--screenshot={screenshot}")
        assert len(np.unique(np.asarray(Image.open(screenshot).convert("L")))) > 20
    pdf = tmp_path / "report.pdf"
    browse(page, f"--print-to-pdf={pdf}", "--no-pdf-header-footer")
    assert pdf.read_bytes().startswith(b"%PDF") and pdf.stat().st_size > 20_000
