"""Caches of diffusers on a transformer (``transformer.enable_cache(..)``) under corrections.

FirstBlockCache, TaylorSeer, MagCache, SeaCache, Pyramid Attention Broadcast and FasterCache decide by themselves which calls they
compute. They count calls, or compare a call with the one before. A correction calls the network at the same timestep once more, and
would be counted as a step, or answered with the result of the step that it corrects. So every correction gets a state of its own.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers.hooks.hooks import HookRegistry, ModelHook, StateManager
from torch import Tensor, nn

from iec.errors import ConfigError
from iec.pipelines.corrected import Corrected

NAME = "iec_cache_states"
"""Of our hook in the registry of a network."""
KINDS = frozenset(
    {"first_block_cache", "taylorseer_cache", "mag_cache", "sea_cache", "pyramid_attention_broadcast", "faster_cache"}
)
"""The modules of diffusers.hooks that have the hooks of these caches."""


class Call(NamedTuple):
    """What a call of the network is.

    branch: of guidance, by the name of the cache context, or else by which call of its entry it is. step: the sampling index. anew:
    whether its caches begin anew, so that all is computed.
    """

    branch: Hashable
    step: int
    correction: int
    anew: bool


class CacheStates(ModelHook):
    """Keeps the states of the caches of a network, one for every guidance branch and every correction k = 0 .. K.

    For each call it puts that of the call in place. The calls k = 0 are then computed and reused as in a run without corrections.
    ``placement.cached_steps`` says what a correction k > 0 does:

    * ``cached``: it decides by its own state. If a step before was left uncorrected, its counters are behind, and it is computed.
    * ``full``: it begins anew, and is computed.
    * ``skip``: it is computed, but not in a step whose own call reused anything. There it is given the answer of that call, which
      leaves the state as it is: y + lambda (A x_t + B F(x_t, t) - y) = y.
    """

    _is_stateful = True  # so that diffusers resets it together with the caches, at the end of a run

    def __init__(self, scheduler: Corrected, network: nn.Module) -> None:
        super().__init__()
        self.scheduler = scheduler
        self.network: Any = network
        self.reset_state(network)

    def install(self) -> None:
        """Stand around the network's forward, within accelerate's offloading."""
        with _offloading_aside(self.network):
            HookRegistry.check_if_exists_or_initialize(self.network).register_hook(self, NAME)
            self.forward = self.network.forward
        self.inner: Any = self.fn_ref.original_forward
        self.own: Any = self.fn_ref.forward

    @property
    def outermost(self) -> bool:
        """Whether nothing but offloading stands around this."""
        return any(vars(self.network).get(name) is self.forward for name in ("forward", "_old_forward"))

    @property
    def bypassed(self) -> bool:
        """Whether a cache was taken off from within: diffusers then calls what that stood around, and passes this over."""
        return self.fn_ref.forward is not self.own

    def remove(self) -> None:
        """Take this off, after which the network is as before. Raises `ConfigError` if another wrapper stands around it."""
        if not self.outermost:
            raise ConfigError(
                f"The forward of {type(self.network).__name__} has been replaced since iec.apply. Take that off first (a cache: "
                "disable_cache()), then remove this."
            )
        if self.bypassed:
            self.fn_ref.original_forward = self.fn_ref.forward
        with _offloading_aside(self.network):
            HookRegistry.check_if_exists_or_initialize(self.network).remove_hook(NAME, recurse=False)

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Forget a run."""
        self.hooks = list(cache_hooks(self.network))
        self.holders = list(_holders(self.hooks))
        self.states: dict[tuple[Hashable, int], list[Any]] = {}
        self.calls: Counter[tuple[Hashable, int]] = Counter()  # so far, of a branch and correction
        self.entry: int | None = None  # of ``scheduler.timesteps``
        self.in_entry = 0  # calls of this entry so far
        self.reused = False  # whether the step's own call reused anything, in any branch
        self.answers: dict[Hashable, Any] = {}  # of the step's own call
        return module

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The network's forward, with the states of this call."""
        call = self._begin()
        skipping = self.scheduler.placement.cached_steps == "skip"
        if call.correction and skipping and self.reused and call.branch in self.answers:
            return self.answers[call.branch]
        count = _Images(self.hooks if skipping and call.correction == 0 else [])
        before = self._put(call)
        try:
            output = count.of(partial(self.inner, *args, **kwargs))
        finally:
            self._put_back(before)
        if call.correction == 0 and skipping:
            self.reused |= count.computed < count.asked
            self.answers[call.branch] = output
        return output

    @torch.compiler.disable
    def _begin(self) -> Call:
        step, k = self.scheduler.upcoming
        if self.scheduler.position != self.entry:
            self.entry, self.in_entry = self.scheduler.position, 0
        if k == 0 and self.in_entry == 0:
            self.reused, self.answers = False, {}
        names = (_name(holder) for holder, _ in self.holders)
        branch = next((name for name in names if name is not None), self.in_entry)
        self.in_entry += 1
        behind = self.calls[branch, k] != self.calls[branch, 0] - 1
        self.calls[branch, k] += 1
        return Call(branch, step, k, k > 0 and (behind or self.scheduler.placement.cached_steps != "cached"))

    @torch.compiler.disable
    def _put(self, call: Call) -> list[tuple[Any, Any]]:
        """Put the states of this call in place; what was there, and the contexts."""
        before = [(getattr(holder, name), _context(holder)) for holder, name in self.holders]
        new = [type(state)() for state, _ in before]
        states = new if call.anew else self.states.setdefault((call.branch, call.correction), new)
        for (holder, name), state in zip(self.holders, states, strict=True):
            if call.anew and hasattr(holder, "block_skip_range"):
                state.iteration = holder.block_skip_range  # a multiple: computed, where 0 would not do for FasterCache
            setattr(holder, name, state)
            context = _context(holder)
            if getattr(context, "step_index", None) is not None:
                steps = len(self.scheduler.run.timesteps)
                holder.set_context(replace(context, step_index=call.step, num_inference_steps=steps))
        return before

    @torch.compiler.disable
    def _put_back(self, before: list[tuple[Any, Any]]) -> None:
        for (holder, name), (state, context) in zip(self.holders, before, strict=True):
            setattr(holder, name, state)
            if isinstance(holder, StateManager):
                holder.set_context(context)


class _Images:
    """Counts the images that the hooks of caches are asked for during a call, and those that they compute."""

    def __init__(self, hooks: list[ModelHook]) -> None:
        self.references: list[Any] = [hook.fn_ref for hook in hooks if hook.fn_ref.original_forward is not None]
        self.asked = self.computed = 0

    def of(self, forward: Callable[[], Any]) -> Any:
        """The result of ``forward()``."""
        before = [(reference, reference.forward, reference.original_forward) for reference in self.references]
        for reference, decides, computes in before:
            reference.forward, reference.original_forward = partial(self._ask, decides), partial(self._compute, computes)
        try:
            return forward()
        finally:
            for reference, decides, computes in before:
                reference.forward, reference.original_forward = decides, computes

    def _ask(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.asked += _images(args, kwargs)
        return forward(*args, **kwargs)

    def _compute(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.computed += _images(args, kwargs)
        return forward(*args, **kwargs)


def _images(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    return next(len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim)


def cache_hooks(network: nn.Module) -> Iterator[ModelHook]:
    """The hooks of diffusers' caches on a network and its parts."""
    for module in network.modules():
        for hook in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).values():
            if module_of(hook) in KINDS:
                yield hook


def _holders(hooks: list[ModelHook]) -> Iterator[tuple[Any, str]]:
    """(object, name of the attribute) of all that hooks keep from one call to the next. Several may share a StateManager."""
    holders: dict[int, tuple[Any, str]] = {}
    for hook in hooks:
        if hasattr(hook, "state"):
            holders[id(hook)] = (hook, "state")
        holders |= {id(value): (value, "_state_cache") for value in vars(hook).values() if isinstance(value, StateManager)}
    yield from holders.values()


def module_of(hook: ModelHook) -> str | None:
    """The module of diffusers.hooks that the class of a hook is from, None for another package's."""
    package, _, module = type(hook).__module__.rpartition(".")
    return module if package == "diffusers.hooks" else None


def _context(holder: Any) -> Any:
    """Of a StateManager: the cache context that the pipeline opened. In older versions of diffusers it is a name."""
    return getattr(holder, "_context", getattr(holder, "_current_context", None))


def _name(holder: Any) -> str | None:
    context = _context(holder)
    return getattr(context, "name", context)


@contextmanager
def _offloading_aside(network: Any) -> Iterator[None]:
    """accelerate's wrapper calls ``_old_forward``, and puts that in its own place when it is taken off, after every run."""
    if not hasattr(network, "_hf_hook"):
        yield
        return
    around, network.forward = network.forward, network._old_forward
    try:
        yield
    finally:
        network._old_forward, network.forward = network.forward, around
