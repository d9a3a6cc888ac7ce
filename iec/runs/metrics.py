"""The configuration group ``metrics``: which scores a cell is asked for."""

from dataclasses import dataclass

from omegaconf import DictConfig

from iec.errors import ConfigError
from iec.metrics.protocol import PROTOCOLS, protocol
from iec.models import Card

CHOICES = ("auto", "none", *PROTOCOLS)


@dataclass(frozen=True)
class Metrics:
    """The scores that a cell is asked for.

    protocol: a name of `iec.metrics.protocol.PROTOCOLS`. scores: names; None: the protocol's default ones. clip: a folder or hub id
    of the CLIP model of a CLIP score; None: no such score. bootstrap: resamples behind each interval; 0: no intervals. beside:
    other protocols, whose default scores stand beside; None: those of `Protocol.beside`, where their reference is there.
    """

    protocol: str
    scores: tuple[str, ...] | None
    clip: str | None
    bootstrap: int
    beside: tuple[str, ...] | None = None

    @property
    def protocols(self) -> tuple[str, ...]:
        """All, the cell's own first."""
        return (self.protocol, *(protocol(self.protocol).beside if self.beside is None else self.beside))

    def requested(self, name: str) -> tuple[str, ...] | None:
        """The scores asked for of one of `protocols`."""
        return self.scores if name == self.protocol else None

    @classmethod
    def of(cls, config: DictConfig, card: Card, random_weights: bool) -> "Metrics | None":
        """From the configuration group ``metrics``; None for no scores.

        ``auto`` is the card's protocol, and none for random weights, whose images have no score worth computing. Raises
        `ConfigError`.
        """
        if config.name not in CHOICES:
            raise ConfigError(f"Unknown metrics {config.name!r}; choose one of {', '.join(CHOICES)}.")
        if config.clip is not None and "text_encoder" not in card.components:
            raise ConfigError(f"metrics.clip: {card.name} has no prompts to compare its images with. Leave metrics.clip unset.")
        if config.bootstrap < 0:
            raise ConfigError(f"metrics.bootstrap={config.bootstrap} must not be negative; 0 gives no intervals.")
        name = config.name
        if name == "auto":
            name = "none" if random_weights and card.packaged is None else card.metrics
        if name == "none":
            return None
        scores = None if config.scores is None else tuple(str(score) for score in config.scores)
        if scores is not None:
            protocol(name).check(scores)
        beside = None if config.beside is None else tuple(protocol(other).name for other in config.beside)
        if beside is not None and len({name, *beside}) <= len(beside):
            raise ConfigError(f"metrics.beside={list(beside)} names a protocol twice, or {name} itself. Name each other one once.")
        return cls(name, scores, config.clip, config.bootstrap, beside)
