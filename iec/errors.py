"""Typed errors. Every message ends with the way out."""

from dataclasses import fields
from numbers import Real
from types import NoneType, UnionType
from typing import Any, get_args

PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "None"}
"""The types of fields that `require_fields` looks at, and what they are called."""


class IECError(Exception):
    """Base of all errors this package raises on purpose."""


class ConfigError(IECError, ValueError):
    """A value that cannot be run: unknown, out of range, or contradicting another one."""


class MismatchError(ConfigError):
    """A technique and a model that do not go together, each fine with others."""


class DeviceError(IECError):
    """The requested device does not exist on this machine."""


class WeightsError(IECError):
    """Model weights are missing, truncated, or belong to another architecture."""


class ArtifactError(IECError):
    """A stored artefact (calibration, statistics) is missing, damaged, or was made from something else."""


class DatasetError(IECError):
    """A data set is missing or is not what it claims to be."""


class StoreError(IECError):
    """The output folder cannot be used: another cell lives there, it is not writable, or the disk is full."""


class NonFiniteError(IECError):
    """The network returned NaN or infinity; nothing of the batch was written."""


class MetricError(IECError):
    """Images or statistics that cannot be scored."""


def require_type(name: str, value: object, kind: type, way_out: str) -> None:
    """Raises `ConfigError` unless ``value``, the argument ``name`` of a public function, is a ``kind``. way_out: what to give."""
    if not isinstance(value, kind):
        given = f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"
        raise ConfigError(f"{name} has to be a {kind.__name__}, and is {given}. Give {way_out}.")


def require_fields(config: Any, group: str) -> None:
    """Raises `ConfigError` unless each field of the dataclass ``config`` that is declared as a number, a truth value or text, or
    as a union of these and None, holds one. A whole number is a number too, True is none. group: how the fields' names begin.
    """
    for field in fields(config):
        kinds = get_args(field.type) if isinstance(field.type, UnionType) else (field.type,)
        value = getattr(config, field.name)
        number = float in kinds and isinstance(value, Real) and not isinstance(value, bool)
        if PLAIN.keys() >= set(kinds) and not number and type(value) not in kinds:
            raise ConfigError(f"{group}{field.name}={value!r} must be {' or '.join(PLAIN[kind] for kind in kinds)}.")
