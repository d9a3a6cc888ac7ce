"""What a paper gives for a row of a table, and how it is known."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iec.errors import ConfigError

EVIDENCE = {
    "known": "read in the primary source",
    "secondary": "from a secondary summary that quotes the paper",
    "review": "from a published review of the paper",
    "unknown": "not known to us",
}


@dataclass(frozen=True)
class Published:
    """A value that a paper gives for a row; None where it is not known. evidence: a key of `EVIDENCE`."""

    value: float | None
    evidence: str

    def __str__(self) -> str:
        return "?" if self.value is None else f"{self.value:g} ({self.evidence[0]})"


def published_values(entry: Mapping[str, Mapping[str, list[Any]]]) -> dict[str, dict[str, Published]]:
    """``label: {FID: [4.32, secondary]}``. Raises `ConfigError` for evidence of no known kind."""
    values = {label: {column: Published(*pair) for column, pair in columns.items()} for label, columns in entry.items()}
    for label, columns in values.items():
        for column, value in columns.items():
            if value.evidence not in EVIDENCE or (value.value is None) != (value.evidence == "unknown"):
                raise ConfigError(
                    f"published: {label}: {column}: [{value.value}, {value.evidence}] needs one of {', '.join(EVIDENCE)}, and null "
                    "with unknown."
                )
    return values
