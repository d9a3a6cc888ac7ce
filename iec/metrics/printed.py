"""What the command prints of scores, as Markdown and JSON."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from iec.io.markdown import markdown_table
from iec.metrics.protocol import Protocol


def without_nan(value: Any) -> Any:
    """None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def table(record: dict[str, Any]) -> str:
    """Markdown of a record as JSON: a line a score, those of the protocols beside it too, then the verdicts of a gate."""
    scores = [score for own in (record, *record["beside"]) for score in own["scores"].values()]
    body = [[score["label"], f"{score['value']:.6g}", _interval(score), str(score["n"])] for score in scores]
    return markdown_table([record["source"]["label"], "value", "95 % interval", "N"], body) + _verdicts(record.get("gate", []))


def describe(protocol: Protocol) -> str:
    """One line: name, what it prints, the scores it gives and can give."""
    more = f"; on request: {', '.join(protocol.on_request)}" if protocol.on_request else ""
    return f"{protocol.name:20} labelled ({protocol.label}): {', '.join(protocol.default)}{more}"


def _verdicts(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """A line a bound, and the verdict over all."""
    if not verdicts:
        return ""
    body = [[v["bound"], f"{v['value']:.6g}", _interval(v), "pass" if v["passed"] else "FAIL"] for v in verdicts]
    bounds = markdown_table(["bound", "value", "95 % interval", "verdict"], body)
    return f"\n\n{bounds}\n\ngate {'passed' if all(v['passed'] for v in verdicts) else 'FAILED'}"


def _interval(entry: Mapping[str, Any]) -> str:
    return "" if entry["low"] is None else f"{entry['low']:.4g} .. {entry['high']:.4g}"
