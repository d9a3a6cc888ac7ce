"""A table as Markdown, LaTeX, CSV, and in the terminal. Labels and titles are anybody's text, which each language escapes once."""

import csv
import io
import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from iec.io.markdown import markdown_table

Line = Sequence[str]
WIDTH_OF_A_FILE = 200
"""Characters to a line where the terminal's table is written to a file."""
MARKDOWN = re.compile(r"[\\`*|<~$]|(?<![^\W_])_|_(?![^\W_])|&(?=[#\w])|(?<=\])[(\[:]")
"""What CommonMark, or GitHub's tables, strikes and formulas, may take for a mark. ``_`` inside a word and ``[`` alone are none."""
LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
}
"""The ten special characters, and those that the default font encoding prints as others."""


def one_line(text: str) -> str:
    """White space of any kind becomes single spaces: a row of a table is one line in all languages."""
    return " ".join(text.split())


def markdown_text(text: str) -> str:
    """``text`` such that Markdown shows it as it is, inside a line or an entry of a table."""
    return MARKDOWN.sub(r"\\\g<0>", one_line(text))


def markdown_code(text: str) -> str:
    """A code span that shows ``text``, fenced with more backticks than it has in a row."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{space}{one_line(text)}{space}{fence}"


def markdown(header: Line, body: Sequence[Line], title: str, caption: str) -> str:
    """A table with its title, of plain texts. caption: already Markdown."""
    table = markdown_table([markdown_text(text) for text in header], [[markdown_text(text) for text in line] for line in body])
    return f"**{markdown_text(title)}**\n\n{table}\n\n{caption}\n"


def latex_text(text: str) -> str:
    """``text`` such that LaTeX sets it as it is. A ``[`` at the start is no option of the ``\\\\`` before it."""
    escaped = "".join(LATEX.get(character, character) for character in one_line(text))
    return re.sub(r"^[\[*]", r"{\g<0>}", escaped)


def latex(header: Line, body: Sequence[Line], title: str) -> str:
    """A table for the booktabs package; the title is a comment."""

    def line(entries: Line) -> str:
        return f"{' & '.join(map(latex_text, entries))} \\\\"

    lines = [r"\toprule", line(header), r"\midrule", *map(line, body), r"\bottomrule"]
    begin = rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}"
    return "\n".join([f"% {one_line(title)}", begin, *lines, r"\end{tabular}", ""])


def comma_separated(header: Line, body: Sequence[Line]) -> str:
    """RFC 4180; the first column is ``label``."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["label", *header[1:]], *body])
    return text.getvalue()


def show(header: Line, body: Sequence[Line], title: str) -> None:
    """The table in the terminal."""
    table = Table(title=Text(title), title_justify="left")
    for column in header:
        table.add_column(Text(column), justify="right" if column else "left")
    for line in body:
        table.add_row(*map(Text, line))
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH_OF_A_FILE)).print(table)
