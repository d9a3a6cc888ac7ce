"""Errors of a known kind and size, added to what a network predicts: what a correction does about each can then be told.

They work on every model. On the ideal network (`iec.models.ideal`), which has no error of its own, the added one is all there is,
and the exact trajectory is known. Under guidance the error is in what each branch predicts.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iec.efficiency.cost import CallCost
from iec.efficiency.technique import Prepared, Technique
from iec.efficiency.techniques import FullPrecision
from iec.errors import ConfigError, MismatchError, require_fields
from iec.models import Card, Model
from iec.models.ideal import IdealNetwork
from iec.sampling.network import Compiler, FeatureCache, Network, Prediction, Step, compiled_form
from iec.sampling.noise import Noise, require_key
from iec.sampling.refresh import require_interval, uniform
from iec.sampling.solver import Solver
from iec.sampling.timetable import Timetable

Error = Callable[[Tensor, Tensor, Step], Tensor]
"""(eps, x, step) -> eps with the error; a pure function, like a network."""


class DisturbedNetwork:
    """``network`` with an error in its eps."""

    def __init__(self, network: Network, error: Error) -> None:
        self.network, self.error = network, error

    def __call__(self, x: Tensor, step: Step, cond: Tensor | None = None, cache: FeatureCache | None = None) -> Prediction:
        prediction = self.network(x, step, cond, cache)
        return replace(prediction, eps=self.error(prediction.eps, x, step))

    def compiled(self, compiler: Compiler) -> "DisturbedNetwork":
        """See `Compilable`; the error stays outside."""
        return DisturbedNetwork(compiled_form(self.network, compiler), self.error)


class StaleNetwork:
    """Full calls are those of ``network``; cached calls return the eps of the last refresh, whatever x is."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def __call__(self, x: Tensor, step: Step, cond: Tensor | None = None, cache: FeatureCache | None = None) -> Prediction:
        """Raises `ConfigError` for a cached call before any full one."""
        if step.mode == "full":
            eps = self.network(x, step, cond).eps
            return Prediction(eps, eps)
        if cache is None:
            raise ConfigError("A cached call needs the prediction of an earlier full call. Make the first step a refresh step.")
        return Prediction(cache.feature)

    def compiled(self, compiler: Compiler) -> "StaleNetwork":
        """See `Compilable`; of full calls, since cached ones make none."""
        return StaleNetwork(compiled_form(self.network, compiler))


@dataclass(frozen=True)
class AddedError(Technique):
    """The full-precision network with an error; its fields are the identity."""

    def require_compiles(self) -> None:
        """It has a compiled form."""

    def identity(self, card: Card, num_steps: int) -> dict[str, Any]:
        return {**super().identity(card, num_steps), **asdict(self)}

    def prepare(self, model: Model, table: Timetable, artifacts: Path) -> Prepared:
        prepared = FullPrecision().prepare(model, table, artifacts)
        return replace(prepared, network=self.disturbed(prepared.network))

    @abstractmethod
    def disturbed(self, network: Network) -> Network:
        """``network`` with the error."""


@dataclass(frozen=True)
class ErrorRounding(AddedError):
    """eps rounded to 2^bits levels, evenly spaced from the smallest to the largest value of the call's tensor (all its images).

    Raises `ConfigError` unless bits is a whole number of 1 .. 16.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        require_fields(self, "efficiency.")
        if not 1 <= self.bits <= 16:
            raise ConfigError(f"efficiency.bits={self.bits!r} must be a whole number of 1 .. 16.")

    def disturbed(self, network: Network) -> Network:
        return DisturbedNetwork(network, self.rounded)

    def rounded(self, eps: Tensor, x: Tensor, step: Step) -> Tensor:
        low, high = eps.aminmax()
        spacing = (high - low) / (2**self.bits - 1)
        return eps if spacing == 0 else low + ((eps - low) / spacing).round() * spacing


@dataclass(frozen=True)
class ErrorGain(AddedError):
    """eps times ``gain``. Raises `ConfigError` unless gain is in (0, 2]; 1 changes nothing."""

    gain: float = 1.01

    def __post_init__(self) -> None:
        require_fields(self, "efficiency.")
        if not 0 < self.gain <= 2:
            raise ConfigError(f"efficiency.gain={self.gain} is outside (0, 2]; 1 changes nothing.")

    def disturbed(self, network: Network) -> Network:
        return DisturbedNetwork(network, lambda eps, x, step: self.gain * eps)


@dataclass(frozen=True)
class ErrorNoise(AddedError):
    """eps + std z, z ~ N(0, I) of each image and step: the same for the same (seed, step, x), another one for any other x.

    std: in units of the noise that eps predicts, whose standard deviation is 1. The error is a pure function of the network's
    input, as rough as can be: the call of a correction sees another x and so another z, while two calls at the same x agree, in any
    batch, process or order. The other side of it: x that differ in their last bit (another device or batch size) have unrelated z.
    Both branches of guidance have the same x and so the same z, once in the guided eps. Raises `ConfigError`.
    """

    std: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        require_fields(self, "efficiency.")
        if not 0 <= self.std <= 10:
            raise ConfigError(f"efficiency.std={self.std} is outside [0, 10]; 0 changes nothing.")
        require_key("efficiency.seed", self.seed)

    def disturbed(self, network: Network) -> Network:
        return DisturbedNetwork(network, self.with_noise)

    def with_noise(self, eps: Tensor, x: Tensor, step: Step) -> Tensor:
        noise = Noise(self.seed, tuple(fingerprint(image) for image in x), tuple(eps.shape[1:]))
        return eps + self.std * noise.of_step(step.index, eps.dtype, eps.device)


def fingerprint(image: Tensor) -> int:
    """64 bits that tell the values of a tensor from any others."""
    values = image.detach().to("cpu", torch.float64).contiguous().numpy()
    return int.from_bytes(hashlib.blake2b(values.tobytes(), digest_size=8).digest())


@dataclass(frozen=True)
class ErrorStale(AddedError):
    """The eps of the last refresh reused, one in ``interval`` steps being a refresh: a cache of everything.

    Raises `ConfigError` unless the interval is a whole number of 1 .. T.
    """

    interval: int = 2

    def __post_init__(self) -> None:
        require_fields(self, "efficiency.")
        require_interval(self.interval)

    def refresh(self, num_steps: int) -> frozenset[int]:
        require_interval(self.interval, num_steps)
        return uniform(num_steps, self.interval)

    def prepare(self, model: Model, table: Timetable, artifacts: Path) -> Prepared:
        prepared = super().prepare(model, table, artifacts)
        cost = prepared.cost
        return replace(prepared, cost=None if cost is None else replace(cost, cached=CallCost()))

    def disturbed(self, network: Network) -> Network:
        return StaleNetwork(network)


@dataclass(frozen=True)
class ErrorSmooth(AddedError):
    """The ideal network's posterior variance times ``variance``: it averages over too many images, as smooth networks do.

    Of an ideal model only; raises `MismatchError` for others.
    """

    variance: float = 1.5

    def __post_init__(self) -> None:
        require_fields(self, "efficiency.")
        if not 0 < self.variance <= 1000:
            raise ConfigError(f"efficiency.variance={self.variance} is outside (0, 1000]; 1 changes nothing.")

    def check(self, card: Card, skeleton: Callable[[], nn.Module], sampler: Solver) -> None:
        if card.dataset is None:
            raise MismatchError(
                f"efficiency=error_smooth changes the posterior of an ideal network, and {card.name} is a trained one. Use "
                "model=ideal_fashion, or another error."
            )

    def disturbed(self, network: Network) -> Network:
        if not isinstance(network, IdealNetwork):
            raise ConfigError("ErrorSmooth changes the posterior of an `iec.models.ideal.IdealNetwork`. Use another error.")
        return network.with_variance(self.variance)
