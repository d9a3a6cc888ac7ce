"""Draw docs/architecture.svg: the rooms of iec/ and what they import from, as the code is now.

    python -m scripts.architecture

A test fails where the picture is another.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from iec.io.files import write_text
from iec.io.runtime import entry_point

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs/architecture.svg"
PLACES = {
    "report": (0, 0),
    "analysis": (1, 0),
    "sweeps": (2, 0),
    "tables": (1, 1),
    "gpucheck": (2, 1),
    "runs": (1, 2),
    "pipelines": (0, 2),
    "correctors": (1, 3),
    "efficiency": (1, 4),
    "metrics": (2, 4),
    "models": (1, 5),
    "sampling": (0.5, 6),
    "io": (1.5, 6),
}
"""room -> column and line of its box in the diagram."""
WIDTH, HEIGHT, BOX = 230, 84, (130, 36)


def arrows() -> Iterator[tuple[str, str]]:
    """(room, room that it imports from), as the code is now; commands (``__main__.py``) left out."""
    found = set()
    for path in (ROOT / "iec").rglob("*.py"):
        room = path.relative_to(ROOT / "iec").parts[0]
        if room in PLACES and path.name != "__main__.py":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = node.module.split(".") if isinstance(node, ast.ImportFrom) and node.module else []
                if names[:1] == ["iec"] and len(names) > 1 and names[1] in PLACES and names[1] != room:
                    found.add((room, names[1]))
    yield from sorted(found)


def needed(edges: set[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The edges without those that a path over other edges replaces."""
    for a, b in sorted(edges):
        reached = {c for room, c in edges if room == a and c != b}
        while more := {c for room, c in edges if room in reached} - reached:
            reached |= more
        if b not in reached:
            yield a, b


def diagram() -> str:
    """The rooms as boxes and their imports as lines, SVG. An import that follows from a path of others is left out."""
    width, height = BOX
    at = {room: (30 + column * WIDTH, 20 + line * HEIGHT) for room, (column, line) in PLACES.items()}
    lines = [
        f'<line x1="{at[a][0] + width / 2}" y1="{at[a][1] + height}" x2="{at[b][0] + width / 2}" y2="{at[b][1] - 5}"'
        ' stroke="#8a8a8a" stroke-width="1" marker-end="url(#head)"/>'
        for a, b in needed(set(arrows()))
    ]
    boxes = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="#eef3fb" stroke="#3b5b92"/>'
        f'<text x="{x + width / 2}" y="{y + 23}" text-anchor="middle" font-family="monospace" font-size="14">{room}</text>'
        for room, (x, y) in at.items()
    ]
    head = (
        '<marker id="head" markerWidth="7" markerHeight="6" refX="5" refY="3" orient="auto"><path d="M0,0 L6,3 L0,6 z"/></marker>'
    )
    size = f'viewBox="0 0 {2 * WIDTH + width + 60} {6 * HEIGHT + height + 40}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><defs>{head}</defs>{"".join(lines)}{"".join(boxes)}</svg>\n'


if __name__ == "__main__":
    with entry_point():
        write_text(PICTURE, diagram())
