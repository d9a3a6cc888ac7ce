"""Classes that a configuration names by _target_: what is said where they cannot be imported."""

import pytest

from iec.correctors.configured import corrector_of
from iec.efficiency.technique import technique_of
from iec.errors import ConfigError

SOURCE = """
from dataclasses import dataclass
from {module} import {base}

@dataclass(frozen=True)
class Own({base}):
    def prepare(self, model, table, artifacts): ...
"""
OWN = {
    "efficiency": (technique_of, {"module": "iec.efficiency.technique", "base": "Technique"}),
    "corrector": (corrector_of, {"module": "iec.sampling.corrector", "base": "Corrector"}),
}


@pytest.mark.parametrize("group", OWN)
@pytest.mark.parametrize("module", ["own_{}", "own_folder_{}.inner"])
def test_a_module_that_is_not_found_is_named_with_the_way_out(group, module, tmp_path, monkeypatch):
    made, imported = OWN[group]
    module = module.format(group)
    missing, path = module.split(".")[0], tmp_path / f"{module.replace('.', '/')}.py"
    config = {"name": "own", "_target_": f"{module}.Own"}
    with pytest.raises(ConfigError, match=f"{group}=own.*no module {missing}.*PYTHONPATH=DIR") as refused:
        made(config)
    assert "HYDRA_FULL_ERROR" not in str(refused.value)
    path.parent.mkdir(exist_ok=True)
    path.write_text(SOURCE.format(**imported))
    monkeypatch.syspath_prepend(tmp_path)
    assert type(made(config)).__name__ == "Own"


@pytest.mark.parametrize(
    ("source", "said"),
    [("", "Own"), ("import nowhere_at_all", "nowhere_at_all"), ("def broken(:", "SyntaxError"), ("1 / 0", "ZeroDivisionError")],
)
def test_a_module_that_is_found_and_does_not_give_the_class_is_told_why(source, said, tmp_path, monkeypatch):
    name = f"own_broken_{len(source)}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=f"(?s){name}.Own.*{said}") as refused:
        technique_of({"name": "own", "_target_": f"{name}.Own"})
    assert "PYTHONPATH" not in str(refused.value) and "HYDRA_FULL_ERROR" not in str(refused.value)
