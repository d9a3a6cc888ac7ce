"""Prompts: captions of COCO by a fixed rule, lines of a text file, or a small set of our own."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from iec.errors import ConfigError
from iec.io.captions import load_coco_captions

OWN = Path(__file__).parent / "prompts.txt"


@dataclass(frozen=True)
class PromptList:
    """texts: prompt n of image n, from the start again after the last. source: where they come from."""

    texts: tuple[str, ...]
    source: str

    def of(self, n: int) -> str:
        return self.texts[n % len(self.texts)]

    @cached_property
    def hash(self) -> str:
        """sha256 of the texts in order."""
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest()


def prompts_of(given: str | Path | None = None) -> PromptList:
    """None: our own; ``*.json``: COCO's annotations (`load_coco_captions`); else a text file, one prompt a line (UTF-8).

    Blank lines at the end of a file are left out; others are refused, because prompt n is line n. Raises `ConfigError` and
    `DatasetError`.
    """
    path = OWN if given is None else Path(given)
    if path.suffix == ".json":
        return PromptList(tuple(caption for _, caption in load_coco_captions(path)), path.name)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"model.prompts={path} cannot be read ({error}). Give a text file (UTF-8), one prompt a line.") from error
    blank = [k for k, line in enumerate(lines, 1) if not line]
    if blank or not lines:
        where = f"line {blank[0]} is blank" if blank else "it is empty"
        raise ConfigError(f"model.prompts={path}: {where}. Prompt n is line n: write one prompt a line.")
    return PromptList(tuple(lines), "the package's own" if given is None else path.name)
