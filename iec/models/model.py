"""A model: its UNet or transformer, decoder and conditioning on a device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iec.errors import NonFiniteError
from iec.models.cards import Card
from iec.models.conditioning import Conditioner
from iec.models.decoder import Decoder
from iec.models.ideal import IdealNetwork
from iec.models.unet import ModuleNetwork, network_of
from iec.sampling.guidance import guided, num_branches
from iec.sampling.network import Network


@dataclass(frozen=True)
class Model:
    """A UNet in evaluation mode on its device, its ``card``, and for latent and conditional models the decoder, the conditioner and
    the guidance w. identity: JSON values that tell it from every other model, see `iec.models.source.Source.identity`. A
    transformer, or the `IdealNetwork` of an ideal model, stands in place of the UNet.
    """

    card: Card
    unet: nn.Module
    identity: Mapping[str, Any]
    device: torch.device
    guidance: float | None = None
    decoder: Decoder | None = None
    conditioner: Conditioner | None = None

    @property
    def weights_hash(self) -> str:
        return self.identity["weights"]

    @property
    def network(self) -> ModuleNetwork | IdealNetwork:
        """The full-precision network, without guidance."""
        return self.unet if isinstance(self.unet, IdealNetwork) else network_of(self.unet)

    @property
    def branches(self) -> int:
        """Branches that the UNet evaluates for one image: 2 with guidance, else 1."""
        return num_branches(self.guidance)

    def guided(self, network: Network) -> Network:
        """``network`` with guidance around it, if the model has a guidance scale; this is what is sampled."""
        return guided(network, self.guidance)

    def cond(self, indices: Sequence[int]) -> Tensor | None:
        """Conditioning of the images ``indices``, [B, 2, tokens, width] or labels [B, 2] (unconditional, conditional); None
        without.
        """
        return None if self.conditioner is None else self.conditioner.branches(indices, self.device, self.network.dtype)

    def decode(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] from the sampler's last state; the identity for a pixel model. Raises `NonFiniteError`."""
        if self.decoder is None:
            return x
        images = self.decoder(x)
        if not bool(torch.isfinite(images).all()):
            raise NonFiniteError("The decoder made images that are not finite. Use a wider dtype, e.g. model.dtype=float32.")
        return images
