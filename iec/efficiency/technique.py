"""What an efficiency technique is: from a model and the steps of a run to the network that the sampler calls."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from iec.efficiency.cost import Cost
from iec.errors import ConfigError, IECError
from iec.io.files import sha256
from iec.models import Card, Model
from iec.sampling.network import Network
from iec.sampling.solver import Solver
from iec.sampling.timetable import Timetable

BUILT_IN = ("iec.efficiency.techniques", "iec.efficiency.added_errors")
"""The modules whose techniques are versioned with this package."""


@dataclass(frozen=True)
class Prepared:
    """A network ready to be sampled.

    cost: of its calls, where it is known. refresh: the refresh steps, from a technique that finds them in `Technique.prepare`
    (``refresh_found_by_prepare``); else None.
    """

    network: Network
    cost: Cost | None = None
    refresh: frozenset[int] | None = None


class Technique(ABC):
    """An efficiency technique: a frozen dataclass whose fields are the keys of its configuration (``_target_`` names the class).

    Fields are checked in ``__post_init__``, by `ConfigError`. Only `prepare` has to be written. The sampler needs no change:
    a network is told in every call which step it is on (`iec.sampling.network.Step`) and what it may reuse, and keeps nothing
    itself.
    """

    simulated: ClassVar[bool] = False
    """Whether the time of a run says nothing about the technique, because its arithmetic is only imitated."""

    @property
    def refresh_found_by_prepare(self) -> bool:
        """Whether the refresh steps come with what `prepare` returns; `refresh` then gives None."""
        return False

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

    def identity(self, card: Card, num_steps: int) -> dict[str, Any]:
        """JSON values: what the bytes of an image depend on. See `identity_of` for what is added to it."""
        return {"technique": type(self).__qualname__}


def identity_of(technique: Technique, card: Card, num_steps: int) -> dict[str, Any]:
    """The technique's own identity; for one that is not built in also its class, all its fields and the sha256 of its file, so
    that images of an earlier version of it are never taken for those of this one.
    """
    own, identity = type(technique), technique.identity(card, num_steps)
    if own.__module__ in BUILT_IN:
        return identity
    fields: dict[str, Any] = asdict(technique)  # type: ignore[call-overload]  # technique_of took dataclasses only
    source = sha256(Path(inspect.getfile(own)))
    return {**identity, "class": f"{own.__module__}.{own.__qualname__}", "fields": fields, "source": source}


def technique_of(config: Mapping[str, Any]) -> Technique:
    """The technique that a configuration of the group ``efficiency`` describes. Raises `ConfigError`."""
    values = {key: config[key] for key in config if key != "name"}
    try:
        technique = instantiate(values, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, IECError):
            raise error.__cause__ from None
        raise ConfigError(f"efficiency={config.get('name')} cannot be made from its configuration: {error}") from error
    if not isinstance(technique, Technique):
        raise ConfigError(
            f"efficiency={config.get('name')}: {config.get('_target_')} is not a technique. Let _target_ name a subclass of "
            "iec.Technique."
        )
    if "__dataclass_params__" not in vars(type(technique)) or not type(technique).__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ConfigError(f"{config.get('_target_')} has to be a frozen dataclass: write @dataclass(frozen=True) above the class.")
    return technique
