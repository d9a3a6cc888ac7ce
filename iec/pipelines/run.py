"""The network calls of one run of a pipeline, and where in their list a pipeline may begin."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from iec.errors import ConfigError


@dataclass(frozen=True)
class Run:
    """What ``set_timesteps`` of our schedulers laid out. An entry is one of ``scheduler.timesteps``: one network call.

    timesteps: of every step. calls: (sampling index, correction) of every entry. listed: whether the timesteps or noise levels
    were given one by one. Pipelines then take the number of entries for the number of steps.
    """

    timesteps: tuple[float, ...]
    calls: tuple[tuple[int, int], ...]
    listed: bool

    @classmethod
    def laid_out(cls, timesteps: Sequence[float], corrected: Collection[int], iterations: int, *, listed: bool) -> "Run":
        """One call a step, and K = ``iterations`` more for those that are corrected."""
        calls = [(i, k) for i in range(len(timesteps)) for k in range(1 + (iterations if i in corrected else 0))]
        return cls(tuple(timesteps), tuple(calls), listed)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How often every step is in the list."""
        counted = Counter(i for i, _ in self.calls)
        return tuple(counted[i] for i in range(len(self.timesteps)))

    @property
    def repetition(self) -> int | None:
        """How often every step before the last is in the list; None if some are corrected and some are not. The last one may
        differ: no run begins behind it.
        """
        sizes = set(self.sizes[:-1] or self.sizes)
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def order(self) -> int:
        """What pipelines multiply a number of steps by, or of entries if the list was given. With 1, progress bars end where they
        should whatever is repeated.
        """
        return 1 if self.listed else self.repetition or 1

    def first_call(self, i: int) -> int:
        """The entry of the ordinary call of step i; for i = T the number of entries."""
        return len(self.calls) if i == len(self.timesteps) else self.calls.index((i, 0))

    def first_step(self, begin_index: int, *, cached_steps: bool) -> int:
        """The sampling index of the first step of a run that begins at this entry.

        cached_steps: only these are left uncorrected. Raises `ConfigError` where the entry is not what the pipeline means.
        """
        uneven = self.repetition is None or (self.listed and len(set(self.sizes)) > 1)
        if not 0 <= begin_index < len(self.calls):
            raise ConfigError(
                f"Entry {begin_index} is none of the {len(self.calls)} timesteps. Call set_timesteps before every run. (With "
                "denoising_start above all timesteps, diffusers asks for one more than there are if order = 2: use iterations=2 or "
                "placement='none'.)"
            )
        step, correction = self.calls[begin_index]
        if begin_index and (uneven or (self.listed and correction)):
            way_out = (
                "Here cached steps are left uncorrected: use Placement('all_steps', cached_steps='cached') or, without "
                "quantization, cached_steps='full'."
                if cached_steps and not self.listed
                else "Use placement='all_steps' with last_step='correct' (with a cache also cached_steps='cached') or placement="
                "'none', and num_inference_steps; or, in image-to-image, list the timesteps that are to be run, with strength=1."
            )
            raise ConfigError(
                f"The pipeline starts at entry t_start * order = {begin_index} of the timesteps, which is not the step it means if "
                f"only some are repeated, or if it was given the timesteps as a list. {way_out}"
            )
        if correction and self.order != 2:
            raise ConfigError(
                f"Entry {begin_index} of the timesteps is not the first call of a step; no run can start there. Start at a "
                f"multiple of order = {self.order}."
            )
        return step + (correction > 0)  # such an entry is passed over, see `Corrected.advance`

    def beginning_at(self, entry: int) -> "Run":
        """The run whose ordinary call of a step is this entry of it, with fewer corrections after it. The entries before are not
        part of the run any more.
        """
        step, missed = self.calls[entry]
        return replace(self, calls=tuple((i, k - missed if i == step else k) for i, k in self.calls))
