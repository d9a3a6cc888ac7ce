"""What an efficiency technique is: from a model and the steps of a run to the network that the sampler calls."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from iec.efficiency.cost import Cost
from iec.errors import ConfigError
from iec.io.components import component_of, with_source
from iec.models import Card, Model
from iec.sampling.adaptive import AdaptiveRefresh
from iec.sampling.network import Network, require_network
from iec.sampling.solver import Solver
from iec.sampling.timetable import Timetable

BUILT_IN = ("iec.efficiency.techniques", "iec.efficiency.added_errors", "iec.efficiency.engine.technique")
"""The modules whose techniques are versioned with this package."""

FIRST = frozenset({0})
"""The step that refreshes whatever the schedule: all that is known of refresh steps before `Technique.prepare` finds them."""


@dataclass(frozen=True)
class Prepared:
    """A network ready to be sampled.

    cost: of its calls, where it is known. refresh: the refresh steps, from a technique that finds them in `Technique.prepare`
    (``refresh_found_by_prepare``); else None. own_weights: the network uses none of the model's UNet, which may be released.
    calibration_calls: network calls that finding the network takes, images times steps, counted as `iec.sampling.network.Calls`
    counts (under guidance an image is one), whether they were made now or a calibration on disk was taken; None: not known.
    Raises `ConfigError` for what is no network.
    """

    network: Network
    cost: Cost | None = None
    refresh: frozenset[int] | None = None
    own_weights: bool = False
    calibration_calls: int | None = 0

    def __post_init__(self) -> None:
        require_network(self.network)


class Technique(ABC):
    """An efficiency technique: a frozen dataclass whose fields are the keys of its configuration (``_target_`` names the class).

    Fields are checked in ``__post_init__``, by `ConfigError`. Only `prepare` has to be written. The sampler needs no change:
    a network is told in every call which step it is on (`iec.sampling.network.Step`) and what it may reuse, and keeps nothing
    itself.
    """

    @property
    def arithmetic(self) -> str:
        """Of the products, where it is no plain float arithmetic of torch: ``int8``, an engine's name, or ``sim.`` where it is only
        imitated, so that the time of a run says nothing about the technique. Tables write it beside the seconds.
        """
        return ""

    @property
    def refresh_found_by_prepare(self) -> bool:
        """Whether the refresh steps come with what `prepare` returns; `refresh` then gives None."""
        return False

    @property
    def adaptive(self) -> AdaptiveRefresh | None:
        """What decides for each image at which steps it refreshes; `refresh` then gives {0}. None: nothing does."""
        return None

    @abstractmethod
    def prepare(self, model: Model, table: Timetable, artifacts: Path) -> Prepared:
        """The network for the steps of ``table``. Store slow results in the folder ``artifacts`` with `iec.io.artifacts.cached`:
        then one process of a run computes them, and the others load them.
        """

    def refresh(self, num_steps: int) -> frozenset[int] | None:
        """The steps that run the full network; the others are told to reuse a feature (``step.mode == "cached"``). None: all."""
        return None

    def check(  # noqa: B027  # most techniques have nothing to refuse
        self, card: Card, skeleton: Callable[[], nn.Module], sampler: Solver
    ) -> None:
        """Refuse, by `ConfigError`, what cannot be run, before any weights are loaded.

        skeleton: makes the UNet without data, on the device ``meta``; call it only if the check needs it, because it loads
        diffusers.
        """

    def require_compiles(self) -> None:
        """Raises `ConfigError` unless the network of `prepare` has a compiled form (`iec.sampling.network.Compilable`), which
        ``model.compile=true`` asks for. A technique whose network has one overrides this.
        """
        raise ConfigError(
            f"model.compile=true: {type(self).__name__} does not say that its network can be compiled. Use model.compile=false, or "
            "override `Technique.require_compiles`."
        )

    def identity(self, card: Card, num_steps: int) -> dict[str, Any]:
        """JSON values: what the bytes of an image depend on. See `identity_of` for what is added to it."""
        return {"technique": type(self).__qualname__}


def identity_of(technique: Technique, card: Card, num_steps: int) -> dict[str, Any]:
    """The technique's own identity; for one that is not built in also what `with_source` adds."""
    return with_source(technique.identity(card, num_steps), technique, BUILT_IN)


def technique_of(config: Mapping[str, Any]) -> Technique:
    """The technique that a configuration of the group ``efficiency`` describes. Raises `ConfigError`."""
    return component_of(config, "efficiency", Technique, "technique")  # type: ignore[type-abstract]
