"""Where calibrations are kept: one file for each set of facts that it was made from."""

from pathlib import Path
from typing import Any

from iec.files import canonical_hash


def artifact_path(root: Path, kind: str, metadata: dict[str, Any]) -> Path:
    """ROOT/KIND-HASH.safetensors, with the hash of all the facts, so that another model, timetable or option is another file."""
    return root / f"{kind}-{canonical_hash(metadata)[:16]}.safetensors"
