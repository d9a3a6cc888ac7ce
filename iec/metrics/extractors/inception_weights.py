"""Where the weights of the Inception network of FID are, and how they come onto this machine.

One file under two names: the TensorFlow network "inception-2015-12-05" converted to PyTorch, by torch-fidelity (release v0.2.0) and
by pytorch-fid (release fid_weights); 95,628,359 bytes. Looked for, in this order: an explicit path, ``$IEC_INCEPTION_WEIGHTS`` (the
file or its folder), torch.hub's folder of checkpoints, where both packages keep it. Else it is fetched into that folder
(`iec.io.download.fetch`), unless ``HF_HUB_OFFLINE=1`` or ``IEC_OFFLINE=1``.
"""

import os
from pathlib import Path

import torch

from iec.errors import WeightsError
from iec.io.download import fetch
from iec.io.files import sha256
from iec.io.paths import user_path

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
NAMES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{NAMES[0]}"
VARIABLE = "IEC_INCEPTION_WEIGHTS"


def find_weights(given: Path | str | None = None, digest: str = SHA256) -> Path:
    """The verified weights file; fetched if it is nowhere and fetching is allowed.

    given: a file, or a folder that holds it; nothing else is tried then, nor when the environment variable is set. Raises
    `WeightsError` for a missing file, naming where it comes from, where it goes and its hash, and for a file of another hash.
    """
    given = given or os.environ.get(VARIABLE)
    if given:
        path = user_path(given)
        path = next((p for name in NAMES if (p := path / name).is_file()), path)
        if not path.is_file():
            raise WeightsError(f"{path} is not a file. {_way_out()}")
    else:
        home = checkpoints()
        path = next((p for name in NAMES if (p := home / name).is_file()), home / NAMES[0])
        if not path.is_file():
            try:
                fetch(URL, path, sha256=digest)
            except WeightsError as error:
                raise WeightsError(f"{error} {_way_out()}") from error
    if (actual := sha256(path)) != digest:
        raise WeightsError(f"{path} is damaged or another network: its SHA-256 is {actual[:12]}... . Delete it. {_way_out()}")
    return path


def checkpoints() -> Path:
    """torch.hub's folder, which follows ``TORCH_HOME``."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _way_out() -> str:
    home = checkpoints()
    return (
        f"Needed: {NAMES[0]} (or pytorch-fid's {NAMES[1]}, the same bytes), SHA-256 {SHA256}, from {URL}\n"
        f"    curl -L --create-dirs -o {home / NAMES[0]} {URL}\n"
        f"or put it anywhere and set {VARIABLE}=FILE. To sample without scores: metrics=none."
    )
