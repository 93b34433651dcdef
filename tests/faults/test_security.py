"""Nothing that a file carries is run, followed out of its folder, or put into a page unescaped."""

import ast
import html
import re
from pathlib import Path
from typing import Any

import pytest

from aqnet.evaluation.report import page
from tests.conftest import REPOSITORY
from tests.evaluation.report.test_page import FACTS, row

SOURCES = [
    *REPOSITORY.glob("aqnet/**/*.py"),
    *REPOSITORY.glob("*.py"),
    *REPOSITORY.glob("slurm/*.py"),
]
# what runs code that a file or a text carries, or unpacks an archive wherever its members say
UNSAFE = {
    *("eval", "exec", "compile_command", "__import__", "pickle.load", "pickle.loads"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "marshal.loads", "shelve.open"),
    *("joblib.load", "torch.hub.load", "os.system", "os.popen", "shutil.unpack_archive"),
    *("numpy.lib.format.read_array", "pandas.read_pickle", "extractall", "extract"),
}


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Dotted name of every function that a file calls, and the call."""
    tree = ast.parse(path.read_text())
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [(ast.unparse(call.func), call) for call in found]


def argument(call: ast.Call, name: str) -> Any:
    """The constant given for a named argument; None where it is not given."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return ast.unparse(keyword.value)
    return None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_unsafe_load_exists(path: Path):
    for name, call in calls(path):
        last = name.rpartition(".")[2]
        where = f"{path}:{call.lineno}: {name}"
        assert name not in UNSAFE and last not in {"extractall", "unpack_archive"}, where
        if name == "torch.load":
            assert argument(call, "weights_only") == "True", where
        if name == "yaml.load":
            assert argument(call, "Loader") == "_CoreLoader", where
        if name in ("np.load", "numpy.load"):
            assert argument(call, "allow_pickle") in (None, "False"), where  # numpy's default
        if name.startswith("subprocess."):
            assert argument(call, "shell") is None, where
        assert last not in ("HTTPServer", "TCPServer", "serve_forever"), where


def test_names_with_html_are_escaped_in_the_report(tmp_path: Path):
    evil = "<script>alert('x')</script>"
    about = {"checkpoint": evil, "split": evil, "stations": evil, evil: evil, "notes": [evil]}
    about = {**FACTS, **about, "periods": [evil]}
    table = [row("aqnet", evil, 5.0), row(evil, evil, 4.0)]
    part = {**table[0], "region": evil, "best_simple": evil}
    page.write(
        tmp_path,
        about,
        [*table, part, {**table[1], "region": evil}],
        {"data": {"stores": evil, evil: evil}, "model": {}, "train": {}},
    )
    text = (tmp_path / "report.html").read_text()
    assert evil not in text and html.escape(evil) in text
    assert not re.search(r"<script[^>]*>alert", text)
