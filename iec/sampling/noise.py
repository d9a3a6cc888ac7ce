"""Noise that belongs to an image: it depends on (seed, n) alone, not on batch, order, process or device."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from iec.errors import ConfigError


def require_key(name: str, number: object) -> None:
    """Raises `ConfigError` for what can be no part of the key of a `Noise`."""
    if not isinstance(number, Integral) or not 0 <= int(number) < 2**64:
        raise ConfigError(f"{name}={number!r} must be a whole number of 0 .. 2^64 - 1.")


@dataclass(frozen=True)
class Noise:
    """Gaussian noise of the images ``indices`` (n), each of ``shape`` (C, H, W). Raises `ConfigError` for a seed or an index that
    is no whole number of 0 .. 2^64 - 1.

    Counter-based: the Philox key is (seed, n) and the counter starts at the stream number (0 for x_T, i + 1 for the noise of step
    i), so that any draw can be made alone and no draw shifts another. Drawn on the CPU in float64, then cast. (torch's CPU
    generator keeps 32 bits of its seed, so that two of 50,000 images would share their noise in one run out of four.)
    """

    seed: int
    indices: tuple[int, ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        require_key("seed", self.seed)
        for n in self.indices:
            require_key("image index", n)

    def initial(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
        """x_T [B, C, H, W] ~ N(0, I)."""
        return self._draw(0, dtype, device)

    def of_step(self, i: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
        """z of sampling step i, [B, C, H, W]: the same however often the step is evaluated."""
        return self._draw(i + 1, dtype, device)

    def of(self, images: Sequence[int]) -> "Noise":
        """Of these of the images, by their place in the batch."""
        return replace(self, indices=tuple(self.indices[b] for b in images))

    def _draw(self, stream: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        draws = [
            np.random.Generator(
                np.random.Philox(key=np.array([self.seed, n], np.uint64), counter=np.array([0, 0, 0, stream], np.uint64))
            ).standard_normal(self.shape)
            for n in self.indices
        ]
        return torch.from_numpy(np.stack(draws)).to(device=device, dtype=dtype)
