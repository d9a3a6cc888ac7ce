"""A label is anybody's text: every language shows it as it is written, and no label changes the shape of a table."""

import csv
import io
import re

import pytest
from markdown_it import MarkdownIt

from iec.tables.formats import comma_separated, latex, latex_text, markdown, markdown_code, markdown_text, show

LABELS = [
    *(
        "a | b",
        "a\nb",
        "`code`",
        "*bold*",
        "**b**",
        "_x_",
        "snake_case",
        "a < b > c",
        "<b>",
        "&amp; & co",
        "100 %",
        "$x$ and $",
        "~~gone~~",
    ),
    *(
        "\\",
        "a\\|b",
        "^2",
        "# head",
        "[x](http://y)",
        "![x](y)",
        "[a]: b",
        "[0.5]",
        "*",
        "{x}",
        "[red]x[/]",
        ":smile:",
        '"a", b',
        "'",
        "a  b",
    ),
]
READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def one_line(text):
    return " ".join(text.split())


@pytest.mark.parametrize("label", LABELS)
def test_markdown_shows_a_label_as_it_is(label):
    tokens = READER.parse(markdown(["", "FID | N"], [[label, "1"], ["b", label]], label, f"See {markdown_text(label)}"))
    inline = [token for token in tokens if token.type == "inline"]
    shown = ["".join(child.content for child in token.children) for token in inline]
    assert shown == [one_line(label), "", "FID | N", one_line(label), "1", "b", one_line(label), f"See {one_line(label)}"]
    kinds = {child.type for token in inline[1:] for child in token.children}
    assert kinds <= {"text", "text_special"} and sum(token.type == "tr_open" for token in tokens) == 3


@pytest.mark.parametrize("text", ["plain", "a `b` c", "`", "``x", "a | b\nc"])
def test_code_spans_hold_backticks(text):
    (token,) = (token for token in READER.parse(markdown_code(text)) if token.type == "inline")
    assert [(child.type, child.content) for child in token.children] == [("code_inline", one_line(text))]


def test_latex_escapes_all_specials_and_a_label_starts_no_option_or_line():
    assert latex_text("\\&%$#_{}~^") == r"\textbackslash{}\&\%\$\#\_\{\}\textasciitilde{}\textasciicircum{}"
    text = latex(["", "FID"], [[label, "1"] for label in LABELS], "title\n\\input{x}")
    lines = text.splitlines()
    assert lines[0] == r"% title \input{x}" and len(lines) == len(LABELS) + 7
    for line in lines[5:-2]:
        cells = line.removesuffix(r" \\")
        assert not re.match(r"[\[*]", cells)
        assert len(re.findall(r"(?<!\\)&", cells)) == 1 and not re.search(r"(?<!\\)[%$#_]", cells)


def test_csv_gives_the_labels_back():
    rows = list(csv.reader(io.StringIO(comma_separated(["", "a,b"], [[label, "1"] for label in LABELS]), newline="")))
    assert rows == [["label", "a,b"], *([label, "1"] for label in LABELS)]


def test_the_terminal_takes_no_markup_from_labels(capsys):
    show(["", "[bold]FID[/]"], [[label, "1"] for label in LABELS], "[red]title[/]")
    shown = capsys.readouterr().out
    assert all(label in shown for label in LABELS if "\n" not in label) and "[red]title[/]" in shown and "[bold]FID[/]" in shown
