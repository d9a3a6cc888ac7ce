"""Stub, being written."""

from pathlib import Path


def hub_folder(repo_id: str, revision: str | None, patterns: list[str]) -> Path:
    raise NotImplementedError
