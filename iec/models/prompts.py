"""Prompts: captions of COCO by a fixed rule, lines of a text file, or a small set of our own."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from iec.errors import ConfigError, DatasetError
from iec.io.captions import COCO_WAY_OUT, coco_captions
from iec.io.paths import user_path
from iec.io.text import lines, read_json_text, read_text

OWN = Path(__file__).parent / "prompts.txt"
WAY_OUT = "Prompt n is line n of a text file (UTF-8), entry n of a JSON list, or caption n of COCO's captions_val2014.json."


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
    r"""None: our own. ``*.json``: COCO's annotations (`coco_captions`), or a list of texts. Else a text file, one prompt a line.

    Prompt n is line n, or entry n, without white space around it. Lines end with \n, \r\n or \r, and with nothing else. Blank lines
    at the end of a file are left out; others are refused. Files are UTF-8. Raises `DatasetError` for
    a JSON file, and `ConfigError` for a text file, that is not so.
    """
    path = OWN if given is None else user_path(given)
    is_json = path.suffix.lower() == ".json"
    try:
        if is_json:
            texts, unit = _of_json(read_json_text(path)), "entry"
        else:
            texts, unit = lines(read_text(path).rstrip()), "line"
        texts = [text.strip() for text in texts]
        if blank := [n for n, text in enumerate(texts, 1) if not text]:
            raise ValueError("it is empty" if len(texts) == 1 else f"{unit} {blank[0]} is blank")
    except ValueError as error:
        message = f"model.prompts={path}: {error}. {WAY_OUT}"
        raise (DatasetError(f"{message} {COCO_WAY_OUT}") if is_json else ConfigError(message)) from error
    return PromptList(tuple(texts), "the package's own" if given is None else path.name)


def _of_json(value: Any) -> list[str]:
    if isinstance(value, list):
        if not value:
            raise ValueError("it is empty")
        if other := [n for n, text in enumerate(value, 1) if not isinstance(text, str)]:
            raise ValueError(f"entry {other[0]} of its list is no text")
        return value
    try:
        return [caption for _, caption in coco_captions(value)]
    except ValueError as error:
        raise ValueError(f"it is no list of texts, and no annotations of COCO: {error}") from error
