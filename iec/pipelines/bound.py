"""What belongs to one pipeline and is in no copy of it."""

from typing import Any, NoReturn

from iec.errors import ConfigError


class Bound:
    """A copy of this, or of what holds it, would still act on the pipeline that it was made for: it cannot be copied or pickled."""

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise ConfigError(
            "iec.apply has put something under this pipeline, and a copy of it would still act on this one. Call iec.remove(pipe), "
            "then copy or pickle it, and call iec.apply on each."
        )
