"""What is installed: declared dependencies, commands, and start-up without the large libraries."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

import iec
from iec.__main__ import COMMANDS
from iec.io.resources import configs, experiment_file, experiments
from tests.conftest import ENV

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LARGE = ("diffusers", "transformers", "timm", "wandb", "matplotlib", "torch_fidelity", "open_clip", "lpips")
GUARD = """
import runpy, sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name in FORBIDDEN:
            raise AssertionError(name + " was imported")
sys.meta_path.insert(0, Guard())
sys.argv = ARGV
"""
"""Start of a program in which an import of one of the ``forbidden`` modules fails."""


def guarded(program, *argv, forbidden=LARGE, cwd=ROOT):
    code = GUARD.replace("FORBIDDEN", repr(forbidden)).replace("ARGV", repr(list(argv))) + program
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env={**ENV, "PYTHONPATH": str(ROOT)}, cwd=cwd)


MODULES = {"yaml": "pyyaml", "markdown_it": "markdown-it-py", "PIL": "pillow", "hydra": "hydra-core", "google": "protobuf"}
"""Imported module -> distribution, where they are called differently."""


def distribution(requirement):
    """The name alone, of a line of requirements or of an imported module."""
    requirement = {
        "yaml": "pyyaml",
        "markdown_it": "markdown-it-py",
        "PIL": "pillow",
        "hydra": "hydra-core",
        "google": "protobuf",
    }.get(requirement, requirement)
    return re.split(r"[<>=\[ ]", requirement)[0].lower().replace("_", "-")


def test_every_library_that_is_imported_is_declared():
    extras = [requirement for group in PROJECT["optional-dependencies"].values() for requirement in group]
    declared = {distribution(requirement) for requirement in [*PROJECT["dependencies"], *extras]}
    for path in (ROOT / "iec").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            libraries = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"iec"}
            assert set(map(distribution, libraries)) <= declared, path


def test_requirements_lie_within_what_is_declared():
    listed = {distribution(line) for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1] not in ("#", "")}
    assert {distribution(requirement) for requirement in PROJECT["dependencies"]} - listed <= {
        "huggingface-hub",  # these come with a library that is listed, in the version that it wants
        "pyyaml",
        "markupsafe",
    }


def test_the_lazy_names_are_those_that_type_checkers_see():
    tree = ast.parse(Path(iec.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"iec.{module}" for name, module in iec._HOMES.items()}
    assert set(iec.__all__) <= set(dir(iec))
    assert all(getattr(iec, name).__module__ == seen[name] for name in iec.__all__ if name != "Network")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = iec.nonsense


def test_the_package_and_the_list_of_commands_load_no_library():
    result = guarded(
        "import iec; iec.errors.ConfigError; runpy.run_module('iec', run_name='__main__')",
        "iec",
        "--help",
        forbidden=("torch", "numpy", "hydra"),
    )
    assert result.returncode == 0, result.stderr
    assert all(f"iec {name}" in result.stdout for name in ("run", "table", "score", "convert", "export", "report"))


def test_the_version_is_that_of_the_distribution():
    result = guarded("runpy.run_module('iec', run_name='__main__')", "iec", "--version", forbidden=("torch",))
    assert (result.returncode, result.stdout) == (0, f"iec {PROJECT['version']}\n"), result.stderr


@pytest.mark.parametrize(("words", "code"), [([], 2), (["tabel"], 2)])
def test_a_command_that_does_not_exist_is_refused_with_the_list(words, code):
    result = guarded("runpy.run_module('iec', run_name='__main__')", "iec", *words, forbidden=("torch",))
    assert result.returncode == code
    assert all(name in result.stdout + result.stderr for name in COMMANDS)


RUNS = {
    "--help": "== Config ==",
    "iec=all_steps iec.lambda=-1": "lambda",
    "efficiency=deepcache efficiency.interval=0": "interval",
    "efficiency=w8a8 efficiency.weight_bits=1": "weight_bits",
    "sampler.steps=0": "steps",
    "model.name=nonsense": "Unknown model 'nonsense'",
    "model=ddim_cifar": "iec convert ddim_cifar",
    "nonsense=1": "nonsense",
}
"""Arguments of run.py -> what it answers."""


def test_help_and_refused_configurations_load_no_large_library(tmp_path):
    program = f"""
from iec.runs.run import command
for words in {list(RUNS)!r}:
    print("~~", flush=True)
    sys.stderr = sys.stdout
    sys.argv = ["run.py", *words.split()]
    try:
        command()
    except SystemExit as end:
        print("code", end.code)
"""
    result = guarded(program, cwd=tmp_path)  # one process for all: to import torch takes most of the time
    _, *answers = result.stdout.split("~~\n")
    assert len(answers) == len(RUNS), result.stderr
    for (words, message), answer in zip(RUNS.items(), answers, strict=True):
        assert message in answer and "Traceback" not in answer, (words, answer)
        assert answer.rstrip().endswith("code 0" if words == "--help" else ("code 1", "code 2")), (words, answer)


def test_messages_name_commands_that_an_installed_package_has():
    """run.py and scripts/ are of a checkout alone."""
    for path in Path(iec.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # of attributes as well
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                assert path.name == "__main__.py" or not re.search(r"\brun\.py|\bscripts/", node.value), (path, node.lineno)
                for module in re.findall(r"python -m (iec[.\w]*\w)", node.value):
                    assert find_spec(f"{module}.__main__"), (path, node.lineno)
                for command in re.findall(r"python -m iec (\w+)", node.value):
                    assert command in COMMANDS, (path, node.lineno)


def test_the_projects_files_are_found_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (configs() / "config.yaml").is_file()
    assert all(
        experiment_file(Path(name)) == experiments() / "bundled.yaml"
        for name in ("bundled", "bundled.yaml", "experiments/bundled.yaml")
    )
    for elsewhere in ("mine.yaml", "other/bundled.yaml", "bundled.md"):
        assert experiment_file(Path(elsewhere)) == Path(elsewhere)
    Path("bundled.yaml").touch()
    assert experiment_file(Path("bundled.yaml")) == Path("bundled.yaml")  # a file that is there comes first
