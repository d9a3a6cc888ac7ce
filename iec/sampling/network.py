"""What the sampling loop asks of a network, and how its calls are counted.

A network is any callable ``network(x, step, cond, cache) -> Prediction``. All that it may depend on is in the arguments:
no network remembers which step it is on.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, replace
from operator import itemgetter
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from iec.errors import ConfigError, NonFiniteError

Mode = Literal["full", "cached"]


@dataclass(frozen=True)
class Step:
    """One network call.

    * index: sampling index i = 0 .. T-1, 0 is the noisiest; per-step quantizers are read at this index.
    * timestep: training timestep fed to the network. tau_i, except for the second evaluation of Heun's rule.
    * mode: ``full`` evaluates everything, ``cached`` only the path around the cached feature.
    * correction: 0 for the ordinary call of the step, k for the k-th correction.
    """

    index: int
    timestep: int
    mode: Mode = "full"
    correction: int = 0


@dataclass(frozen=True)
class FeatureCache:
    """What cached steps reuse, or forecast from. Owned by the sampling loop, which renews it after every call (`renewed`).

    feature: of the last refresh, [B, ...], an entry an image. step: the step it came from. probe: what else the network keeps of
    that call, [B, ...]; None without. earlier: of the refreshes before, the newest first, without ``earlier`` of their own: as many
    as the network asks for (`Prediction.history`). refreshed: where images refresh at steps of their own, the index of the step of
    each; None: that of ``step`` for all. An image that has fewer features than others repeats its oldest.
    """

    feature: Tensor
    step: Step
    probe: Tensor | None = None
    earlier: tuple["FeatureCache", ...] = ()
    refreshed: tuple[int, ...] | None = None

    @property
    def stored(self) -> tuple["FeatureCache", ...]:
        """Of each refresh, the newest first."""
        return replace(self, earlier=()), *self.earlier

    def index_of(self, image: int) -> int:
        """The index of the step that the feature of this image came from."""
        return self.step.index if self.refreshed is None else self.refreshed[image]

    def changed(
        self, change: Callable[[Tensor], Tensor], probes: bool = True, images: Sequence[int] | None = None
    ) -> "FeatureCache":
        """Every feature, and with ``probes`` every probe, replaced by ``change`` of it. images: the image that each entry is then
        of, where ``change`` selects, orders or repeats them; None: as before.
        """
        probe = change(self.probe) if probes and self.probe is not None else self.probe
        earlier = tuple(cache.changed(change, probes, images) for cache in self.earlier)
        refreshed = self.refreshed
        if refreshed is not None and images is not None:
            refreshed = tuple(refreshed[b] for b in images)
        return FeatureCache(change(self.feature), self.step, probe, earlier, refreshed)

    def of(self, images: Tensor) -> "FeatureCache":
        """Of these images alone, int64 [B']."""
        return self.changed(itemgetter(images), images=images.tolist())

    def after(self, cache: "FeatureCache | None", history: int) -> "FeatureCache":
        """This in front of what ``cache`` stores, of which at most ``history`` are kept.

        What was stored by this step or a later one is left out: a correction replaces the feature of its own step, and steps that
        are made again (a restart) do not look at what lies ahead of them.
        """
        before = () if cache is None else tuple(stored for stored in cache.stored if stored.step.index < self.step.index)
        return replace(self, earlier=before[:history])

    @staticmethod
    def joined(parts: Sequence["FeatureCache"], order: Tensor) -> "FeatureCache":
        """One of the images of all ``parts``, one part after the other, put into ``order``, int64 [B]."""
        count = max(len(part.stored) for part in parts)
        levels = zip(*[(*part.stored, *[part.stored[-1]] * (count - len(part.stored))) for part in parts], strict=True)
        newest, *earlier = [_joined(level, order) for level in levels]
        return replace(newest, earlier=tuple(earlier))


@dataclass(frozen=True)
class Prediction:
    """eps [B, ...] like x, in the network's dtype.

    feature, probe: [B, ...], what a full call of a caching network leaves for cached ones, see `FeatureCache`. history: how many
    features of earlier refreshes it wants beside this one.
    """

    eps: Tensor
    feature: Tensor | None = None
    probe: Tensor | None = None
    history: int = 0


def _joined(parts: Sequence[FeatureCache], order: Tensor) -> FeatureCache:
    """`FeatureCache.joined` of parts without ``earlier``."""
    indices = [part.index_of(b) for part in parts for b in range(len(part.feature))]
    refreshed = tuple(indices[b] for b in order.tolist())
    step = max((part.step for part in parts), key=lambda step: step.index)
    probes = [part.probe for part in parts if part.probe is not None]
    return FeatureCache(
        torch.cat([part.feature for part in parts])[order],
        step,
        torch.cat(probes)[order] if probes else None,
        refreshed=None if set(refreshed) == {step.index} else refreshed,
    )


def renewed(cache: FeatureCache | None, prediction: Prediction, step: Step, history: int = 0) -> FeatureCache | None:
    """The cache after a call at ``step``: as it was, or with the feature that the call made in front. history: how many features of
    earlier refreshes are kept at least.
    """
    if prediction.feature is None:
        return cache
    return FeatureCache(prediction.feature, step, prediction.probe).after(cache, max(history, prediction.history))


class Network(Protocol):
    """Predicts the noise in x [B, C, H, W] at ``step``; ``cond`` [B, ...] is the conditioning of each image: a tensor, or of some
    networks more (`iec.models.inputs.Conditioning`).
    """

    def __call__(self, x: Tensor, step: Step, cond: Any = None, cache: FeatureCache | None = None) -> Prediction: ...


def require_network(network: Any) -> None:
    """Raises `ConfigError` for what is no `Network`: a module that is called in another way, as those of diffusers, or a class."""
    kind = type(network).__name__
    if isinstance(network, nn.Module) and "step" not in inspect.signature(network.forward).parameters:
        raise ConfigError(
            f"network is a {kind}, which is not called as an iec.Network is, network(x, step, cond, cache). Give "
            "iec.UNetNetwork(unet) for a UNet of diffusers, or what iec.quantize returns."
        )
    if isinstance(network, type) or not callable(network):
        given = f"the class {network.__name__}" if isinstance(network, type) else f"a {kind}"
        raise ConfigError(f"network has to be an iec.Network, and is {given}. Give e.g. model.network, or iec.UNetNetwork(unet).")


Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]
"""From a function of tensors alone to a graph that computes the same, e.g. `torch.compile`."""


@runtime_checkable
class Compilable(Network, Protocol):
    """A network with a compiled form. What it computes from tensors alone becomes graphs, one for each mode; what depends on the
    numbers of the step stays outside, so that no step is a graph of its own.
    """

    def compiled(self, compiler: Compiler) -> Network:
        """The same on graphs; this one is left as it is. Raises `ConfigError` if it cannot be."""


def compiled_form(network: Network, compiler: Compiler) -> Network:
    """Of a `Compilable`. Raises `ConfigError` for another network."""
    if not isinstance(network, Compilable):
        raise ConfigError(
            f"A {type(network).__name__} has no compiled form. Use it as it is (model.compile=false), or give it a method "
            "`compiled`, see iec.sampling.network.Compilable."
        )
    return network.compiled(compiler)


@dataclass
class Calls:
    """Network calls of a run by kind, in images: one call on a batch of B images counts B.

    correction: full calls of corrections. cached_correction: those that reuse a cached feature.
    """

    full: int = 0
    cached: int = 0
    correction: int = 0
    cached_correction: int = 0

    @property
    def total(self) -> int:
        return self.full + self.cached + self.correction + self.cached_correction

    def add(self, step: Step, images: int) -> None:
        kind = str(step.mode)
        if step.correction:
            kind = "correction" if kind == "full" else "cached_correction"
        setattr(self, kind, getattr(self, kind) + images)

    def __add__(self, other: "Calls") -> "Calls":
        return Calls(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass
class CountingNetwork:
    """Counts the calls of a network."""

    network: Network
    calls: Calls = field(default_factory=Calls)

    def __call__(self, x: Tensor, step: Step, cond: Tensor | None = None, cache: FeatureCache | None = None) -> Prediction:
        self.calls.add(step, len(x))
        return self.network(x, step, cond, cache)


def require_finite(x: Tensor, step: Step) -> None:
    """Raises `NonFiniteError` naming the step if x has a NaN or an infinity."""
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError(
            f"The network returned NaN or infinity at step {step.index} (timestep {step.timestep}, {step.mode} call, "
            f"correction {step.correction}). Nothing of this batch was written. Check the weights and the calibration, or "
            "use a wider network dtype."
        )
