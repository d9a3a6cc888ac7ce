"""YAML files in which every key stands once: plain YAML lets the second of two equal keys replace the first without a word."""

from pathlib import Path
from typing import Any

import yaml

from iec.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a mapping with two equal keys; those of a merge (``<<``) may be overridden."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node)
            if key in lines:
                problem = f"the key {key!r} is already given in line {lines[key]}; rename or remove one of the two"
                raise yaml.composer.ComposerError(None, None, problem, key_node.start_mark)
            lines[key] = key_node.start_mark.line + 1
        return node


def read_yaml(path: Path) -> Any:
    """The value of a YAML file. Raises `ConfigError` for a file that cannot be read or parsed, or that gives a key twice, with the
    line and the key.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ConfigError(f"{path}{line}: {error.problem or error.context}.") from error
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}.") from error
