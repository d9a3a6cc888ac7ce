"""A UNet of diffusers as a network of the sampler."""

import torch
from torch import Tensor, nn

from iec.models.inputs import Conditioning
from iec.sampling.network import FeatureCache, Prediction, Step


class UNetNetwork:
    """A diffusers UNet (or any module called as ``module(x, t).sample``) as a `Network`, in the module's own dtype.

    cond: class labels for a UNet2DModel, text embeddings [B, tokens, width] for a UNet2DConditionModel; or a `Conditioning`, of
    any network of diffusers.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(False)
        parameter = next(module.parameters())
        self.dtype, self.device = parameter.dtype, parameter.device

    def __call__(
        self, x: Tensor, step: Step, cond: Tensor | Conditioning | None = None, cache: FeatureCache | None = None
    ) -> Prediction:
        t = torch.full((len(x),), step.timestep, device=x.device)
        if isinstance(cond, Conditioning):
            return Prediction(self.module(x.to(self.dtype), timestep=t, **cond.arguments).sample)
        extra = () if cond is None else (cond,)
        return Prediction(self.module(x.to(self.dtype), t, *extra).sample)


def parameter_bytes(module: nn.Module) -> int:
    """Bytes of all parameters as they are stored."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
