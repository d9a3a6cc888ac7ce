"""Text files that other people write: UTF-8 with or without a byte order mark, lines that end as on any system."""

import json
import re
from pathlib import Path
from typing import Any

from iec.io.filetypes import mistaken

UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path) -> str:
    """Raises `ValueError` with the reason for a file that cannot be read, that is not UTF-8, and for NUL characters."""
    try:
        if sentence := mistaken(path):
            raise ValueError(sentence)
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror or error})") from error
    if data.startswith(UTF_16):
        raise ValueError("it is UTF-16. Save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        raise ValueError(f"line {line} is not UTF-8. Save it as UTF-8") from error
    if "\0" in text:
        line = 1 + text.count("\n", 0, text.index("\0"))
        raise ValueError(f"line {line} has a NUL character. Save it as UTF-8 text")
    return text


def lines(text: str) -> list[str]:
    r"""Split at \n, \r\n and \r alone. `str.splitlines` also splits at eight other characters, which occur inside a line."""
    return re.split(r"\r\n|\n|\r", text)


def read_json_text(path: Path) -> Any:
    """The value of a JSON file. Raises `ValueError` with the reason."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error})") from error
