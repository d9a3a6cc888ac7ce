"""A key that stands twice in a YAML file is refused: plain YAML would keep the second alone."""

import pytest
from omegaconf import OmegaConf
from yaml import YAMLError

from iec.errors import ConfigError
from iec.io.yaml import read_yaml


@pytest.mark.parametrize(
    "text, line, key",
    [
        ("a: 1\nb: 2\na: 3\n", 3, "'a'"),
        ('a: 1\n"a": 2\n', 2, "'a'"),
        ("{a: 1, a: 2}", 1, "'a'"),
        ("rows:\n  W8A8: [x]\n  W8A8: [y]\n", 3, "'W8A8'"),
        ("list:\n- {k: 1}\n- k: 1\n  k: 2\n", 4, "'k'"),
        ("a: &x {k: 1}\nb: {<<: *x, k: 2, k: 3}\n", 2, "'k'"),
        ("1: a\n1.0: b\n", 2, "1.0"),
        ("yes: a\ntrue: b\n", 2, "True"),
    ],
)
def test_a_second_equal_key_is_refused_with_its_line(tmp_path, text, line, key):
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"twice\.yaml, line {line}: the key {key} is already given in line \d"):
        read_yaml(path)


def test_equal_keys_of_different_mappings_and_of_merges_are_read(tmp_path):
    path = tmp_path / "once.yaml"
    path.write_text("a: &x {k: 1, l: 2}\nb: {<<: *x, k: 3}\nc: {<<: [*x, {k: 4}]}\n")
    assert read_yaml(path) == {"a": {"k": 1, "l": 2}, "b": {"k": 3, "l": 2}, "c": {"k": 1, "l": 2}}


@pytest.mark.parametrize("content", [None, b"a: [", b"\ta: 1", b"a: \xff", b"? [1]\n: 2", b"!!python/object:os.system {}"])
def test_what_cannot_be_read_is_refused_with_the_file(tmp_path, content):
    path = tmp_path / "bad.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        read_yaml(path)


def test_hydras_own_files_refuse_it_too(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a: 1\na: 2\n")
    with pytest.raises(YAMLError, match="duplicate key a"):
        OmegaConf.load(path)
