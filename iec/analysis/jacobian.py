"""The Jacobian of a network's noise prediction with respect to its input, by products with vectors."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from iec.analysis.krylov import Product
from iec.errors import ConfigError
from iec.sampling.correction import sizes
from iec.sampling.network import FeatureCache, Network, Step

DIFFERENCE = 0.05
"""Half the step of a central difference, relative to |x|. On the bundled model at W8A8, steps 0, 20 and 40 of 50, 0.01 gives bounds
of 1.27, 1.08 and 1.04, and 0.05 gives 1.15, 1.08 and 1.04 (full precision: 1.13, 1.08, 1.04): 0.01 is within reach of rounding."""
WAY_OUT = "Use derivative=difference, which needs calls alone."

Eps = Callable[[Tensor], Tensor]


def eps_at(network: Network, step: Step, cond: Tensor | None, cache: FeatureCache | None) -> Eps:
    """x -> eps(x) of one call, in x's dtype. A cached call keeps the feature that it reuses fixed, whatever x is."""

    def eps(x: Tensor) -> Tensor:
        return network(x, step, cond, cache).eps.to(x.dtype)

    return eps


def derivatives(eps: Eps, x: Tensor) -> tuple[Product, Product]:
    """(v -> J v, u -> J^T u) at x [B, C, H, W], by forward- and reverse-mode differentiation.

    Attention is evaluated by its plain formula, since the fused kernels have no forward mode. An image must not depend on its
    batch-mates. Raises `ConfigError` for a network that cannot be differentiated, or not truly: rounding has the derivative
    zero, and J would be that of some other network; one product is compared with a central difference.
    """

    def product(v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return jvp(eps, (x,), (v,))[1]

    def transposed(u: Tensor) -> Tensor:
        return pull(u)[0]

    try:
        _require_true(product, eps, x)
        with sdpa_kernel(SDPBackend.MATH):
            _, pull = vjp(eps, x)  # type: ignore[misc]  # three values with has_aux only
    except (RuntimeError, NotImplementedError) as error:
        raise ConfigError(f"This network has no derivative ({error}). {WAY_OUT}") from error
    return product, transposed


def difference(eps: Eps, x: Tensor, relative: float = DIFFERENCE) -> Product:
    """v -> (eps(x + h v) - eps(x - h v)) / 2h with h = relative |x| / |v| for each image: a secant of the step 2h.

    For quantized networks, whose rounding has no derivative. There is no transposed product. Of a rounded function this is the
    mean slope over the step, plus rounding noise that grows as the step shrinks.
    """
    if not 0 < relative < 1:
        raise ConfigError(f"The step of a difference, {relative}, is relative to |x| and has to be in (0, 1), e.g. {DIFFERENCE}.")

    @torch.no_grad()
    def product(v: Tensor) -> Tensor:
        length = torch.where(sizes(v) > 0, sizes(v), 1.0)
        h = (relative * sizes(x) / length).view(-1, *[1] * (x.ndim - 1))
        return (eps(x + h * v) - eps(x - h * v)) / (2 * h)

    return product


def _require_true(product: Product, eps: Eps, x: Tensor) -> None:
    """Raises `ConfigError` unless J v is near a difference for one v."""
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device)
    analytic, secant = product(v), difference(eps, x)(v)
    gap = (torch.linalg.vector_norm(analytic - secant) / torch.linalg.vector_norm(secant).clamp_min(1e-12)).item()
    if not gap < 0.5:
        raise ConfigError(f"The derivative of this network differs from its differences by {gap:.0%}: it rounds. {WAY_OUT}")
