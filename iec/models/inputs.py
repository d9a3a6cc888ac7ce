"""What a network of diffusers is told beside the state and the timestep, where that is more than one tensor."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from iec.errors import ConfigError


@dataclass(frozen=True)
class Conditioning:
    """Keyword arguments of the network's forward, in place of a bare ``cond``: text embeddings with the pooled ones and the
    sizes of Stable Diffusion XL, the residuals of a ControlNet, class labels.

    arguments: tensors [B, ..] with one entry an image, None, and dictionaries and sequences of these. ``len`` is B and an index
    chooses images, as of a tensor. Raises `ConfigError`, by name, for anything else and for tensors of different B.
    shared: what all images have in common, of any kind: the positions of FLUX's tokens.
    """

    arguments: Mapping[str, Any]
    shared: Mapping[str, Any] = field(default_factory=dict)
    __iter__ = None  # with an index and no end, Python would iterate for ever

    def __post_init__(self) -> None:
        for name, value in self.arguments.items():
            for leaf in _leaves(value):
                if not isinstance(leaf, Tensor) or not leaf.ndim or len(leaf) != len(self):
                    told = f"a tensor {list(leaf.shape)}" if isinstance(leaf, Tensor) else f"{leaf!r}"
                    raise ConfigError(
                        f"The network is given {told} as {name}, and caching and calibration pass on what has one entry for each "
                        f"of the {len(self)} inputs. Leave that out of the pipeline, or apply the correction alone."
                    )

    def __len__(self) -> int:
        return next((len(leaf) for leaf in _leaves(self.arguments) if isinstance(leaf, Tensor) and leaf.ndim), 0)

    def __getitem__(self, images: Any) -> "Conditioning":
        return Conditioning(_mapped(self.arguments, lambda tensor: tensor[images]), self.shared)

    def tensors(self) -> list[Tensor]:
        """All of them, in order."""
        return [leaf for leaf in _leaves([self.arguments, self.shared]) if isinstance(leaf, Tensor)]

    def followed_by(self, other: "Conditioning") -> "Conditioning":
        """That of these images and then of those of ``other``. Raises `ConfigError` if they are told things of other sizes."""
        pairs = list(zip(_leaves(self.arguments), _leaves(other.arguments), strict=True))
        if any(mine.shape[1:] != theirs.shape[1:] for mine, theirs in pairs):
            raise ConfigError("The two branches of guidance are told texts of different lengths. Make the negative prompt as long.")
        joined = iter([torch.cat(pair) for pair in pairs])
        return Conditioning(_mapped(self.arguments, lambda _: next(joined)), self.shared)


def _leaves(value: Any) -> Iterator[Any]:
    """What is neither None nor made of others."""
    if isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(item)
    elif value is not None:
        yield value


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, change) for item in value)
    return None if value is None else change(value)
