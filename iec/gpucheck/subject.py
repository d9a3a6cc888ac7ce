"""A model of the paper with random weights, to be timed: its networks, inputs and solvers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from iec.efficiency.quantization import CalibrationCall, PTQConfig, QuantizedNetwork, calibrate, quantize_unet
from iec.gpucheck.models import tiny
from iec.gpucheck.part import Bench
from iec.models.architecture import build
from iec.models.cards import Card, card
from iec.models.decoder import Decoder
from iec.models.unet import ModuleNetwork, network_of
from iec.sampling.guidance import guided
from iec.sampling.network import Network, Step
from iec.sampling.noise import Noise
from iec.sampling.solver import Solver
from iec.sampling.timetable import Timetable

FIRST = Step(0, 500)


@dataclass(frozen=True)
class Subject:
    """card: at toy size a tiny one."""

    card: Card
    device: torch.device

    @classmethod
    def of(cls, name: str, bench: Bench) -> "Subject":
        return cls(tiny(name) if bench.toy else card(name), bench.device)

    @cached_property
    def unet(self) -> nn.Module:
        """Made on the device, where that takes no time."""
        return build(self.card.predictor, device=self.device)

    @property
    def indices(self) -> tuple[int, ...]:
        """Of a batch of the paper's size."""
        return tuple(range(self.card.batch_size))

    @cached_property
    def x(self) -> Tensor:
        return torch.randn(len(self.indices), *self.card.shape, device=self.device)

    def cond(self, dtype: torch.dtype = torch.float32) -> Tensor | None:
        """Of both branches of each image: random embeddings, or labels."""
        if self.card.takes_labels:
            return torch.zeros(len(self.indices), 2, dtype=torch.int64, device=self.device)
        tokens = self.card.tokens
        return None if tokens is None else torch.randn(len(self.indices), 2, *tokens, device=self.device, dtype=dtype)

    def to(self, dtype: torch.dtype, memory_format: torch.memory_format) -> ModuleNetwork:
        """The network of its module, which is moved there."""
        return network_of(nn.Module.to(self.unet, dtype=dtype, memory_format=memory_format))  # type: ignore[call-overload]

    def table(self, steps: int) -> Timetable:
        return Timetable.spaced(self.card.spacing, steps, self.card.schedule, final=self.card.final)

    def call(self, network: Network, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
        """One call at the paper's batch, under its guidance."""
        return torch.no_grad()(partial(guided(network, self.card.guidance), self.x, FIRST, self.cond(dtype)))

    def calls(self, network: Network, table: Timetable) -> Callable[[], object]:
        """A call at each step of ``table``, without a loop around it: of an unconditional model."""

        @torch.no_grad()
        def run() -> None:
            for i, (t, _) in enumerate(table.pairs):
                network(self.x, Step(i, t))

        return run

    def trajectory(self, network: Network, sampler: Solver) -> Callable[[], object]:
        """Of an unconditional model."""
        noise = Noise(0, self.indices, self.card.shape)

        def run() -> None:
            for _ in sampler.trajectory(network, noise, None, self.device):
                pass

        return run

    def quantized(self) -> QuantizedNetwork:
        """At W8A8, calibrated on noise at one step; of an unconditional model."""
        quantized = quantize_unet(self.unet, PTQConfig(calibration_images=1, scale_rule="max"), 1)
        calibrate(quantized, network_of(quantized.unet), [CalibrationCall(self.x[:1], FIRST, None)])
        return QuantizedNetwork(quantized)

    @cached_property
    def decoder(self) -> Decoder | None:
        """In float32, as it is sampled with; None for a pixel model."""
        if self.card.decoder is None:
            return None
        return Decoder(build(self.card.decoder, device=self.device), 1.0, self.card.resolution)
