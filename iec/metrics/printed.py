"""What the command prints of scores, as Markdown and JSON."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

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
    lines = [f"| {record['source']['label']} | value | 95 % interval | N |", "|---|---|---|---|"]
    for entry in (entry for own in (record, *record["beside"]) for entry in own["scores"].values()):
        lines.append(f"| {entry['label']} | {entry['value']:.6g} | {_interval(entry)} | {entry['n']} |")
    return "\n".join([*lines, *_verdicts(record.get("gate", []))])


def describe(evaluation: Protocol) -> str:
    """One line: name, what it prints, the scores it gives and can give."""
    more = f"; on request: {', '.join(evaluation.on_request)}" if evaluation.on_request else ""
    return f"{evaluation.name:20} labelled ({evaluation.label}): {', '.join(evaluation.default)}{more}"


def _verdicts(verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a bound, and the verdict over all."""
    if not verdicts:
        return []
    lines = ["", "| bound | value | 95 % interval | verdict |", "|---|---|---|---|"]
    for verdict in verdicts:
        said = "pass" if verdict["passed"] else "FAIL"
        lines.append(f"| {verdict['bound']} | {verdict['value']:.6g} | {_interval(verdict)} | {said} |")
    return [*lines, "", f"gate {'passed' if all(verdict['passed'] for verdict in verdicts) else 'FAILED'}"]


def _interval(entry: Mapping[str, Any]) -> str:
    return "" if entry["low"] is None else f"{entry['low']:.4g} .. {entry['high']:.4g}"
