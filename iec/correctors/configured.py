"""The corrector that a configuration describes."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from iec.errors import ConfigError
from iec.io.components import component_of, with_source
from iec.sampling.corrector import Corrector

BUILT_IN = (
    "iec.sampling.corrector",
    "iec.correctors.affine",
    "iec.correctors.dcw",
    "iec.correctors.es",
    "iec.correctors.es_search",
    "iec.correctors.restart",
    "iec.correctors.stepback",
    "iec.correctors.timeshift",
    "iec.correctors.unic",
)
"""The modules whose correctors are versioned with this package."""


def corrector_of(config: Mapping[str, Any]) -> Corrector:
    """Of the configuration group ``corrector``. Raises `ConfigError`."""
    corrector = component_of(config, "corrector", Corrector, "corrector")
    if hidden := sorted({field.name for field in fields(corrector)} & vars(Corrector).keys()):
        raise ConfigError(f"{config.get('_target_')} has fields with the names of hooks: {', '.join(hidden)}. Rename the fields.")
    return corrector


def identity_of(corrector: Corrector) -> dict[str, Any]:
    """The corrector's own identity; for one that is not built in also what `with_source` adds."""
    return with_source(corrector.identity(), corrector, BUILT_IN)
