"""Which steps are corrected: a pure function of T and of the steps that may be."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from iec.errors import ConfigError, require_fields

CachedSteps = Literal["skip", "cached", "full"]
LastStep = Literal["correct", "skip"]
KINDS = ("none", "all_steps", "first_last", "first_step", "explicit")


@dataclass(frozen=True)
class Placement:
    """Where corrections are applied (paper, section 5 and Fig. 3).

    * kind: ``none``; ``all_steps``; ``first_step``; ``explicit``: ``steps`` (sampling indices, 0 is the noisiest);
      ``first_last``: the first A and the last A sampling steps ("±A"), with A = ``count`` or round(``fraction`` * T), at least 1.
      All but ``explicit`` are intersected with the eligible steps; an explicit list is taken as it is.
    * cached_steps: what happens at steps that reuse a cached feature. ``skip``: they are not eligible (the paper). ``cached``:
      they are eligible, and their corrections reuse the feature too. ``full``: they are eligible, and their corrections run the
      full network, whose feature the next cached steps reuse (with ``cache_from=last``); quantized networks with a cache refuse
      that.
    * last_step: ``skip`` leaves out the step that ends at the clean image (s = `CLEAN`), whatever the kind; a timetable that ends
      at abar(0) has none. ``correct`` (the paper) corrects it like any other. The corrected state of that step has no noise left,
      but the network is told t: what it predicts there is not eps but about zero, and lambda puts back a share of the noise that
      the step removed, lambda sigma_t in the image.
    """

    kind: str = "none"
    fraction: float | None = None
    count: int | None = None
    steps: tuple[int, ...] = ()
    cached_steps: CachedSteps = "skip"
    last_step: LastStep = "correct"

    def __post_init__(self) -> None:
        require_fields(self, "iec.")
        if self.kind not in KINDS:
            raise ConfigError(f"Unknown iec.placement {self.kind!r}; choose one of {', '.join(KINDS)}.")
        for name, allowed in {"cached_steps": get_args(CachedSteps), "last_step": get_args(LastStep)}.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"iec.{name}={getattr(self, name)!r}; choose {', '.join(allowed)}.")
        if self.kind == "first_last" and (self.fraction is None) == (self.count is None):
            raise ConfigError("iec.placement=first_last needs iec.fraction (e.g. 0.1) or iec.count (e.g. 5), and not both.")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ConfigError(f"iec.fraction={self.fraction} is outside (0, 1].")
        if self.count is not None and self.count < 1:
            raise ConfigError(f"iec.count={self.count} must be at least 1.")
        if not isinstance(self.steps, Collection) or any(type(i) is not int for i in self.steps):
            raise ConfigError(f"iec.steps={self.steps!r} must be whole numbers, the sampling indices, e.g. (0, 1, 2).")
        given = {"fraction": self.fraction is not None, "count": self.count is not None, "steps": bool(self.steps)}
        takers = {"fraction": "first_last", "count": "first_last", "steps": "explicit"}
        unused = [name for name, kind in takers.items() if given[name] and self.kind != kind]
        if unused:
            raise ConfigError(
                f"iec.{unused[0]} belongs to iec.placement={takers[unused[0]]} and does nothing with {self.kind}. Leave one out."
            )
        if self.kind == "explicit" and not self.steps:
            raise ConfigError("iec.placement=explicit needs iec.steps, e.g. iec.steps=[0,1,2].")

    def resolve(self, num_steps: int, refresh: Collection[int] | None = None) -> frozenset[int]:
        """Sampling indices that are corrected, ``last_step`` aside. ``refresh``: the steps that run the full network, None means
        every step. Raises `ConfigError` for an index outside.
        """
        allowed = frozenset(range(num_steps)) if refresh is None or self.cached_steps != "skip" else frozenset(refresh)
        if self.kind == "explicit":
            outside = [i for i in self.steps if not 0 <= i < num_steps]
            if outside:
                raise ConfigError(f"iec.steps holds {outside}; the sampling indices are 0 .. {num_steps - 1}.")
            return frozenset(self.steps)
        if self.kind == "none":
            return frozenset()
        if self.kind == "first_step":
            return allowed & {0}
        if self.kind == "all_steps":
            return allowed
        ends = self.count if self.count is not None else max(1, round((self.fraction or 0) * num_steps))
        return allowed & {i for i in range(num_steps) if i < ends or i >= num_steps - ends}

    def corrected(
        self, num_steps: int, refresh: Collection[int] | None, still: Collection[int], clean: Collection[int]
    ) -> frozenset[int]:
        """`resolve`, less the steps that leave x as it is (``still``) and, with ``last_step=skip``, those to the clean image."""
        return self.resolve(num_steps, refresh).difference(still, clean if self.last_step == "skip" else ())
