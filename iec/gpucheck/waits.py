"""Where the host waits for a device: values that it reads, and copies between the two, by place and by torch's profiler."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

REASONS = {
    "iec.sampling.network.require_finite": "once a call: a run that breaks stops at the call that broke it, and names it",
    "iec.sampling.noise.Noise._draw": "noise is drawn on the CPU: an image does not depend on the device",
    "iec.sampling.ddim.Sampler._advance": "iec.tolerance, before a further correction: whether all images have converged",
    "iec.sampling.ddim.Sampler._taken": "adaptive refresh: the images that refresh, as indices",
    "iec.sampling.adaptive.AdaptiveRefresh.due": "adaptive refresh: each image decides by what it computed",
    "iec.sampling.network.FeatureCache.of": "adaptive refresh, timeshift: the images of a part of the batch",
    "iec.sampling.network._joined": "adaptive refresh: the order of a batch that was taken apart",
    "iec.sampling.corrector.predict": "timeshift: the images that are told one timestep",
    "iec.correctors.timeshift.TimeShift.timestep": "timeshift: its table of noise levels",
    "iec.efficiency.caching.forecast.Extrapolated.feature": "adaptive refresh: the weights of a forecast for each image",
    "iec.sampling.multistep.MultistepSampler.scheduler": "once a batch: a solver of diffusers keeps its tables on the CPU",
    "diffusers.schedulers": "a solver of diffusers keeps its tables on the CPU",
}
"""Place (a function, or a package) -> why the sampling loop waits there."""
READS = frozenset(
    ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "nonzero", "argwhere", "unique",
     "unique_consecutive", "masked_select", "equal", "allclose")
)  # fmt: skip
"""Functions of torch whose result is on the host, or has a size that depends on values."""
UPLOADS = frozenset(("tensor", "as_tensor", "asarray"))
"""Those that bring numbers of the host to the device."""
SYNCHRONISATIONS, COPIES, VALUES = "synchronisations", "copies", "values read"
EVENTS: Mapping[str, tuple[str, ...]] = {
    SYNCHRONISATIONS: ("cudaStreamSynchronize", "cudaEventSynchronize"),
    COPIES: ("Memcpy HtoD", "Memcpy DtoH"),
    VALUES: ("aten::_local_scalar_dense",),
}
"""What is counted -> how the profiler's events begin. cudaDeviceSynchronize is the profiler's own, and our timers'."""


class Watch(TorchFunctionMode):
    """Within the block counts, by place, calls of torch that make the host wait for a device. It works on any device: on a CPU it
    finds what would wait on a GPU, but for copies by ``.to``, which are none there.

    answer: in place of the result of a call on a tensor that has no values (a fake one); None: the call is made.
    """

    def __init__(self, answer: Callable[[str], Any] | None = None) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()
        self.answer = answer

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        result = self.answer(name) if self.answer is not None and name in READS else None
        if result is None:
            result = func(*args, **(kwargs or {}))
        if name in READS or name in UPLOADS or _by_mask(name, args) or _moved(args, result):
            self.places[_place()] += 1
        return result

    def without_reason(self) -> list[str]:
        """The places that `REASONS` does not have."""
        return sorted(place for place in self.places if not any(place == known or _inside(place, known) for known in REASONS))


def _by_mask(name: str, args: tuple[Any, ...]) -> bool:
    """Whether entries are chosen by a mask, whose count of them the host has to know."""
    if name not in ("__getitem__", "__setitem__"):
        return False
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(isinstance(entry, Tensor) and entry.dtype == torch.bool for entry in index)


def _moved(args: tuple[Any, ...], result: Any) -> bool:
    """Whether the result is the first argument, or the second one copied into it, on another device."""
    tensors = [value for value in (*args[:2], result) if isinstance(value, Tensor) and value.ndim]
    return isinstance(result, Tensor) and len({tensor.device for tensor in tensors}) > 1


def _inside(place: str, package: str) -> bool:
    return place.startswith(f"{package}.")


def _place() -> str:
    """module.function of the innermost frame that is neither torch's nor this module's; of a nested function the outermost."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (module := str(frame.f_globals.get("__name__"))).startswith(("torch.", __name__)):
        frame = frame.f_back
    assert frame is not None  # who called
    return f"{module}.{frame.f_code.co_qualname.split('.<locals>')[0]}"


@contextmanager
def profiled(device: torch.device) -> Iterator[Counter[str]]:
    """Counts what `EVENTS` names, within the block; the counter is filled at its end."""
    counts: Counter[str] = Counter()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        yield counts
    counts.update(counted(event.name for event in profile.events()))


def counted(names: Iterable[str]) -> Counter[str]:
    """Of the names of the profiler's events."""
    return Counter(kind for name in names for kind, begins in EVENTS.items() if name.startswith(begins))
