"""The compiled network of a cell, made before it samples: ``model.compile=true``."""

from itertools import pairwise

import torch

from iec.efficiency.compiled import compiled, kernels_in, refused_by_torch
from iec.io.files import canonical_hash
from iec.io.locks import exclusive
from iec.io.progress import stage
from iec.models import Model
from iec.runs.cell import Cell
from iec.sampling.network import Network, Step, renewed
from iec.sampling.noise import Noise
from iec.sampling.solver import Solver


@torch.no_grad()  # graphs are made for one setting of it
def compiled_network(cell: Cell, model: Model, network: Network, sampler: Solver) -> Network:
    """``network`` compiled for the micro-batches of ``cell``, by a first call of each mode.

    Kernels are kept in a folder ``compiled-HASH`` of the artifacts, for all cells that sample this network in batches of this size.
    One process compiles them, and the others wait and load them.
    Raises `ConfigError` for a network that torch cannot compile.
    """
    what = {"model": cell.model.identity, "technique": cell.technique_identity, "batch_size": cell.batch_size}
    graphs, folder = compiled(network), cell.artifacts / f"compiled-{canonical_hash(what)[:16]}"
    evaluate, indices, cache = model.guided(graphs), tuple(range(cell.batch_size)), None
    x, cond = Noise(cell.seed, indices, model.card.shape).initial(sampler.dtype, model.device), model.cond(indices)
    steps = first_steps(sampler)
    one_at_a_time = exclusive(folder.with_suffix(".lock"), f"compiling {cell.slug}")
    with refused_by_torch(), one_at_a_time, kernels_in(folder), stage(f"compiling {cell.efficiency}", len(steps)) as advance:
        for step in steps:
            cache = renewed(cache, evaluate(x, step, cond, cache), step)
            advance()
    return graphs


def first_steps(sampler: Solver) -> list[Step]:
    """A call of each mode: the first cached step, which reuses the feature of the step before it, and that one; else the first."""
    steps = [Step(i, t, sampler.mode(i)) for i, (t, _) in enumerate(sampler.timetable.pairs)]
    return next(([before, step] for before, step in pairwise(steps) if step.mode == "cached"), steps[:1])
