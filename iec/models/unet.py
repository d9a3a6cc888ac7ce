"""A module of diffusers as a network of the sampler: a UNet or a transformer."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from iec.models.inputs import Conditioning
from iec.sampling.network import Compiler, FeatureCache, Prediction, Step


class ModuleNetwork(ABC):
    """A module as a `Network`, in the module's own dtype. Every call is a full one."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(False)
        parameter = next(module.parameters())
        self.dtype, self.device = parameter.dtype, parameter.device
        self._graph: Callable[..., Tensor] | None = None

    def __call__(
        self, x: Tensor, step: Step, cond: Tensor | Conditioning | None = None, cache: FeatureCache | None = None
    ) -> Prediction:
        run = self._graph or self.eps
        return Prediction(run(x, torch.full((len(x),), step.timestep, device=x.device), cond))

    @abstractmethod
    def eps(self, x: Tensor, timesteps: Tensor, cond: Tensor | Conditioning | None) -> Tensor:
        """The predicted noise, for timesteps int64 [B]."""

    def compiled(self, compiler: Compiler) -> Self:
        """See `Compilable`."""
        other = copy.copy(self)
        other._graph = compiler(self.eps)
        return other


class UNetNetwork(ModuleNetwork):
    """A diffusers UNet (or any module called as ``module(x, t).sample``) as a `Network`.

    cond: class labels for a UNet2DModel, text embeddings [B, tokens, width] for a UNet2DConditionModel; or a `Conditioning`, of
    any network of diffusers. A timestep in it is the one that the network gets: FLUX counts them from 0 to 1.
    """

    def eps(self, x: Tensor, timesteps: Tensor, cond: Tensor | Conditioning | None) -> Tensor:
        if isinstance(cond, Conditioning):
            return self.module(x.to(self.dtype), **{"timestep": timesteps, **cond.arguments, **cond.shared}).sample
        extra = () if cond is None else (cond,)
        return self.module(x.to(self.dtype), timesteps, *extra).sample


class DiTNetwork(ModuleNetwork):
    """A DiTTransformer2DModel of diffusers as a `Network`.

    cond: class labels, int64 [B]; 1000 is the unconditional class. The module returns eps and, in as many channels more, a learned
    variance, which DDIM does not use: it is dropped, as diffusers' DiTPipeline drops it (Peebles & Xie, arXiv 2212.09748).
    """

    def eps(self, x: Tensor, timesteps: Tensor, cond: Tensor | Conditioning | None) -> Tensor:
        return self.module(x.to(self.dtype), timestep=timesteps, class_labels=cond).sample[:, : x.shape[1]]


def network_of(module: nn.Module) -> ModuleNetwork:
    """The network of a model's module: of a DiT, else of a UNet. By the name of its class: nothing is imported."""
    return DiTNetwork(module) if type(module).__name__ == "DiTTransformer2DModel" else UNetNetwork(module)


def parameter_bytes(module: nn.Module) -> int:
    """Bytes of all parameters as they are stored."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
