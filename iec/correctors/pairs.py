"""What the efficient network predicts beside the full-precision one, at the same states: what correctors are fitted to."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from iec.efficiency.moments import Moments, PairSums
from iec.errors import ConfigError, NonFiniteError, require_fields
from iec.io.artifacts import artifact_path, cached
from iec.io.progress import Advance, stage
from iec.sampling.corrector import Corrector
from iec.sampling.ddim import Sampler
from iec.sampling.network import FeatureCache, Network, Step, renewed
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.solver import Solver
from iec.sampling.timetable import Timetable

KIND = "corrector"
SEED = 2**42
"""Far from the seeds of images, and from that of quantizers, whose scales fit their own calibration images best."""
Correct = Callable[[Moments, int, Tensor], Tensor]
"""(moments of the pairs up to step i, i, e [B, C, H, W]) -> e corrected."""


@dataclass(frozen=True)
class CalibratedCorrector(Corrector):
    """A corrector that is fitted to `PairedRuns` before it is sampled with: its fields say how, and `fitted` gives the one with the
    hooks. Raises `ConfigError` for fewer than one image, and where cached steps would be corrected by full calls: what is fitted to
    the calls of a step does not hold for others.
    """

    needs_refresh_steps: ClassVar[bool] = True
    calibration_images: int = 64

    def __post_init__(self) -> None:
        require_fields(self, "corrector.")
        if self.calibration_images < 1:
            raise ConfigError(f"corrector.calibration_images={self.calibration_images!r} must be a whole number of at least 1.")

    @abstractmethod
    def fitted(self, runs: "PairedRuns") -> Corrector:
        """The corrector to sample with."""

    def calibration_calls(self, sampler: Solver) -> int:
        """Two a step and image."""
        return 2 * self.calibration_images * calling_steps(sampler)

    def eps(self, eps: Tensor, step: Step, table: Timetable) -> Tensor:
        """Raises `ConfigError`: only what `fitted` gives has hooks."""
        raise ConfigError(f"{type(self).__name__} has to be fitted before it is sampled with: see iec.correctors.prepare.fitted.")

    def attach(self, sampler: Sampler, shape: tuple[int, ...]) -> Sampler:
        if sampler.full_at_cached_steps:
            raise ConfigError(
                "iec.cached_steps=full makes full calls at cached steps, and this corrector is fitted to the cached calls of these "
                "steps. Use iec.cached_steps=cached, or skip."
            )
        return super().attach(sampler, shape)


def calling_steps(sampler: Solver) -> int:
    """The steps that call the network."""
    return sum(not sampler.makes_no_call(i) for i in range(len(sampler.timetable)))


@dataclass
class _Batch:
    """Where a batch of calibration images is."""

    noise: Noise
    cond: Tensor | None
    x: Tensor
    cache: FeatureCache | None = None


@dataclass(frozen=True)
class PairedRuns:
    """An efficient ``network`` beside the full-precision ``reference``, both under the model's guidance.

    sampler: of the efficient run; its corrections by IEC take no part. shape: (C, H, W). cond: image indices -> cond.
    artifacts: the folder where moments are stored and found again, named by ``fingerprint``, all that they depend on here; None:
    nothing is stored. batch_size: of the runs; it changes the result by rounding only.
    """

    reference: Network
    network: Network
    sampler: Sampler
    shape: tuple[int, ...]
    cond: Callable[[Sequence[int]], Tensor | None]
    device: torch.device | str = "cpu"
    batch_size: int = 32
    artifacts: Path | None = None
    fingerprint: dict[str, Any] = field(default_factory=dict)

    def moments(self, images: int, correct: Correct | None = None, **depends: Any) -> Moments:
        """Of (e, f) at each step that changes something, over ``images`` runs and all pixels: e is what the efficient network
        predicts in the step's ordinary call, cached ones included, and f what the reference predicts at the same state.

        The states are those of the full-precision run; with ``correct`` those of the efficient run, whose every step is corrected
        by it. depends: what ``correct`` depends on, JSON values. Two calls a step and image. Raises `NonFiniteError`.
        """
        return Moments(**self._stored(KIND, lambda: self._measured(images, correct).tensors(), images=images, **depends))

    def final_errors(self, correctors: Sequence[Corrector], images: int, **depends: Any) -> Tensor:
        """Mean square of the distance between the final states of the efficient run with each of the ``correctors`` and those of
        the full-precision run, over ``images`` runs and all pixels: float64 [len(correctors)], stored and found again. depends:
        what tells the correctors, JSON values. A call for each corrector, step and image, and one of the reference. Raises
        `NonFiniteError`.
        """

        def measured() -> dict[str, Tensor]:
            return {"errors": self._final_errors(correctors, images)}

        return self._stored(f"{KIND}-finals", measured, images=images, **depends)["errors"]

    def _stored(self, kind: str, measure: Callable[[], dict[str, Tensor]], **depends: Any) -> dict[str, Tensor]:
        if self.artifacts is None:
            return measure()
        fingerprint = {**self.fingerprint, "seed": SEED, **depends}
        stored = cached(artifact_path(self.artifacts, kind, fingerprint), kind, fingerprint, measure)
        return {name: tensor.to(self.device) for name, tensor in stored.items()}

    def _final_errors(self, correctors: Sequence[Corrector], images: int) -> Tensor:
        exact = Sampler(self.sampler.timetable, dtype=self.sampler.dtype)
        runs = [(exact, self.reference)]
        runs += [(replace(self.sampler, placement=Placement(), corrector=own), self.network) for own in correctors]
        errors, batches = torch.zeros(len(correctors), dtype=torch.float64, device=self.device), list(self._batches(images))
        with stage("searching the corrector", len(batches) * len(runs) * len(self.sampler.timetable)) as advance:
            for batch in batches:
                finals = [self._final(sampler, network, batch, advance) for sampler, network in runs]
                errors += torch.stack([(x - finals[0]).double().square().sum() for x in finals[1:]])
        return errors / (images * batches[0].x[0].numel())

    def _final(self, sampler: Sampler, network: Network, batch: _Batch, advance: Advance) -> Tensor:
        states = sampler.trajectory(network, batch.noise, batch.cond, self.device)
        x = next(states)
        for x in states:  # noqa: B007  # the last one is wanted
            advance()
        return x

    @torch.no_grad()
    def _measured(self, images: int, correct: Correct | None) -> Moments:
        sampler, table = self.sampler, self.sampler.timetable
        sums, batches = PairSums(len(table), self.shape[0], self.device), list(self._batches(images))
        with stage("calibrating the corrector", len(batches) * len(table)) as advance:
            for i in range(len(table)):
                pairs = [] if sampler.makes_no_call(i) else [self._pair(i, batch) for batch in batches]
                if not table.is_noop(i):
                    for e, f in pairs:
                        sums.add(i, e, f)
                    moments = None if correct is None else sums.moments()
                    for batch, (e, f) in zip(batches, pairs, strict=True):
                        eps = f if moments is None or correct is None else correct(moments, i, e.to(batch.x.dtype))
                        batch.x = self._next(i, batch, eps)
                for _ in batches:
                    advance()
        found = sums.moments()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in found.tensors().values()):
            raise NonFiniteError("The predictions that the corrector is fitted to are not finite. Use a wider network dtype.")
        return found

    def _batches(self, images: int) -> Iterator[_Batch]:
        for start in range(0, images, self.batch_size):
            indices = tuple(range(start, min(start + self.batch_size, images)))
            noise = Noise(SEED, indices, self.shape)
            yield _Batch(noise, self.cond(indices), noise.initial(self.sampler.dtype, self.device))

    def _pair(self, i: int, batch: _Batch) -> tuple[Tensor, Tensor]:
        """(e, f) at the batch's state, [B, C, H, W]; renews its cache."""
        t = self.sampler.timetable.pairs[i][0]
        step = Step(i, t, self.sampler.mode(i))
        prediction = self.network(batch.x, step, batch.cond, batch.cache)
        batch.cache = renewed(batch.cache, prediction, step)
        return prediction.eps, self.reference(batch.x, Step(i, t), batch.cond).eps

    def _next(self, i: int, batch: _Batch, eps: Tensor) -> Tensor:
        table = self.sampler.timetable
        x = float(table.A[i]) * batch.x + float(table.B[i]) * eps.to(batch.x.dtype)
        if table.sigma[i] > 0:
            x = x + float(table.sigma[i]) * batch.noise.of_step(i, x.dtype, x.device)
        return x
