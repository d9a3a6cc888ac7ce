"""How much a step magnifies an error, and whether the correction contracts (paper, Fig. 1 and section 4).

| here              | paper                                        | taken at                       |
|-------------------|----------------------------------------------|--------------------------------|
| ``A I + B J``     | A_t I + B_t J_t, error into error of a step  | x_t                            |
| ``grad G, ...``   | grad G = (1 - lambda) I + lambda B_t J       | x^(0) = A_t x_t + B_t eps(x_t) |

J = d eps(x, t) / d x, one [d, d] matrix an image. With eps divided by `Sampler.epsilon_scale`, B is, too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from iec.analysis import krylov
from iec.analysis.jacobian import DIFFERENCE, Eps, derivatives, difference, eps_at
from iec.analysis.krylov import Estimate, Product
from iec.analysis.setup import Setup
from iec.errors import ConfigError
from iec.sampling.corrector import NO_CORRECTOR
from iec.sampling.network import Step
from iec.sampling.solver import Solver

Derivative = Literal["exact", "difference"]
LAMBDAS = (0.1, 0.3, 0.5, 0.7)
START_SEED = 2**43
"""Of the vectors that the iterations start from."""
STEP_MATRIX = "A I + B J"


class Matrix(NamedTuple):
    """c I + b J."""

    label: str
    c: float
    b: float


@dataclass(frozen=True)
class Options:
    """derivative: ``exact`` takes ||M|| by products with M and M^T. ``difference``, for networks that round, has no M^T and so no
    norm: only max |M v| over the space of Arnoldi's iteration, a LOWER BOUND of ||M||, up to the error of the differences. It is
    the norm itself where J is symmetric, as that of an exact eps is (the Hessian of a log density, times a number); a trained
    network's is only nearly so. relative: the step of the differences, relative to |x|.
    """

    lambdas: tuple[float, ...] = LAMBDAS
    derivative: Derivative = "exact"
    relative: float = DIFFERENCE
    tolerance: float = krylov.TOLERANCE
    max_iterations: int = krylov.MAX_ITERATIONS

    def __post_init__(self) -> None:
        if self.derivative not in get_args(Derivative):
            raise ConfigError(f"derivative={self.derivative!r}; choose {' or '.join(get_args(Derivative))}.")
        if any(not 0 < v <= 2 for v in self.lambdas):
            raise ConfigError(f"lambda={list(self.lambdas)} has to be in (0, 2]; the paper plots 0.1 .. 0.7.")
        if not 0 < self.tolerance < 1 or self.max_iterations <= krylov.QUIET:
            raise ConfigError(f"Needs 0 < tolerance < 1 and more than {krylov.QUIET} iterations.")


class Spectrum(NamedTuple):
    """Of one matrix at one step, over images. norm: ||M||_2, None with ``derivative=difference``. bound: a lower bound of it (see
    `Options`), from products with M alone. radius: largest |eigenvalue|.
    """

    norm: Estimate | None
    bound: Estimate
    radius: Estimate


def spectra(
    setup: Setup, seed: int, indices: Sequence[int], steps: Sequence[int], options: Options = Options()
) -> Iterator[tuple[int, dict[str, Spectrum]]]:
    """(i, label -> spectrum) of the ``steps`` along the trajectories of the setup's network and sampler.

    Cached steps: the derivative with respect to x, with the cached feature fixed. Raises `ConfigError` for steps that do nothing
    or do not exist and for a sampler with a corrector, before anything is computed, and for networks without a derivative.
    """
    table, sampler = setup.sampler.timetable, setup.sampler
    require_no_corrector(sampler)
    bad = [i for i in steps if not 0 <= i < len(table) or table.is_noop(i)]
    if bad:
        raise ConfigError(f"Steps {bad} do not exist or change nothing (t = s); choose others of 0 .. {len(table) - 1}.")
    noise, cond = setup.noise(seed, indices), setup.conditioning(indices)
    start = setup.noise(START_SEED, indices).initial(sampler.dtype, setup.device)
    x, cache = noise.initial(sampler.dtype, setup.device), None
    for i in range(max(steps, default=-1) + 1):
        if i in steps:
            full = sampler.refresh is None or i in sampler.refresh
            eps = eps_at(setup.network, Step(i, table.pairs[i][0], "full" if full else "cached"), cond, cache)
            ordinary, _ = setup.plain.step(setup.network, i, x, noise, cond, cache)
            b = float(table.B[i]) / sampler.epsilon_scale
            after = [Matrix(f"grad G, lambda = {v:g}", 1 - v, v * b) for v in options.lambdas]
            here = family(eps, x, [Matrix(STEP_MATRIX, float(table.A[i]), b)], start, options)
            yield i, here | family(eps, ordinary, after, start, options)
        x, cache = sampler.step(setup.network, i, x, noise, cond, cache)


def require_no_corrector(sampler: Solver) -> None:
    """Raises `ConfigError` for a sampler with a corrector."""
    if sampler.corrector != NO_CORRECTOR:
        raise ConfigError("The matrices are those of a step without a corrector. Use corrector=none.")


def family(eps: Eps, x: Tensor, matrices: Sequence[Matrix], start: Tensor, options: Options = Options()) -> dict[str, Spectrum]:
    """label -> spectrum of c I + b J for several (c, b), J that of eps at one x [B, ...]."""
    if not matrices:
        return {}
    if options.derivative == "difference":
        return _by_arnoldi(difference(eps, x, options.relative), matrices, start, options)
    times, transposed = derivatives(eps, x)
    found = _by_arnoldi(times, matrices, start, options)
    for label, c, b in matrices:

        def product(v: Tensor, c: float = c, b: float = b) -> Tensor:
            return c * v + b * times(v)

        def transpose(u: Tensor, c: float = c, b: float = b) -> Tensor:
            return c * u + b * transposed(u)

        norm = krylov.largest_singular_value(product, transpose, start, options.tolerance, options.max_iterations)
        found[label] = found[label]._replace(norm=norm)
    return found


def _by_arnoldi(times: Product, matrices: Sequence[Matrix], start: Tensor, options: Options) -> dict[str, Spectrum]:
    """Bounds and radii of all ``matrices``, from one run with J until every one of them has settled."""
    bounds: dict[str, list[Tensor]] = {m.label: [] for m in matrices}
    radii: dict[str, list[Tensor]] = {m.label: [] for m in matrices}
    for k, h in enumerate(krylov.hessenberg(times, start), 1):
        for label, c, b in matrices:
            turned = krylov.shifted(h, c, b)
            bounds[label].append(torch.linalg.matrix_norm(turned, 2))
            radii[label].append(krylov.spectral_radius(turned))
        histories = [*bounds.values(), *radii.values()]
        if k >= options.max_iterations or all(bool(krylov.settled(v, options.tolerance).all()) for v in histories):
            break

    def last(history: list[Tensor]) -> Estimate:
        return Estimate(history[-1], krylov.settled(history, options.tolerance), len(history))

    return {m.label: Spectrum(None, last(bounds[m.label]), last(radii[m.label])) for m in matrices}
