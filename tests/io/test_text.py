"""Text files of other people: encodings, and where a line ends."""

import pytest

from iec.io.text import lines, read_json_text, read_text


@pytest.mark.parametrize(
    ("data", "text"), [(b"a\n", "a\n"), (b"\xef\xbb\xbfa\r\nb", "a\r\nb"), ("é\u2028b\x85".encode(), "é\u2028b\x85"), (b"", "")]
)
def test_utf_8_is_read_with_or_without_a_mark(data, text, tmp_path):
    (tmp_path / "x").write_bytes(data)
    assert read_text(tmp_path / "x") == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a cat".encode("utf-16"), "it is UTF-16. Save it as UTF-8"),
        ("a cat".encode("utf-16-be"), "line 1 has a NUL"),
        ("a\nb cat\n".encode("utf-16-le"), "line 1 has a NUL"),
        ("a cat".encode("utf-32"), "UTF-16|NUL"),
        (b"a cat\na\0dog\n", "line 2 has a NUL"),
        ("a cat\nun café\n".encode("latin-1"), "line 2 is not UTF-8"),
        (b"<!DOCTYPE html>", "a web page"),
    ],
)
def test_other_texts_are_refused_by_name(data, message, tmp_path):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_text(tmp_path / "x")


def test_what_cannot_be_read_is_a_value_error_too(tmp_path):
    for path, message in [(tmp_path, "Is a directory"), (tmp_path / "no", "No such file")]:
        with pytest.raises(ValueError, match=message):
            read_text(path)


def test_a_line_ends_where_the_file_says_and_nowhere_else():
    inside = "\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # str.splitlines ends a line at each
    assert len(inside.splitlines()) == len(inside)
    assert lines(f"a{inside}b\nc\r\nd\re") == [f"a{inside}b", "c", "d", "e"]


def test_json_is_read_with_a_mark_and_refused_with_the_place(tmp_path):
    (tmp_path / "x").write_bytes(b'\xef\xbb\xbf["a"]')
    assert read_json_text(tmp_path / "x") == ["a"]
    (tmp_path / "x").write_text("[1,\n,]")
    with pytest.raises(ValueError, match="it is not JSON .*line 2"):
        read_json_text(tmp_path / "x")
