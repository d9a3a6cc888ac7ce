"""The house: rooms are the packages of `iec`, and imports point down only. What may be imported by whom is written here."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "iec"
ROOMS = {
    "io": set(),
    "sampling": set(),
    "models": {"io", "sampling"},
    "metrics": {"io"},
    "efficiency": {"io", "sampling", "models"},
    "correctors": {"io", "sampling", "models", "efficiency"},
    "pipelines": {"io", "sampling", "models", "efficiency"},
    "runs": {"io", "sampling", "models", "metrics", "efficiency", "correctors"},
    "tables": {"io", "sampling", "models", "metrics", "efficiency", "runs"},
    "analysis": {"io", "sampling", "models", "metrics", "efficiency", "runs", "tables"},
    "sweeps": {"io", "runs", "tables"},
    "report": {"io", "runs", "tables"},
    "gpucheck": {"io", "sampling", "models", "metrics", "efficiency", "correctors", "pipelines", "runs"},
}
"""room -> the rooms that it may import from, besides itself and `iec.errors`. From the bottom up."""
LIBRARIES = {"sampling": {"torch", "numpy"}}
"""room -> the only libraries that its modules import when they are loaded."""
LATER = {"io": {"diffusers"}, "efficiency": {"diffusers"}}
"""room -> the libraries that its modules import inside functions only, because a configuration is checked without them."""
DOORS = {"__init__.py", "__main__.py"}
"""At the root: the public names, and the command line. In a room, ``__main__.py`` is its command and may use every room."""


def modules(room):
    return [path for path in sorted((ROOT / room).rglob("*.py")) if path.name != "__main__.py"]


def imported(path, everywhere=True):
    """Names of modules that a file imports; ``everywhere``: also inside functions and under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the room"
            yield f"{node.module}.{node.names[0].name}" if node.module == "iec" else str(node.module)


def test_every_package_is_a_room_and_the_root_is_small():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == ROOMS.keys()
    assert {path.name for path in ROOT.glob("*.py")} - DOORS == {"errors.py"}


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_point_down(room):
    lower = list(ROOMS)[: list(ROOMS).index(room)]
    assert ROOMS[room] <= set(lower)
    for path in modules(room):
        rooms = {name.split(".")[1] for name in imported(path) if name.startswith("iec.")}
        assert rooms <= ROOMS[room] | {room, "errors"}, path


@pytest.mark.parametrize("room", LIBRARIES)
def test_a_pure_room_loads_these_libraries_only(room):
    for path in modules(room):
        loaded = {name.split(".")[0] for name in imported(path, everywhere=False)} - {"iec"}
        assert loaded - set(__import__("sys").stdlib_module_names) <= LIBRARIES[room], path


@pytest.mark.parametrize("room", LATER)
def test_a_slow_library_is_loaded_by_what_needs_it_only(room):
    for path in modules(room):
        loaded = {name.split(".")[0] for name in imported(path, everywhere=False)}
        assert not loaded & LATER[room], path


def test_rooms_have_a_docstring():
    for path in ROOT.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path
