"""The constructor of a scheduler of IEC: the arguments of diffusers' scheduler and ours, and its configuration."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from diffusers.configuration_utils import register_to_config

from iec.pipelines.compatibility import plain
from iec.sampling.placement import CachedSteps, LastStep


def _settings(
    preset: str = "paper",
    iterations: int | None = None,
    lambdas: float | Sequence[float] | None = None,
    tolerance: float | None = 0.0,
    criterion: str | None = None,
    norm: str | None = None,
    placement: str = "all_steps",
    fraction: float | None = None,
    count: int | None = None,
    steps: Sequence[int] | None = None,
    cached_steps: CachedSteps = "skip",
    last_step: LastStep = "correct",
) -> None:
    """The signature that is added to that of a scheduler of diffusers."""


OURS = tuple(inspect.signature(_settings).parameters)
"""Their names."""


def constructor(parent: Any, **added: Any) -> Any:
    """``__init__`` of a class that corrects the steps of ``parent``, a scheduler of diffusers: the arguments of its ``__init__``,
    then ours. added: other defaults of ours, and further arguments by their defaults.

    All of them are kept in ``config``, as JSON stores them. Before the parent's ``__init__``, ``self.require_valid()`` may refuse
    what cannot be run.
    """
    ours = {p.name: p.replace(default=added.pop(p.name, p.default)) for p in inspect.signature(_settings).parameters.values()}
    more = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=value) for name, value in added.items()]
    theirs = inspect.signature(parent).parameters
    self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.Signature([self, *theirs.values(), *ours.values(), *more])

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        signature.bind(self, *args, **kwargs)
        self.register_to_config(**{key: plain(value) for key, value in self.config.items() if not key.startswith("_")})
        self.require_valid()
        # by keyword: diffusers would note positional arguments down as defaults, and lose them when the scheduler is saved
        parent.__init__(self, **kept(parent, self.config))
        self.prepare()

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    return register_to_config(__init__)


def kept(parent: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a scheduler of the class ``parent`` with this ``config`` is made with. diffusers' ``from_config`` drops values that are
    noted as defaults, also where they were changed after construction, as some pipelines do.
    """
    return {key: config[key] for key in inspect.signature(parent).parameters if key in config}
