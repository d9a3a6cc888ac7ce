"""The protocol of correctors: what changes a step of DDIM without a network call of its own. `iec.correctors` holds them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from iec.sampling.network import FeatureCache, Network, Prediction, Step
from iec.sampling.timetable import Timetable

if TYPE_CHECKING:
    from iec.sampling.ddim import Sampler
    from iec.sampling.solver import Solver


@dataclass(frozen=True)
class Taken:
    """Step ``index`` as it was taken: new = fixed + B eps, with fixed = A x + sigma z. x is x_t and new is x_s, [B, C, H, W]."""

    index: int
    x: Tensor
    fixed: Tensor
    new: Tensor
    b: float

    @property
    def eps(self) -> Tensor:
        """The noise that the step took, [B, C, H, W]: the predicted one, and what corrections made of it."""
        return (self.new - self.fixed) / self.b

    def of(self, images: Tensor) -> "Taken":
        """Of these images alone, int64 [B']."""
        return replace(self, x=self.x[images], fixed=self.fixed[images], new=self.new[images])

    @staticmethod
    def joined(parts: Sequence["Taken"], order: Tensor) -> "Taken":
        """Of the images of all ``parts``, one part after the other, put into ``order``, int64 [B]."""
        x, fixed, new = (torch.cat(of_parts)[order] for of_parts in zip(*[(p.x, p.fixed, p.new) for p in parts], strict=True))
        return replace(parts[0], x=x, fixed=fixed, new=new)


@dataclass(frozen=True)
class Corrector:
    """The hooks of a step, in the order in which they act. This one changes nothing, and a corrector overrides what it needs:

        t' = timestep(x_t)                        what the network is told
        eps' = eps(eps(x_t, t'))                  what it answers; also in the calls of IEC's corrections
        x_t <- before(x_t, eps')                  the state that the step starts from
        x_s = A x_t + B eps' + sigma z            the step, which IEC may correct
        x_s <- after(x_t, eps', x_s)              the state after it
        restarts                                  steps that are made again

    A corrector is a frozen dataclass whose fields are the keys of its configuration (``_target_`` names the class), checked in
    ``__post_init__`` by `ConfigError`. Hooks are pure functions of their arguments. step: the call, ``step.index`` is the sampling
    index i. table: the timetable, which has abar, A, B and sigma of every step. Steps that change nothing (t = s) have no hooks.
    """

    single_steps: ClassVar[bool] = True
    """Whether a step can be taken alone, from any state. Not if `before` looks at the step before, if `restarts` goes back,
    or if the states are not at the levels of the timetable.
    """
    needs_refresh_steps: ClassVar[bool] = False
    """Whether it has to know before the run which steps run the full network. Without, it works under adaptive refresh, too, where
    the images that refresh at a step and those that reuse are corrected apart.
    """

    def timestep(self, x: Tensor, step: Step, table: Timetable) -> int | Tensor:
        """The timestep that the network is told with x_t [B, C, H, W], or one for each image, int64 [B]."""
        return step.timestep

    @property
    def keeps_timesteps(self) -> bool:
        """Whether the network is told the step's own timestep, by this corrector and by what a fit makes of it."""
        return type(self).timestep is Corrector.timestep

    def eps(self, eps: Tensor, step: Step, table: Timetable) -> Tensor:
        """eps' for eps [B, C, H, W], in the solver's dtype."""
        return eps

    def before(self, x: Tensor, eps: Tensor, step: Step, table: Timetable, last: Taken | None) -> Tensor:
        """The state to start from, given eps' at x. last: the step before, where `single_steps` is
        false; None at the first.
        """
        return x

    def after(self, taken: Taken, table: Timetable) -> Tensor:
        """The state after the step."""
        return taken.new

    def restarts(self, i: int, sampler: "Sampler") -> Sequence[int]:
        """The steps to go back to after step i, one after another: noise is added up to the level of each, and the steps from it to
        i are made again.
        """
        return ()

    def attach(self, sampler: "Sampler", shape: tuple[int, ...]) -> "Sampler":
        """The sampler with this corrector. shape: (C, H, W) of a state. Raises `ConfigError` for what does not fit together."""
        return replace(sampler, corrector=self)

    def calibration_calls(self, sampler: "Solver") -> int:
        """Network calls that its fit takes, images times steps; sampler: with its refresh steps."""
        return 0

    def label(self, name: str) -> str:
        """How the name of a cell mentions it. name: of its configuration."""
        return name

    def identity(self) -> dict[str, Any]:
        """JSON values: what the bytes of an image depend on."""
        return {"corrector": type(self).__qualname__, **asdict(self)}


NO_CORRECTOR = Corrector()


def predict(
    network: Network, x: Tensor, step: Step, timesteps: int | Tensor, cond: Tensor | None, cache: FeatureCache | None
) -> Prediction:
    """One network call on each image of x, told its own of the ``timesteps`` [B]. Images of one timestep are evaluated together."""
    if isinstance(timesteps, int):
        return network(x, replace(step, timestep=timesteps), cond, cache)
    order, parts = [], []
    for t in timesteps.unique().tolist():
        images = (timesteps == t).nonzero().flatten()
        own = None if cache is None else cache.of(images)
        parts.append(network(x[images], replace(step, timestep=t), None if cond is None else cond[images], own))
        order.append(images)
    back = torch.cat(order).argsort()

    def joined(of_parts: list[Tensor | None]) -> Tensor | None:
        made = [value for value in of_parts if value is not None]
        return torch.cat(made)[back] if made else None

    eps = torch.cat([part.eps for part in parts])[back]
    return Prediction(eps, joined([p.feature for p in parts]), joined([p.probe for p in parts]), parts[0].history)
