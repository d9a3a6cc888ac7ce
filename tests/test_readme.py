"""What the README tells a person to type works."""

import re
import shlex

import pytest

from iec.experiments import Experiment
from tests.conftest import CONFIGS

README = (CONFIGS.parent / "README.md").read_text()


@pytest.mark.parametrize("program", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_programs_run(program, capsys):
    exec(compile(program, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_commands_compose(make_cell):
    commands = re.findall(r"^ +python run\.py (?!-m)(.*?)(?:  +#.*)?$", README, re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        assert make_cell(*shlex.split(command)).slug
    for path in re.findall(r"experiments/\w+\.yaml", README):
        assert Experiment.read(CONFIGS.parent / path).rows
