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
    facts = {"checkpoint": "/a/very/long/path" * 9, "notes": ["a note"]}
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
