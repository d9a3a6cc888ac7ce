"""What each step of an efficient run does wrong, and what a correction changes in it, along the trajectory without corrections.

From the states x_i of the efficient run each step is taken by itself (Phi), corrected (Phi'), and by the full-precision network
without and with the correction (Phi*, Phi*'):

    b_i = Phi_i(x_i) - Phi*_i(x_i) = B_i (eps_eff(x_i, t) - eps_fp(x_i, t))             the error of the step
    u_i = Phi'_i(x_i) - Phi_i(x_i) = lambda B_i (eps_eff(x^(0), t) - eps_eff(x_i, t))   the displacement by the correction
    w_i = Phi*'_i(x_i) - Phi*_i(x_i) = lambda B_i (eps_fp(x^(0), t) - eps_fp(x_i, t))   its bias: the same without any error

The right sides are those of K = 1 without a cache; x^(0) is the step of the network in question. With a cache a correction has a
second effect, since later steps reuse the feature of the corrected state. So Phi' has a cache of its own, which the corrected steps
before it left, and u_i is not zero at steps that reuse.

What an error of x_{i+1} is worth at the end is read from the clean image that the full-precision network predicts of it,

    m(x) = (x - sqrt(1 - abar_s) eps_fp(x, s)) / sqrt(abar_s),   and m(x) = x at the last step:

it drops what looks like noise, which the steps that follow remove, and keeps what looks like an image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from iec.analysis.setup import Setup
from iec.sampling.correction import sizes
from iec.sampling.network import Calls, FeatureCache, Network, Prediction, Step
from iec.sampling.placement import Placement


@dataclass(frozen=True)
class LocalStep:
    """Step ``index`` of a batch. error, displacement, bias: b_i, u_i and w_i, [B, C, H, W]; clean_error, clean_displacement: the
    first two in the predicted clean image, m(Phi) - m(Phi*) and m(Phi') - m(Phi). norm_ratio: |eps(x^(0), t)| / |eps(x_i, t)| of
    the efficient network, [B]. bias and norm_ratio are None at steps that are not corrected. size: |Phi*(x_i)|, [B].
    """

    index: int
    error: Tensor
    displacement: Tensor
    clean_error: Tensor
    clean_displacement: Tensor
    bias: Tensor | None
    norm_ratio: Tensor | None
    size: Tensor


@dataclass
class Once:
    """A network that is asked once for what several samplers want of one state, and counts what it is asked."""

    network: Network
    calls: Calls = field(default_factory=Calls)
    answers: dict[tuple[int, Step, int], tuple[Prediction, Tensor, FeatureCache | None]] = field(default_factory=dict)

    def __call__(self, x: Tensor, step: Step, cond: Tensor | None = None, cache: FeatureCache | None = None) -> Prediction:
        self.answers = {key: answer for key, answer in self.answers.items() if key[1].index >= step.index - 1}
        key = id(x), step, 0 if step.mode == "full" else id(cache)  # a full call does not look at the cache
        if key not in self.answers:
            self.calls.add(step, len(x))
            self.answers[key] = self.network(x, step, cond, cache), x, cache  # kept, so that no other object has their id
        return self.answers[key][0]

    def size(self, index: int, correction: int) -> Tensor:
        """|eps| of the last answer to this call of step ``index``, [B]."""
        asked = [key for key in self.answers if (key[1].index, key[1].correction) == (index, correction)]
        return sizes(self.answers[asked[-1]][0].eps)


@torch.no_grad()
def walk(setup: Setup, seed: int, indices: Sequence[int], network: Once, reference: Once) -> Iterator[LocalStep]:
    """The steps that change something, with the corrections of ``setup.corrected``. network, reference: those of the setup. Raises
    `NonFiniteError`.
    """
    plain, corrected, exact = setup.plain, setup.corrected, setup.full_precision
    table, steps = plain.timetable, tuple(sorted(corrected.corrected))
    biased = replace(exact, correction=corrected.correction, placement=Placement("explicit", steps=steps))
    noise, cond = setup.noise(seed, indices), setup.conditioning(indices)

    def clean(x: Tensor, i: int) -> Tensor:
        """m of the state after step i."""
        if i + 1 == len(table):
            return x
        abar = float(table.abar_s[i])
        eps = reference(x, Step(i + 1, table.pairs[i + 1][0]), cond).eps.to(x.dtype)
        return (x - (1 - abar) ** 0.5 * eps) / abar**0.5

    x, cache, taught = noise.initial(plain.dtype, setup.device), None, None
    for i in range(len(table)):
        ordinary, cache = plain.step(network, i, x, noise, cond, cache)
        moved, taught = corrected.step(network, i, x, noise, cond, taught)
        if not table.is_noop(i):
            right, _ = exact.step(reference, i, x, noise, cond, None)
            own = i in steps
            bias = biased.step(reference, i, x, noise, cond, None)[0] - right if own else None
            ratio = network.size(i, 1) / network.size(i, 0) if own else None
            here = clean(ordinary, i)
            errors = ordinary - right, moved - ordinary, here - clean(right, i), clean(moved, i) - here
            yield LocalStep(i, *errors, bias, ratio, sizes(right))
        x = ordinary
