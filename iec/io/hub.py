"""Folders of the Hugging Face hub: from its local cache, or fetched there where that is allowed."""

from collections.abc import Sequence
from pathlib import Path

from iec.errors import WeightsError
from iec.io.download import offline


def hub_folder(repository: str, revision: str | None, patterns: Sequence[str], setting: str) -> Path:
    """The files of a hub repository that match ``patterns``, from the local hub cache or fetched there.

    Only those: never a pickle. setting: what takes a folder instead, for the message, as ``model.weights=DIR``. Raises
    `WeightsError`, at once where offline is asked for and the cache has none.
    """
    from huggingface_hub import snapshot_download  # reads its environment when it is imported
    from huggingface_hub.errors import HTTPError as HubError  # its client's: refusals and broken connections alike

    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns=list(patterns), local_files_only=offline())
    except (HubError, OSError, ValueError) as error:  # nothing cached is an OSError, a malformed name a ValueError
        at = f" --revision {revision}" if revision else ""
        files = " ".join(f"--include '{pattern}'" for pattern in patterns)
        raise WeightsError(
            f"{repository} is no folder here, is not in the hub's cache and could not be fetched ({type(error).__name__}). "
            "On a machine with access, its licence accepted on its page where it has one to accept:\n"
            f"    hf download {repository}{at} {files}\n"
            f"and copy the folder that it names: {setting}"
        ) from error
    return Path(folder)
