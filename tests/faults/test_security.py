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

OPENED = "tensorboard --logdir"
SOURCES = [
    *REPOSITORY.glob("aqnet/**/*.py"),
    *REPOSITORY.glob("*.py"),
    *REPOSITORY.glob("slurm/*.py"),
]
# what runs code that a file or a text carries, or unpacks an archive wherever its members say
UNSAFE = {
    *("eval", "exec", "compile_command", "__import__"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "marshal.loads", "shelve.open"),
    *("joblib.load", "torch.hub.load", "os.system", "os.popen", "shutil.unpack_archive"),
    *("numpy.lib.format.read_array", "pandas.read_pickle", "extractall", "extract"),
    *("torch.jit.load", "torch.export.load", "torch.package.PackageImporter"),
}
# of these nothing is imported, under any name, so that no call can be hidden
UNSAFE_MODULES = {"_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal"}
UNSAFE_MODULES |= {"shelve", "torch.package", "torch.hub"}
# and these are called by their whole names, which `test_no_unsafe_load_exists` knows
BY_WHOLE_NAME = {
    *((module, "load") for module in ("torch", "torch.jit", "torch.serialization", "yaml")),
    *(("torch", "hub"), ("torch", "jit"), ("torch", "package"), ("torch", "export")),
    *(("numpy", "load"), ("os", "system"), ("os", "popen"), ("yaml", "unsafe_load")),
    *(("yaml", "full_load"), ("shutil", "unpack_archive"), ("pandas", "read_pickle")),
}


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Dotted name of every function that a file calls, and the call."""
    tree = ast.parse(path.read_text())
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [(ast.unparse(call.func), call) for call in found]


def unsafe_imports(tree: ast.AST) -> list[str]:
    """What a file imports that can run code of a file, or hides a call that the names would show.

    `import torch as t` hides `torch.load` as well as `from torch import load`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                renamed = each.asname is not None and each.name in ("torch", "yaml", "os", "pickle")
                if renamed or each.name in UNSAFE_MODULES:
                    found.append(each.name)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
            found += [] if node.attr == "UnpicklingError" else [f"pickle.{node.attr}"]
        elif isinstance(node, ast.ImportFrom):
            pairs = {(node.module or "", each.name) for each in node.names}
            found += [".".join(pair) for pair in pairs & BY_WHOLE_NAME]
            found += [node.module] if node.module in {*UNSAFE_MODULES, "pickle"} else []
    return found


def argument(call: ast.Call, name: str) -> Any:
    """The constant given for a named argument; None where it is not given."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return ast.unparse(keyword.value)
    return None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_unsafe_load_exists(path: Path):
    assert unsafe_imports(ast.parse(path.read_text())) == []
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


@pytest.mark.parametrize(
    "text",
    [
        "import pickle\npickle.Unpickler(file).load()",
        "import pickle\nread = pickle.loads",
        "import pickle as safe",
        "from pickle import loads",
        "from pickle import Unpickler as Reader",
        "from torch import load",
        "from torch import load as read, nn",
        "from torch import jit",
        "from torch.jit import load",
        "import torch as t",
        "import torch.hub",
        "from yaml import unsafe_load",
        "def f():\n    from os import system",
    ],
)
def test_an_import_that_can_run_code_of_a_file_or_hides_it_is_found(text: str):
    assert unsafe_imports(ast.parse(text))
    assert not unsafe_imports(ast.parse("import torch\nimport numpy as np\nfrom torch import nn"))


def test_tensorboard_is_started_for_this_machine_alone():
    """It has no password: where it must be reached from elsewhere, through a tunnel of ssh."""
    texts = [
        *(REPOSITORY / "README.md", REPOSITORY / "Makefile"),
        *REPOSITORY.glob("docs/**/*.md"),
        *(path for path in REPOSITORY.glob("slurm/**/*") if path.is_file()),
    ]
    started = [line for path in texts for line in path.read_text().splitlines() if OPENED in line]
    assert len(started) >= 3  # README, docs and train.sbatch
    assert not [line for line in started if re.search(r"--(bind_all|host)", line)]
    assert not [path for path in texts if "bind_all" in path.read_text()]


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
