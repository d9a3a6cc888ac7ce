"""Classes that a configuration names by ``_target_``, yours among them: made from it, checked, and told apart by their file."""

import inspect
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from iec.errors import ConfigError, IECError
from iec.io.files import sha256

T = TypeVar("T")


def component_of(config: Mapping[str, Any], group: str, base: type[T], noun: str) -> T:
    """What the configuration group ``group`` describes, a frozen dataclass that inherits from ``base``.

    noun: what it is called in messages, e.g. ``technique``. Raises `ConfigError`.
    """
    values = {key: config[key] for key in config if key != "name"}
    try:
        component = instantiate(values, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, IECError):
            raise error.__cause__ from None
        raise ConfigError(
            f"{group}={config.get('name')} cannot be made from its configuration: {_reason(error, config)}"
        ) from error
    if not isinstance(component, base):
        raise ConfigError(
            f"{group}={config.get('name')}: {config.get('_target_')} is not a {noun}. Let _target_ name a subclass of "
            f"{base.__module__}.{base.__qualname__}."
        )
    if "__dataclass_params__" not in vars(type(component)) or not type(component).__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ConfigError(f"{config.get('_target_')} has to be a frozen dataclass: write @dataclass(frozen=True) above the class.")
    return component


def _reason(error: InstantiationException, config: Mapping[str, Any]) -> str:
    """What went wrong, with the way out where the module of ``_target_`` is not found. Of a failed import, its own words,
    which Hydra leaves out.
    """
    cause = error.__cause__
    if not isinstance(cause, ImportError):
        return str(error)
    missing = getattr(cause.__cause__, "name", None)
    if missing is None or not str(config.get("_target_")).startswith(f"{missing}."):
        return str(cause)
    return (
        f"there is no module {missing}, of its _target_={config['_target_']}. If it is a file of yours, put the file's folder on "
        f"PYTHONPATH: PYTHONPATH=DIR iec run .., with {missing.replace('.', '/')}.py in DIR."
    )


def with_source(identity: dict[str, Any], component: Any, built_in: Collection[str]) -> dict[str, Any]:
    """The identity of a component; for one that is not of the modules ``built_in`` also its class, all its fields and the sha256 of
    its file, so that images of an earlier version of it are never taken for those of this one.
    """
    own = type(component)
    if own.__module__ in built_in:
        return identity
    source = sha256(Path(inspect.getfile(own)))
    return {**identity, "class": f"{own.__module__}.{own.__qualname__}", "fields": asdict(component), "source": source}
