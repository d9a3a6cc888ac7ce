"""All parts of the check, in the order in which they run: what is cheap and tells most comes first."""

from iec.errors import ConfigError
from iec.gpucheck import networks, options, same_bytes, scores, speed, waiting
from iec.gpucheck.part import Part

PARTS: tuple[Part, ...] = (networks.PART, options.PART, scores.PART, same_bytes.PART, waiting.PART, speed.PART)


def chosen(only: str | None, skip: str | None, parts: tuple[Part, ...] = PARTS) -> tuple[Part, ...]:
    """The parts named in ``only`` (all, if None) but those in ``skip``, each names with commas between.

    Raises `ConfigError` for an unknown name, and if no part is left.
    """
    names = [part.name for part in parts]
    wanted = _names(only, names, "--only") if only is not None else names
    left_out = _names(skip, names, "--skip") if skip is not None else []
    result = tuple(part for part in parts if part.name in wanted and part.name not in left_out)
    if not result:
        raise ConfigError("--only and --skip leave no part to measure. Choose fewer to skip, e.g. no --skip at all.")
    return result


def _names(given: str, names: list[str], option: str) -> list[str]:
    asked = given.split(",")
    if unknown := sorted(set(asked) - set(names)):
        raise ConfigError(f"{option}: there is no part {', '.join(unknown)}. Choose of {','.join(names)}.")
    return asked
