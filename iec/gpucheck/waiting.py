"""Part ``sync``: how often the sampling loop waits for the device, and whether each place has a reason.

Two passes over a trajectory, after one that warms up. The first counts calls of torch that wait, by place (`Watch`): a place that
`REASONS` does not have is over the limit. The second counts with torch's profiler what really happened on a GPU: synchronisations
of the stream, and copies between host and device. They may be as many as the first pass explains.
"""

from collections.abc import Callable, Iterator, Mapping

import torch

from iec.gpucheck.cells import cell_of
from iec.gpucheck.models import tiny
from iec.gpucheck.option_list import ON_CACHEQUANT, ON_DEEPCACHE, ON_W8A8
from iec.gpucheck.part import Bench, Line, Part, attempted
from iec.gpucheck.waits import COPIES, SYNCHRONISATIONS, VALUES, Watch, profiled
from iec.models.source import Source
from iec.runs.sampling import prepare
from iec.sampling.ddim import Sampler
from iec.sampling.noise import Noise
from iec.sampling.timetable import Timetable

Overrides = tuple[str, ...]
CELLS: Mapping[str, Overrides] = {
    "DDIM": (),
    "IEC at all steps": ("iec=all_steps",),
    "deepcache": ON_DEEPCACHE,
    "w8a8": ON_W8A8,
    "DDIM, eta = 1": ("sampler.eta=1",),
    "IEC, K = 3 with a tolerance": ("iec=all_steps", "iec.iterations=3", "iec.tolerance=0.001"),
    "deepcache + affine": (*ON_DEEPCACHE, "corrector=affine", "corrector.calibration_images=2"),
    "deepcache, forecast taylor": (*ON_DEEPCACHE, "efficiency.forecast=taylor"),
    "deepcache, adaptive": ("efficiency=deepcache", "efficiency.schedule=adaptive", "efficiency.threshold=2"),
    "w8a8, int8 kernels": (*ON_W8A8, "efficiency.kernels=int8_unfused"),
    "w8a8, a scale for each channel": (*ON_W8A8, "efficiency.activation_granularity=channel"),
    "cachequant_w8a8 + IEC": (*ON_CACHEQUANT, "iec=all_steps"),
    "corrector=timeshift": ("corrector=timeshift",),
    "sampler=unipc": ("sampler=unipc",),
}
REHEARSED = ("DDIM", "IEC at all steps", "deepcache", "w8a8")
GUIDED = "ldm_imagenet"
STEPS, IMAGES = 5, 2
Run = Callable[[], object]


def measure(bench: Bench) -> Iterator[Line]:
    yield from attempted("guidance", lambda: loop_lines(bench, "guidance", guided_run(bench.device)))
    for name, overrides in CELLS.items():
        if name in REHEARSED or not bench.toy:
            yield from attempted(name, lambda n=name, o=overrides: loop_lines(bench, n, cell_run(bench, o)))  # type: ignore[misc]


PART = Part("sync", "Does the sampling loop wait for the device only where it has a reason to?", measure, seconds=25)


def cell_run(bench: Bench, overrides: Overrides) -> Run:
    """A trajectory of a cell of a bundled model."""
    count = (f"num_images={IMAGES}", f"batch_size={IMAGES}", f"sampler.steps={STEPS}", f"device={bench.device}")
    cell = cell_of(bench.folder, *count, *overrides)
    prepared, sampler = prepare(cell, cell.model.load(str(bench.device)))
    noise = Noise(cell.seed, cell.batches[0], cell.card.shape)
    return lambda: [*sampler.trajectory(prepared.network, noise, None, bench.device)]


def guided_run(device: torch.device) -> Run:
    """A trajectory of a tiny conditional model with guidance."""
    model = Source.of(tiny(GUIDED), random_weights=True).load(str(device))
    card, images = model.card, tuple(range(IMAGES))
    sampler = Sampler(Timetable.spaced(card.spacing, STEPS, card.schedule, final=card.final))
    network, noise, cond = model.guided(model.network), Noise(0, images, card.shape), model.cond(images)
    return lambda: [*sampler.trajectory(network, noise, cond, device)]


def loop_lines(bench: Bench, name: str, run: Run) -> Iterator[Line]:
    run()
    with Watch() as watch:
        run()
    unknown = watch.without_reason()
    yield Line.at_most(f"{name}: places that wait without a reason", len(unknown), 0, "places", ", ".join(unknown))
    explained = sum(watch.places.values()) / STEPS
    shares = ", ".join(f"{place.removeprefix('iec.')} {count / STEPS:g}" for place, count in sorted(watch.places.items()))
    with profiled(bench.device) as counts:
        run()
    if bench.device.type != "cuda":
        yield Line.note(f"{name}: {VALUES}", counts[VALUES] / STEPS, "a step", shares)
        return
    for kind in (SYNCHRONISATIONS, COPIES):
        yield Line.at_most(f"{name}: {kind}", counts[kind] / STEPS, explained, "a step", shares)
