"""Refresh schedules: the sampling indices i (0 is the noisiest) that run the full network and refresh the cached feature.

A schedule is data, a frozenset for `Sampler(refresh=...)`. The first step always refreshes: there is nothing to reuse yet.
"""

from collections.abc import Collection

import numpy as np

from iec.errors import ConfigError

POWER_STEP = 0.02
"""How much `centred` lowers its power before it tries again."""


def uniform(num_steps: int, interval: int) -> frozenset[int]:
    """{0, N, 2N, ...} below T = ``num_steps``, for N = ``interval``: ceil(T / N) refreshes. N = 1 refreshes at every step."""
    _require_counts(num_steps, interval)
    return frozenset(range(0, num_steps, interval))


def quadratic(num_steps: int, interval: int, power: float = 1.5) -> frozenset[int]:
    """Refreshes that thin out towards the clean end: trunc(x_j^p) for x_j = j T^(1/p) / n, j = 0 .. n-1, n = ceil(T / N).

    Fewer than n where two of them truncate to the same step, as in the original (``sample_from_quad`` in the latent code of
    horseee/DeepCache): T = 250 and N = 5 give 49.
    """
    _require_counts(num_steps, interval)
    require_power(power)
    line = np.linspace(0, num_steps ** (1 / power), -(-num_steps // interval) + 1)
    return frozenset(int(v) for v in (line**power)[:-1])


def centred(num_steps: int, count: int, centre: int, power: float) -> frozenset[int]:
    """``count`` = n refreshes that are densest around step ``centre`` = c, for a p = ``power`` above 1.

    trunc(x_j^p) + c on n + 1 points x_j from (-c)^(1/p) to (T-c)^(1/p), the first and last of the distinct values replaced by 0.
    If that is not n steps, p is lowered by 0.02 and all is tried again, until p <= 1. The root of -c is complex: x_j lies on a
    straight line in the complex plane and the real part of its power is taken, which is what the original
    (``sample_from_quad_center`` in horseee/DeepCache) does by way of an integer cast that drops the imaginary part.

    Raises `ConfigError` where no power gives n steps, as the original for Stable Diffusion does. (That for pixel models then takes
    the steps of the last power tried, however few.)
    """
    _require_counts(num_steps, count)
    require_power(power)
    if count > num_steps or not 0 <= centre < num_steps:
        raise ConfigError(
            f"A centred schedule of {num_steps} steps needs a count of 1 .. {num_steps} and a centre of 0 .. {num_steps - 1}, "
            f"not {count} and {centre}."
        )
    steps: list[int] = []
    p = power
    while p > 1 and len(steps) != count:
        # real + 0j: a centre of 0 has a real root, and both cases take the same path from here
        line = np.linspace(complex((-centre) ** (1 / p)), complex((num_steps - centre) ** (1 / p)), count + 1)
        values = np.unique((line**p).real.astype(np.int32))  # the cast truncates towards zero
        steps = [0] + [int(v) + centre for v in values[1:-1]]
        p -= POWER_STEP
    if len(steps) != count:
        raise ConfigError(
            f"No power from {power} down to 1 gives {count} refresh steps of {num_steps} around step {centre}. Change the number "
            "of refreshes or the centre, or give the steps explicitly."
        )
    return explicit(num_steps, steps)


def explicit(num_steps: int, steps: Collection[int]) -> frozenset[int]:
    """These steps, checked: whole numbers in 0 .. T-1, with 0 among them."""
    _require_counts(num_steps, 1)
    outside = [i for i in steps if type(i) is not int or not 0 <= i < num_steps]
    if outside:
        raise ConfigError(f"The refresh steps hold {outside}; the sampling indices are the whole numbers 0 .. {num_steps - 1}.")
    if 0 not in steps:
        raise ConfigError("The first step must refresh the cache: add 0 to the refresh steps.")
    return frozenset(steps)


def require_interval(interval: int, steps: int | None = None) -> None:
    """Raises `ConfigError` unless N is a whole number in 1 .. T = ``steps``; None: whatever T is."""
    whole = type(interval) is int and interval >= 1
    if steps is None and not whole:
        raise ConfigError(f"efficiency.interval={interval} must be a whole number of at least 1; 1 reuses nothing.")
    if steps is not None and not (whole and interval <= steps):
        raise ConfigError(
            f"efficiency.interval={interval!r} must be a whole number of 1 .. {steps}, the number of sampling steps. Use a shorter "
            "interval or more steps."
        )


def _require_counts(num_steps: int, interval: int) -> None:
    for name, value in (("number of steps", num_steps), ("refresh interval or count", interval)):
        if type(value) is not int or value < 1:
            raise ConfigError(f"The {name} of a refresh schedule must be a whole number of at least 1, not {value!r}.")


def require_power(power: float) -> None:
    """Raises `ConfigError` unless it is in (1, 100)."""
    if not 1 < power < 100:
        raise ConfigError(
            f"The power of a refresh schedule must be above 1 and below 100, not {power}; the originals use 1.2 to 1.5."
        )
