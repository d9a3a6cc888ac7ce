"""Part ``options``: each option of the configuration on the device against float32 on the CPU, over a few steps of a bundled model.

Techniques, corrections, correctors and solvers. What is compared is the final state: with the CPU's calibrations, which float32
finds in the same folder, so that nothing but what runs at each step differs; and once with calibrations of the device.

**The limit** is at first that of one call of the network (`iec.gpucheck.arithmetic`). An option that exceeds it is allowed as much
as rounding does to it on the CPU: `HEADROOM` times the change of its result when the input and the output of each call are
multiplied by 1 + d n, n ~ N(0, 1), with d the error of a call. So a technique that rounds (a quantizer, where a last bit decides
between two numbers of the grid), one that decides (adaptive refresh), and steps that amplify errors have limits of their own.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor

from iec.gpucheck.arithmetic import ARITHMETICS, FLOAT32, HEADROOM, Arithmetic, depth, relative_error, supported
from iec.gpucheck.cells import cell_of
from iec.gpucheck.option_list import NOT_HERE, Option, options
from iec.gpucheck.part import Bench, Line, Part, attempted
from iec.models import Model
from iec.runs.batches import sample_batch
from iec.runs.cell import Cell
from iec.runs.sampling import prepare
from iec.sampling.network import FeatureCache, Network, Prediction, Step

IMAGES, STEPS = 2, 5


def measure(bench: Bench) -> Iterator[Line]:
    """All options in one arithmetic before the next: float32 tells most."""
    trials = Trials(bench)
    for arithmetic in supported(bench.device, ARITHMETICS):
        for option in options(bench.size):
            yield from attempted(f"{option.name}, {arithmetic.name}", partial(trials.lines, option, arithmetic))
    for name, reason in NOT_HERE.items():
        yield Line.skipped(name, reason)


Around = Callable[[Network], Network]
PART = Part("options", "Does each technique, correction and solver give what it gives on a CPU?", measure, seconds=80)


class Trials:
    """Runs of options. Cells, models and the CPU's results are kept."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.cell, self.model, self.reference = cache(self._cell), cache(self._model), cache(self.on_cpu)

    def lines(self, option: Option, arithmetic: Arithmetic) -> Iterator[Line]:
        """In float32 also with calibrations of the device."""
        yield self.compared(f"{option.name}, {arithmetic.name}", option, arithmetic)
        if option.calibrated and arithmetic is FLOAT32:
            yield self.compared(f"{option.name}, calibrated on the device", option, arithmetic, anew=True)

    def compared(self, what: str, option: Option, arithmetic: Arithmetic, anew: bool = False) -> Line:
        reference = self.reference(option)
        model = self.model(self.bench.device, arithmetic)
        with arithmetic.active(self.bench.device):
            error = relative_error(self.final_state(option, model, anew=anew), reference)
        limit = arithmetic.limit(*depth(model.unet))
        if error > limit:
            changed = self.on_cpu(option, perturbed_by(limit / HEADROOM))
            limit = max(limit, HEADROOM * relative_error(changed, reference))
        return Line.at_most(what, error, limit, "relative RMS error")

    def on_cpu(self, option: Option, around: Around = lambda network: network) -> Tensor:
        """The final state that is compared with."""
        same = replace(option, overrides=option.on_cpu or option.overrides)
        return self.final_state(same, self.model(torch.device("cpu"), FLOAT32), around)

    def final_state(self, option: Option, model: Model, around: Around = lambda network: network, anew: bool = False) -> Tensor:
        """[B, C, H, W]. around: what is put around the network that the technique prepares. anew: with calibrations of its own."""
        cell = self.cell(option)
        if anew:
            cell = replace(cell, paths=replace(cell.paths, artifacts=self.bench.folder / "anew"))
        prepared, sampler = prepare(cell, model)
        samples = sample_batch(model, around(prepared.network), sampler, cell.seed, cell.batches[0], IMAGES)
        return torch.from_numpy(samples.states[-1])

    def _cell(self, option: Option) -> Cell:
        """At toy size with a quarter of the pixels."""
        count = (f"num_images={IMAGES}", f"batch_size={IMAGES}", f"sampler.steps={STEPS}", "device=cpu")
        cell = cell_of(self.bench.folder, *count, *option.overrides)
        if not self.bench.toy:
            return cell
        channels, height, width = cell.card.shape
        return replace(cell, model=replace(cell.model, card=replace(cell.card, shape=(channels, height // 2, width // 2))))

    def _model(self, device: torch.device, arithmetic: Arithmetic) -> Model:
        source = self.cell(options(self.bench.size)[0]).model
        return replace(source, dtype=str(arithmetic.dtype).removeprefix("torch.")).load(str(device))


def perturbed_by(size: float) -> Around:
    """Around a network: its input and its output, each with a relative error of that size, the same at each call."""

    def around(network: Network) -> Network:
        def perturbed(x: Tensor, step: Step, cond: Tensor | None = None, cache: FeatureCache | None = None) -> Prediction:
            prediction = network(_with_error(x, size), step, cond, cache)
            return replace(prediction, eps=_with_error(prediction.eps, size))

        return perturbed

    return around


def _with_error(x: Tensor, size: float) -> Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    return x * (1 + size * noise)
