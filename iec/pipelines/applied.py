"""What `iec.apply` has put on a pipeline: put in place, and taken off again."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from iec.efficiency.quantization import QuantizedUNet
from iec.errors import ConfigError
from iec.pipelines.bound import Bound, bind
from iec.pipelines.corrected import Corrected
from iec.pipelines.unet import Forward
from iec.pipelines.windows import count_steps
from iec.pipelines.wrappers import part_of

HANDLE = "_iec_applied"
"""The attribute of a pipeline that holds what was applied to it."""


@dataclass
class Applied(Bound):
    """What `apply` changed. ``remove()``, or leaving a ``with`` block, gives the pipeline its own scheduler and network back. Until
    then neither can be copied or pickled (`ConfigError`).

    What the pipeline did to a quantized UNet meanwhile (dtype, device, hooks, switches) goes over to its own.

    scheduler: the one that the pipeline now has. quantized: its quantized UNet, if there is one (see `describe`, `weight_bytes`).
    undo: what `remove` calls, the last first.
    """

    pipe: Any = field(repr=False)  # pages
    scheduler: Corrected
    quantized: QuantizedUNet | None = field(repr=False)
    undo: list[Callable[[], object]] = field(repr=False)

    def remove(self) -> None:
        """Take everything off; a second time does nothing. Raises `ConfigError` if the UNet has been wrapped since (offloading)."""
        while self.undo:
            self.undo[-1]()
            self.undo.pop()

    def __enter__(self) -> "Applied":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def exchange(pipe: Any, scheduler: Corrected, forward: Forward | None, undo: list[Callable[[], object]]) -> Applied:
    """Put scheduler and forward in place; what is done here is undone before what is in ``undo``."""

    def swap(name: str, new: Any) -> None:
        old = getattr(pipe, name)

        def back() -> None:
            if getattr(pipe, name) is new:  # else somebody has put in another one since
                setattr(pipe, name, old)

        undo.append(back)
        setattr(pipe, name, new)

    def unwrap(forward: Forward) -> None:
        unet = forward.unet
        if vars(unet).get("forward") is not forward:
            raise ConfigError("The forward of the UNet has been replaced since iec.apply. Take that off first, then remove this.")
        now = getattr(pipe, part)
        around = now is not unet and isinstance(now, nn.Module) and any(module is unet for module in now.modules())
        if around and forward.copy is not None:
            raise ConfigError(
                f"pipe.{part} has been wrapped in a {type(now).__name__} since iec.apply (torch.compile?). Put the network itself "
                f"back first (pipe.{part} = pipe.{part}._orig_mod), then remove this."
            )
        del unet.forward

    part = part_of(pipe)
    applied = Applied(pipe, scheduler, None if forward is None else forward.quantized, undo)
    undo.append(lambda: delattr(pipe, HANDLE))
    setattr(pipe, HANDLE, applied)
    swap("scheduler", scheduler)
    undo.append(bind(pipe) if scheduler.placement.kind == "none" else count_steps(pipe, scheduler))
    if forward is not None:
        unet = forward.unet
        if forward.copy is not None:
            undo.append(forward.copy.hand_back)
            swap(part, unet)
        unet.forward = forward
        undo.append(partial(unwrap, forward))
    return applied
