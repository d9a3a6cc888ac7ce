"""From a model to images: one micro-batch, or many."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch

from iec.correctors.prepare import fitted
from iec.errors import ConfigError, require_type
from iec.io.cores import intra_op_threads
from iec.io.float32 import without_tf32
from iec.io.images import to_uint8
from iec.models import Model
from iec.sampling.correction import Correction
from iec.sampling.corrector import NO_CORRECTOR, Corrector
from iec.sampling.ddim import Sampler
from iec.sampling.dtypes import SOLVER_DTYPES, dtype_name
from iec.sampling.network import Calls, CountingNetwork, Network, require_network
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.solver import Solver
from iec.sampling.timetable import Timetable


@dataclass(frozen=True)
class Samples:
    """images: uint8 [N, H, W, C]. states: float32 [T + 1, n, C, H, W], the trajectories of the first n <= N images.

    calls: network calls in images, by kind, of all micro-batches: a last one that is not asked for as a whole is computed as a
    whole. seconds: wall-clock of the sampling alone.
    """

    images: np.ndarray
    states: np.ndarray
    calls: Calls
    seconds: float


def sample_batch(
    model: Model,
    network: Network,
    sampler: Solver,
    seed: int,
    indices: tuple[int, ...],
    trace: int = 0,
    on_step: Callable[[], None] | None = None,
    uint8: str = "round",
) -> Samples:
    """One micro-batch, the images ``indices``. Keeps the trajectories of the first ``trace``. Raises `NonFiniteError`.

    network: without guidance, which goes around it. uint8: see `to_uint8`.
    """
    counting, states = CountingNetwork(model.guided(network)), []
    began = time.perf_counter()
    noise = Noise(seed, indices, model.card.shape)
    for k, x in enumerate(sampler.trajectory(counting, noise, model.cond(indices), model.device)):
        if trace:
            states.append(x[:trace].float().cpu().numpy())
        if on_step is not None and k:
            on_step()
    images = to_uint8(model.decode(x), uint8)
    kept = np.stack(states) if trace else np.zeros((len(sampler.timetable) + 1, 0, *model.card.shape), np.float32)
    return Samples(images, kept, counting.calls, time.perf_counter() - began)


def micro_batches(num_images: int, batch_size: int) -> list[tuple[int, ...]]:
    """The fixed grid: micro-batch k holds the images k B .. (k + 1) B - 1. The last one is whole, even if not all are asked for."""
    return [tuple(range(start, start + batch_size)) for start in range(0, num_images, batch_size)]


def require_count(num_images: int, batch_size: int) -> None:
    """Raises `ConfigError` unless both are whole numbers of at least 1."""
    if not all(isinstance(number, Integral) and number >= 1 for number in (num_images, batch_size)):
        raise ConfigError(f"num_images={num_images} and batch_size={batch_size} must be at least 1, and whole numbers.")


@without_tf32()
def sample(
    model: Model,
    num_images: int,
    *,
    network: Network | None = None,
    correction: Correction | None = None,
    placement: Placement | None = None,
    corrector: Corrector = NO_CORRECTOR,
    steps: int | None = None,
    timetable: Timetable | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    trace: int = 0,
    dtype: torch.dtype | str = torch.float64,
    threads: int = 1,
) -> Samples:
    """Sample ``num_images`` images, without Hydra and without a folder.

    * network: an efficient version of the model's own (e.g. from `iec.quantize`), without guidance, which is added.
    * correction: None is the base sampler, which takes no placement; with a correction, ``placement`` defaults to all steps.
    * corrector: what changes a step without a call, e.g. one of `iec.correctors`; one that is calibrated is first fitted to
      ``network``.
    * steps: with the card's spacing; or give a whole ``timetable``.
    * trace: keep the trajectories of the first ``trace`` images.
    * threads: on a CPU, over which torch spreads an operation meanwhile; afterwards its setting is as before.

    Image n depends on (seed, n) and the batch size alone, and on a CPU on ``threads``. Raises `ConfigError`, `NonFiniteError`.
    """
    require_type("model", model, Model, 'iec.load_model("ddim_fashion_small")')
    if steps is not None and timetable is not None:
        raise ConfigError(f"steps={steps} and a timetable, which has {len(timetable)}. Give one of them.")
    card = model.card
    batch_size = min(card.batch_size, num_images) if batch_size is None else batch_size
    require_count(num_images, batch_size)
    steps = card.steps if steps is None else steps
    table = Timetable.spaced(card.spacing, steps, card.schedule, final=card.final) if timetable is None else timetable
    where = Placement("none" if correction is None else "all_steps") if placement is None else placement
    solver_dtype = SOLVER_DTYPES[dtype_name(dtype, SOLVER_DTYPES, "dtype")]
    rule = Correction() if correction is None else correction
    require_type("corrector", corrector, Corrector, "one of iec.correctors, e.g. UniC()")
    sampler = corrector.attach(Sampler(table, rule, where, dtype=solver_dtype), card.shape)
    if correction is None and where.kind != "none":
        raise ConfigError("A placement says where a correction acts, and there is none. Give correction=iec.Correction(), too.")
    if network is not None:
        require_network(network)
    if threads < 1:
        raise ConfigError(f"threads={threads} must be at least 1.")
    with intra_op_threads(threads if model.device.type == "cpu" else None):
        network = model.network if network is None else network
        fit = fitted(sampler, model, network)
        batches = [
            sample_batch(model, network, fit, seed, indices, max(0, min(trace - indices[0], batch_size)))
            for indices in micro_batches(num_images, batch_size)
        ]
    return Samples(
        np.concatenate([b.images for b in batches])[:num_images],
        np.concatenate([b.states for b in batches], axis=1)[:, :num_images],
        sum((b.calls for b in batches), Calls()),
        sum(b.seconds for b in batches),
    )
