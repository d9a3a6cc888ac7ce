"""The few marks that a written reading of a table may have, as HTML."""

import re

from markupsafe import Markup, escape


def to_html(text: str) -> Markup:
    """Paragraphs, lines that begin with ``* `` as a list, ``**bold**`` and `` `code` ``; all else is shown as it is written."""
    return Markup("\n").join(_block(block) for block in re.split(r"\n\s*\n", text.strip()) if block.strip())


def _block(text: str) -> Markup:
    """The lines before the first ``* `` are a paragraph, the rest are the list; other lines go on from the one before."""
    before, *items = re.split(r"^\* ", text, flags=re.MULTILINE)
    paragraph = Markup("<p>{}</p>").format(_inline(before)) if before.strip() else Markup("")
    points = Markup("").join(Markup("<li>{}</li>").format(_inline(item)) for item in items)
    return paragraph + (Markup("<ul>{}</ul>").format(points) if items else Markup(""))


def _inline(text: str) -> Markup:
    parts = re.split(r"(`[^`]+`|\*\*.+?\*\*)", " ".join(text.split()))
    return Markup("").join(_part(part) for part in parts)


def _part(text: str) -> Markup:
    if len(text) > 2 and text[0] == text[-1] == "`":
        return Markup("<code>{}</code>").format(text[1:-1])
    if len(text) > 4 and text.startswith("**") and text.endswith("**"):
        return Markup("<strong>{}</strong>").format(text[2:-2])
    return escape(text)
