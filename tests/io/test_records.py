"""JSON that is read back into dataclasses."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from iec.errors import StoreError
from iec.io.files import write_json
from iec.io.records import ShapeError, parse, read_record


@dataclass(frozen=True)
class Inner:
    count: int
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    pairs: tuple[float, ...] = ()
    by_name: dict[str, Inner] = field(default_factory=dict)
    note: str | None = None
    flags: list[bool] | None = None
    free: Any = None


FULL = Outer("a", Inner(1, 2), (1.0, 2), {"b": Inner(3)}, "n", [True], {"any": [1, None]})


@pytest.mark.parametrize("value", [FULL, Outer("a", Inner(0))])
def test_what_was_written_is_read_back(tmp_path, value):
    write_json(tmp_path / "a.json", asdict(value))
    assert read_record(tmp_path / "a.json", Outer) == value
    assert parse(Outer, {"name": "a", "inner": {"count": 0}}) == Outer("a", Inner(0))  # fields with defaults


@pytest.mark.parametrize(
    "changes",
    [
        {"name": 1},
        {"name": None},
        {"inner": 1},
        {"inner": []},
        {"inner": {}},
        {"inner": {"count": 1.0}},
        {"inner": {"count": True}},
        {"inner": {"count": "1"}},
        {"inner": {"count": 1, "other": 1}},
        {"pairs": {"0": 1}},
        {"pairs": ["1"]},
        {"by_name": [1]},
        {"by_name": {"b": {}}},
        {"note": []},
        {"flags": [1]},
        {"unknown": 1},
    ],
)
def test_another_shape_is_refused(tmp_path, changes):
    value = {**asdict(FULL), **changes}
    with pytest.raises(ShapeError):
        parse(Outer, json.loads(json.dumps(value)))
    write_json(tmp_path / "a.json", value)
    assert read_record(tmp_path / "a.json", Outer) is None


@pytest.mark.parametrize("text", [b"", b"{", b"null", b"[]", b"1", b'"a"', b"{}", b"\xed\xa0\x80", b"[" * 100_000])
def test_a_file_of_another_kind_is_as_if_it_were_not_there(tmp_path, text):
    path = tmp_path / "a.json"
    assert read_record(path, Outer) is None
    path.write_bytes(text)
    assert read_record(path, Outer) is None
    assert read_record(path / "below a file", Outer) is None


def test_a_file_that_cannot_be_read_is_a_typed_error(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(StoreError, match=r"Cannot read .*a\.json: Is a directory"):
        read_record(tmp_path / "a.json", Outer)
