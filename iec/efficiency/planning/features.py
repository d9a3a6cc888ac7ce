"""Additive objectives: what cached steps get instead of the feature that a full call would have made, and the cheapest schedule.

A rule says what a cached step gets: weights on the features of the last two refreshes. All errors follow from the inner products of
the features of uncached runs, so that one pass over these runs serves every rule and every number of refreshes.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from iec.efficiency.cachequant.trajectories import FloatCall
from iec.efficiency.caching.forecast import REUSE, Extrapolated, Forecast, weights
from iec.errors import ConfigError, NonFiniteError

Rule = Callable[[int, Sequence[int]], Sequence[float]]
"""(step u, its last refreshes u_0 > u_1, one or two of them) -> w_j: the step gets sum_j w_j F_(u_j)."""


def reuse(step: int, refreshes: Sequence[int]) -> Sequence[float]:
    """The last feature as it is (DeepCache)."""
    return (1.0, 0.0)[: len(refreshes)]


def rule_of(forecast: Forecast) -> Rule | None:
    """What a caching network makes of the last two features, or of the first alone; None if that depends on the image (a probe)."""
    if not isinstance(forecast, Extrapolated):
        return reuse if forecast == REUSE else None

    def rule(step: int, refreshes: Sequence[int]) -> Sequence[float]:
        clock = range(step + 1) if forecast.clock is None else forecast.clock
        nodes = [clock[i] for i in refreshes]
        distinct = [u for k, u in enumerate(nodes) if u < min(nodes[:k], default=float("inf"))]  # else the newest is taken
        return weights(forecast.basis, distinct, clock[step])

    return rule


def inner_products(calls: Iterable[FloatCall], steps: int) -> np.ndarray:
    """<F_j, F_k> of every image that the UNet sees, float64 [N, T, T]. calls: of uncached runs of T = ``steps``, see `FloatRuns`.

    The T features of a batch are held at once. Raises `NonFiniteError`.
    """
    found, features = [], []
    for call in calls:
        features.append(call.feature)
        if len(features) == steps:
            for image in torch.stack(features, 1).flatten(2):  # T x D
                found.append((image.double() @ image.double().T).cpu().numpy())
            features = []
    products = np.stack(found)
    if not np.isfinite(products).all():
        raise NonFiniteError("The features have NaN or infinity. Check the weights, or use a wider network dtype.")
    return products


def forecast_errors(products: np.ndarray, rule: Rule = reuse) -> np.ndarray:
    """E[i, j, u] = mean over images of |F_u - sum_j w_j F_(u_j)| / |F_u| with the last refreshes j > i, float64 [T, T, T].

    i = j = 0: step 0 is the only refresh so far. Zero at u = j, and where i, j and u are in no such order. products: see
    `inner_products`.
    """
    steps = products.shape[1]
    weights = np.zeros((2, steps, steps, steps))
    known = np.zeros((steps, steps, steps), dtype=bool)
    for i, j in _pairs(steps):
        for u in range(j + 1, steps):
            given = rule(u, (j,) if i == j else (j, i))
            weights[: len(given), i, j, u], known[i, j, u] = given, True
    newest, older = weights
    errors = np.zeros((steps, steps, steps))
    for g in products:
        own = np.diagonal(g)
        squared = own + newest**2 * own[None, :, None] + older**2 * own[:, None, None] + 2 * newest * older * g[:, :, None]
        squared -= 2 * (newest * g[None] + older * g[:, None])
        errors += np.sqrt(squared.clip(0) / own.clip(np.finfo(float).tiny))
    return np.where(known, errors / len(products), 0.0)


def cheapest_refreshes(errors: np.ndarray, count: int) -> tuple[frozenset[int], float]:
    """The ``count`` refresh steps, 0 among them, that minimise the sum of the errors of all steps, and that sum: exact.

    errors: E[i, j, u] of step u with the last refreshes i < j, float64 [T, T, T]; i = j = 0: 0 is the only one so far. With
    C(i, j, n) = sum_{j < u < n} E[i, j, u], the cheapest way to have i and j as the last of m refreshes costs, up to step j,

        L_{m+1}(j, n) = min_i L_m(i, j) + C(i, j, n),      L_1(0, 0) = 0.

    The state has to be the pair: what is cheapest up to j alone may have left a worse i to extrapolate from. Of equal schedules the
    one with the smallest indices wins. Needs 8 T^3 bytes for each refresh. Raises `ConfigError` unless 1 <= count <= T.
    """
    steps = len(errors)
    require_refreshes(count, steps)
    spent = np.full((steps, steps, steps + 1), np.inf)  # C
    for i, j in _pairs(steps):
        spent[i, j, j + 1 :] = np.cumsum(errors[i, j, j:]) - errors[i, j, j]
    best = np.full((steps, steps), np.inf)
    best[0, 0] = 0
    came = []
    for _ in range(count - 1):
        total = best[:, :, None] + spent[:, :, :steps]
        came.append(total.argmin(0))
        best = total.min(0)
    total = best + spent[:, :, steps]
    i, j = divmod(int(total.argmin()), steps)
    cost, found = float(total[i, j]), [j]
    for previous in reversed(came):
        found.append(i)
        i, j = int(previous[i, j]), i
    return frozenset(found), cost


def require_refreshes(count: int, steps: int) -> None:
    """Raises `ConfigError` unless ``count`` of ``steps`` steps can refresh."""
    if type(count) is not int or not 1 <= count <= steps:
        raise ConfigError(f"efficiency.refreshes={count!r} must be a whole number of 1 .. {steps}, the number of sampling steps.")


def _pairs(steps: int) -> Iterable[tuple[int, int]]:
    """The last two refreshes (i, j), oldest first; (0, 0) where there is one."""
    return [(0, 0), *((i, j) for j in range(steps) for i in range(j))]
