"""Tables of Markdown."""

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table of GitHub's Markdown, of entries that are Markdown already."""
    head, *lines = (f"| {' | '.join(entries)} |" for entries in [header, *body])
    return "\n".join([head, "|" + "---|" * len(header), *lines])
