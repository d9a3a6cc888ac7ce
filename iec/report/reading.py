"""A written reading of a table, as HTML."""

from markdown_it import MarkdownIt
from markupsafe import Markup


def _parser() -> MarkdownIt:
    """CommonMark with tables. HTML, pictures, and links other than to the web are shown as they are written: the page is one file,
    which loads nothing and runs nothing of a reading.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    parser.validateLink = lambda url: url.startswith(("https://", "http://"))  # type: ignore[method-assign]
    return parser


PARSER = _parser()


def to_html(text: str) -> Markup:
    """Markdown to HTML."""
    return Markup(PARSER.render(text).strip())
