"""Full-precision, uncached runs from fresh noise: the data of every stage of the calibration."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from iec.efficiency.caching import CachedUNetNetwork
from iec.efficiency.caching.forecast import REUSE, Forecast
from iec.efficiency.quantization import CalibrationCall
from iec.io.progress import stage
from iec.sampling.ddim import Sampler
from iec.sampling.guidance import guided, unet_batch
from iec.sampling.network import FeatureCache, Network, Prediction, Step
from iec.sampling.noise import Noise
from iec.sampling.timetable import Timetable


@dataclass(frozen=True)
class FloatCall:
    """One call of the UNet in a float run: its input x [B, C, H, W], and the feature F [B, C', h, w] and the probe it made."""

    step: Step
    x: Tensor
    cond: Tensor | None
    feature: Tensor
    probe: Tensor | None = None

    @property
    def stored(self) -> FeatureCache:
        """As a refresh stores it."""
        return FeatureCache(self.feature, self.step, self.probe)


@dataclass(frozen=True)
class FloatRuns:
    """Runs of the float UNet of ``network`` over ``table``, every call full, in batches of ``batch_size``.

    Image n starts from the noise of (seed, n) and has cond[n]. guidance: w of a guided model, whose images have two branches
    each (`iec.sampling.guidance.unet_batch`). All stages take the images 0, 1, .., so that a stage's
    result does not depend on the sizes of the others; the corrections have two parameters a channel and cannot learn images.
    shape: (C, H, W).
    """

    network: CachedUNetNetwork
    table: Timetable
    shape: tuple[int, ...]
    seed: int
    batch_size: int
    cond: Tensor | None = None
    guidance: float | None = None

    def calls(self, count: int, name: str) -> Iterator[FloatCall]:
        """The calls on ``count`` images, a batch after another, each from step 0 to T-1. ``name``: of the stage, for the progress.

        Only the current call is held here.
        """
        sampler = Sampler(self.table, refresh=frozenset(range(len(self.table))))  # so that no-ops make their feature too
        with stage(name, -(-count // self.batch_size) * len(self.table)) as advance:
            for start in range(0, count, self.batch_size):
                indices = range(start, min(start + self.batch_size, count))
                cond = None if self.cond is None else self.cond[indices.start : indices.stop].to(self.network.device)
                recorder = _Recorder(guided(self.network, self.guidance))
                noise = Noise(self.seed, tuple(indices), self.shape)
                for _ in sampler.trajectory(recorder, noise, cond, self.network.device):
                    if recorder.call is not None:  # the first state comes before the first call
                        yield self._by_branch(recorder.call)
                        advance()

    def _by_branch(self, call: FloatCall) -> FloatCall:
        """A call on images as the UNet sees it: under guidance with both branches in the batch."""
        if self.guidance is None:
            return call
        x, cond = unet_batch(self.guidance, call.x, call.cond)
        stored = call.stored.changed(lambda value: value.flatten(0, 1))
        return FloatCall(call.step, x, cond, stored.feature, stored.probe)

    def calibration_calls(self, refresh: frozenset[int], count: int) -> list[CalibrationCall]:
        """What step i of a cached and quantized network is calibrated on: full calls at the refresh steps, cached ones between.

        x is that of the float run at every step, float32 [B, C, H, W]; a cached call carries the raw features of the last refresh
        steps, as many as the forecast looks at, which are held once for all calls.
        """
        steps = range(len(self.table))
        inputs: list[list[Tensor]] = [[] for _ in steps]
        stored: dict[int, list[FeatureCache]] = {s: [] for s in refresh}
        for call in self.calls(count, "calibration trajectories"):
            inputs[call.step.index].append(call.x.float())
            if call.step.index in refresh:
                stored[call.step.index].append(call.stored)
        cond = None if self.cond is None else self.cond[:count].to(self.network.device)
        if cond is not None:
            _, cond = unet_batch(self.guidance, cond, cond)
        calls: list[CalibrationCall] = []
        cache: FeatureCache | None = None
        for i, (t, _) in enumerate(self.table.pairs):
            step = Step(i, t, "full" if i in refresh else "cached")
            x, inputs[i] = torch.cat(inputs[i]), []  # the parts are let go
            calls.append(CalibrationCall(x, step, cond, None if i in refresh else cache))
            if i in refresh:
                cache = _joined(stored.pop(i)).after(cache, self.network.forecast.history)
        return calls


def _joined(parts: list[FeatureCache]) -> FeatureCache:
    """Of all images, from one step of each batch."""
    probes = [part.probe for part in parts if part.probe is not None]
    return FeatureCache(torch.cat([part.feature for part in parts]), parts[0].step, torch.cat(probes) if probes else None)


def with_source(
    calls: Iterable[FloatCall], refresh: frozenset[int], forecast: Forecast = REUSE
) -> Iterator[tuple[FloatCall, Tensor]]:
    """Each call with what stands in for its feature: without a forecast F_s, of the last step of ``refresh`` up to it, else what is
    forecast from the last of them. At the steps of ``refresh``, with 0 among them, its own.
    """
    cache: FeatureCache | None = None
    for call in calls:
        if call.step.index in refresh or cache is None:
            cache = call.stored.after(cache, forecast.history)
            yield call, call.feature
        else:
            yield call, forecast.feature(cache, call.step, call.probe)


class _Recorder:
    """Passes calls on and remembers the last one."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.call: FloatCall | None = None

    def __call__(self, x: Tensor, step: Step, cond: Tensor | None = None, cache: FeatureCache | None = None) -> Prediction:
        prediction = self.network(x, step, cond, cache)
        if prediction.feature is not None:
            self.call = FloatCall(step, x, cond, prediction.feature, prediction.probe)
        return prediction
