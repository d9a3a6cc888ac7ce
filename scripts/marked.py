"""Parts of a page that a script writes: what stands between `<!-- NAME -->` and `<!-- end -->`."""

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from iec.io.files import write_text

PART = re.compile(r"<!-- (?!end -->)(.*?) -->\n.*?<!-- end -->", re.DOTALL)


def names(page: str) -> list[str]:
    return PART.findall(page)


def filled(page: str, part: Callable[[str], str]) -> str:
    """The page with its parts filled in. part: name -> Markdown."""
    return PART.sub(lambda match: f"<!-- {match[1]} -->\n\n{part(match[1])}\n\n<!-- end -->", page)


def fill(description: str | None, pages: Mapping[Path, Callable[[str], str]]) -> None:
    """The command of a script: fill in its pages, or with ``--check`` change nothing and exit with 1 where one would change."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where a page would change")
    check = parser.parse_args().check
    texts = {path: path.read_text(encoding="utf-8") for path in pages}
    changed = {path: new for path, text in texts.items() if (new := filled(text, pages[path])) != text}
    if check:
        raise SystemExit(int(bool(changed)))
    for path, text in changed.items():
        write_text(path, text)
        print(path)
