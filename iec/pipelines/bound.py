"""What belongs to one pipeline and is in no copy of it."""

from collections.abc import Callable
from typing import Any, NoReturn

from iec.errors import ConfigError


class Bound:
    """A copy of this, or of what holds it, would still act on the pipeline that it was made for: it cannot be copied or pickled."""

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise ConfigError(
            "iec.apply has put something under this pipeline, and a copy of it would still act on this one. Call iec.remove(pipe), "
            "then copy or pickle it, and call iec.apply on each."
        )


def bind(pipe: Any, **members: Any) -> Callable[[], None]:
    """Give a pipeline a class of its own, of the same name, that is `Bound` and has these ``members``: Python looks for how to copy
    and to call in the class alone. Returns what gives it its class back.
    """
    kind = type(pipe)
    own = type(kind.__name__, (Bound, kind), {**members, "__module__": kind.__module__, "__doc__": kind.__doc__})
    pipe.__class__ = own

    def release() -> None:
        if type(pipe) is own:
            pipe.__class__ = kind

    return release
