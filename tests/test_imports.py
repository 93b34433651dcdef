"""Imports point one way (CONTRIBUTING.md), and torch.distributed is called in one package."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "aqnet"
BASE = {
    *("errors", "batch", "files", "grid", "config", "distributed", "checkpoint"),
    *("run_directory", "trajectories", "counted", "physical", "least_squares"),
}
MAY_KNOW = {
    **dict.fromkeys(BASE, BASE),
    **{part: BASE | {part} for part in ("data", "model", "training", "evaluation")},
    "plan": BASE | {"plan", "model", "training"},  # it tries a training step of the model
}
# it counts the memory of tensors, in one process, and uses no process group
MEM_TRACKER = "torch.distributed._tools.mem_tracker.MemTracker"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in FILES]


def imported(text: str) -> set[str]:
    """Dotted names of all that a source text imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the arrows"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def parts(text: str) -> set[str]:
    """First names below aqnet among the imports."""
    return {name.split(".")[1] for name in imported(text) if name.startswith("aqnet.")}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_part_knows_only_itself_and_the_base(path: Path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    known = parts(path.read_text()) - {"__version__"}
    foreign = known - MAY_KNOW.get(part, set())
    assert not foreign, f"{path.name} imports aqnet.{', aqnet.'.join(sorted(foreign))}"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_torch_distributed_is_called_in_one_package(path: Path):
    text, room = path.read_text(), path.relative_to(PACKAGE).parts[0]
    if room != "distributed":
        names = imported(text) - ({MEM_TRACKER} if room == "plan" else set())
        assert "torch.distributed" not in {".".join(name.split(".")[:2]) for name in names}
        attributes = {
            ast.unparse(node)
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Attribute)
        }
        assert "torch.distributed" not in attributes
        assert not any("DistributedDataParallel" in name for name in imported(text) | attributes)


def room(name: str) -> tuple[str, ...]:
    """Part and room below it, of a dotted name: `data`, `sources` of aqnet.data.sources.view.x."""
    names = name.split(".")[1:]
    return tuple(names[:2] if (PACKAGE / "/".join(names[:2])).is_dir() else names[:1])


def test_rooms_do_not_import_each_other_in_a_circle():
    beside: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for path, name in zip(FILES, NAMES, strict=True):
        here = room("aqnet." + name.removesuffix(".py").replace("/", "."))
        known = {room(name) for name in imported(path.read_text()) if name.startswith("aqnet.")}
        others = {other for other in known if len(other) == 2 and other[0] == here[0]}
        beside.setdefault(here, set()).update(others - {here})
    rooms = {here: others for here, others in beside.items() if len(here) == 2}
    assert rooms["data", "sources"] == {("data", "regridding")}
    tuple(TopologicalSorter(rooms).static_order())  # a CycleError names them


READERS = {"xarray", "cf_xarray", "netCDF4", "cfgrib", "rioxarray"}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_what_reads_other_peoples_files_is_imported_in_one_room(path: Path):
    inside = path.relative_to(PACKAGE).parts[:2] == ("data", "sources")
    used = {name.split(".")[0] for name in imported(path.read_text())} & READERS
    assert inside or not used
    if used:  # and there inside functions, so that training needs none of them
        top = ast.parse(path.read_text()).body
        names = {
            name
            for node in top
            for name in imported(ast.unparse(node))
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert not {name.split(".")[0] for name in names} & READERS


def test_the_check_sees_imports_of_every_form():
    text = "import aqnet.data.items\nfrom aqnet import model\ndef f():\n from aqnet.config import x"
    assert parts(text) == {"data", "model", "config"}
    assert "torch.distributed" in imported("from torch import distributed")
