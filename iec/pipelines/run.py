"""The network calls of one run of a pipeline, and where in their list a pipeline may begin."""

from collections import Counter
from dataclasses import dataclass

from iec.errors import ConfigError


@dataclass(frozen=True)
class Run:
    """What `IECScheduler.set_timesteps` laid out.

    pairs: (t, s) of every step. calls: (sampling index, correction) of every entry of ``scheduler.timesteps``. listed: whether the
    timesteps were given one by one.
    """

    pairs: tuple[tuple[int, int], ...]
    calls: tuple[tuple[int, int], ...]
    listed: bool

    @property
    def repetition(self) -> int | None:
        """How often every step is in the list; None if some are corrected and some are not."""
        sizes = set(Counter(i for i, _ in self.calls).values())
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def order(self) -> int:
        """What pipelines multiply a number of steps by. With 1, progress bars end at T whatever is repeated."""
        return self.repetition or 1

    def first_step(self, begin_index: int, *, cached_steps: bool) -> int:
        """The sampling index of the first step of a run that begins at this entry.

        cached_steps: only these are left uncorrected. Raises `ConfigError` where the entry is not what the pipeline means.
        """
        if begin_index and (self.repetition is None or (self.listed and self.repetition > 1)):
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
        if not 0 <= begin_index < len(self.calls):
            raise ConfigError(
                f"Entry {begin_index} is none of the {len(self.calls)} timesteps. Call set_timesteps before every run. (With "
                "denoising_start above all timesteps, diffusers asks for one more than there are if order = 2: use iterations=2 or "
                "placement='none'.)"
            )
        step, correction = self.calls[begin_index]
        if correction and self.order != 2:
            raise ConfigError(
                f"Entry {begin_index} of the timesteps is not the first call of a step; no run can start there. Start at a "
                f"multiple of order = {self.order}."
            )
        return step + (correction > 0)  # such an entry is passed over, see `IECScheduler.step`
