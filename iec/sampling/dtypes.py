"""Names of dtypes, as configurations have them and as torch has them."""

from collections.abc import Collection

import torch

from iec.errors import ConfigError

SOLVER_DTYPES = {"float64": torch.float64, "float32": torch.float32}
"""Of a solver's arithmetic."""


def dtype_name(given: torch.dtype | str, choices: Collection[str], key: str) -> str:
    """``float32`` for ``torch.float32``, ``"torch.float32"`` and ``"float32"``. key: what it is the value of, for the message.

    Raises `ConfigError` unless it is one of ``choices``.
    """
    name = str(given).removeprefix("torch.")
    if name not in choices:
        raise ConfigError(f"{key}={name}; choose {', '.join(choices)}.")
    return name
