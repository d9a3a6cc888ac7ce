"""How far an exported network is from the network it was made of."""

from collections.abc import Iterator

import torch
from torch import Tensor

from iec.efficiency.engine.description import FLOAT, INT8
from iec.errors import ConfigError
from iec.models import Model
from iec.sampling.network import FeatureCache, Network, Step
from iec.sampling.timetable import Timetable

IMAGES = 2
ALLOWED = {FLOAT: 1e-4, INT8: 0.1}
"""|difference| / |eps| of a file by its arithmetic, or `TIMES` the network's own distance from itself, if that is more."""
TIMES = 3


@torch.no_grad()
def require_close(
    model: Model, network: Network, exported: Network, table: Timetable, refresh: frozenset[int] | None, arithmetic: str
) -> float:
    """The largest |difference| / |eps| over the first and the last step of either kind of call, on noise.

    Sums in another order move values over rounding borders of a grid, and what follows them: a quantized network differs from
    itself when its images are computed one by one. Raises `ConfigError` for a file that differs by more than `TIMES` of that.
    """
    x = torch.randn(IMAGES, *model.card.shape, generator=torch.Generator().manual_seed(0))
    branches = model.cond(range(IMAGES))
    cond = None if branches is None else branches[:, -1]
    everything, furthest = slice(None), 0.0
    for step, cache in _calls(network, x, cond, table, refresh):
        eps = _eps(network, x, step, cond, cache, everything)
        alone = torch.cat([_eps(network, x, step, cond, cache, slice(k, k + 1)) for k in range(IMAGES)])
        found = _between(eps, _eps(exported, x, step, cond, cache, everything))
        allowed = max(ALLOWED[arithmetic], TIMES * _between(eps, alone))
        if not found <= allowed:  # nor NaN
            raise ConfigError(
                f"The exported network differs from the cell's by {found:.2g} of eps at step {step.index} ({step.mode} call), more "
                f"than {allowed:.2g}: the file is not written. Export another model, or efficiency=none."
            )
        furthest = max(furthest, found)
    return furthest


def _calls(
    network: Network, x: Tensor, cond: Tensor | None, table: Timetable, refresh: frozenset[int] | None
) -> Iterator[tuple[Step, FeatureCache | None]]:
    """The first and the last full call, and the first and the last cached one."""
    steps = frozenset(range(len(table)))
    full = steps if refresh is None else refresh
    for i in sorted({min(full), max(full)}):
        yield Step(i, table.pairs[i][0]), None
    cached = steps - full
    for i in sorted({min(cached), max(cached)} if cached else ()):
        origin = max(s for s in full if s < i)
        step = Step(origin, table.pairs[origin][0])
        feature = network(x, step, cond).feature
        assert feature is not None  # of a network that caches
        yield Step(i, table.pairs[i][0], "cached"), FeatureCache(feature, step)


def _eps(network: Network, x: Tensor, step: Step, cond: Tensor | None, cache: FeatureCache | None, images: slice) -> Tensor:
    own = None if cache is None else FeatureCache(cache.feature[images], cache.step)
    return network(x[images], step, None if cond is None else cond[images], own).eps


def _between(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / a.norm())
