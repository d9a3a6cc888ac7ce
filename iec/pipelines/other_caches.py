"""Caches that others put on the networks of a pipeline: which of them can be kept under corrections, and which are refused."""

from collections.abc import Callable, Collection
from contextlib import ExitStack
from typing import Any

from diffusers.hooks.hooks import HookRegistry
from torch import nn

from iec.errors import ConfigError
from iec.pipelines.corrected import Corrected
from iec.pipelines.transformer_caches import KINDS, NAME, CacheStates, cache_hooks, module_of

EXACT = "text_kv_cache"
"""The module of TextKVCache, which keeps what depends on the prompt alone."""
FOREIGN = {
    "nunchaku.caching": ("nunchaku", "Load the transformer again, without apply_cache_on_pipe, or leave the `with TeaCache(..)`"),
    "para_attn": ("ParaAttention", "Load the transformer again, without apply_cache_on_pipe"),
    "DeepCache": ("DeepCacheSDHelper", "Use iec.apply(pipe, cache=..) in its place: call its disable()"),
}
"""The modules whose function stands in the place of a forward -> the cache, and how to take it off."""
MARKED = ("cache-dit", "Call cache_dit.disable_cache(pipe)")
"""The same for networks with ``_is_cached``. Functions of cache-dit that only change a signature stay when it is taken off."""


def keep_states(pipe: Any, scheduler: Corrected) -> list[Callable[[], object]]:
    """Put `CacheStates` on every network of the pipeline that has a cache of diffusers; what takes them off again.

    Before every run ``scheduler.before_run`` then resets these caches (diffusers does so after a run, but not after an exception).
    Raises `ConfigError`, now and there, for caches whose state cannot be kept.
    """
    kept = [CacheStates(scheduler, network) for _, network in _cached(pipe)]
    for states in kept:
        around = getattr(getattr(states.network, "_diffusers_hook", None), "hooks", {}).values()
        if hasattr(states.network, "_hf_hook") and any(module_of(hook) in KINDS for hook in around):
            raise ConfigError(
                f"{type(states.network).__name__} is offloaded, and has a cache around its forward. Offloading passes over that "
                "after the first run: call pipe.remove_all_hooks(), and enable the offloading after iec.apply."
            )
    with ExitStack() as undo:  # of those that are put on before one that cannot be
        for states in kept:
            states.install()
            undo.callback(states.remove)
        undo.pop_all()

    def prepare() -> None:
        for part, network in _cached(pipe):
            states = next((states for states in kept if states.network is network), None)
            if states is None or not states.outermost or states.bypassed:
                raise ConfigError(
                    f"A cache, or something around it, was put on pipe.{part} after iec.apply. Call pipe.{part}.disable_cache() "
                    "and iec.remove(pipe), enable the cache again, and then call iec.apply."
                )
            HookRegistry.check_if_exists_or_initialize(network).reset_stateful_hooks()

    scheduler.before_run = prepare
    return [states.remove for states in kept]


def _cached(pipe: Any) -> list[tuple[str, Any]]:
    """(name, network) of those with a cache of diffusers. Raises `ConfigError` for any other, and on networks that diffusers does
    not reset after a run."""
    require_no_cache(pipe, but=KINDS)
    networks = [(part, network) for part, network in pipe.components.items() if isinstance(network, nn.Module)]
    inner = [(part, getattr(network, "_orig_mod", network)) for part, network in networks]  # where it is compiled
    return [(part, network) for part, network in inner if any(cache_hooks(network))]


def require_no_cache(pipe: Any, *, but: Collection[str] = ()) -> None:
    """Raises `ConfigError` if a network of the pipeline decides by itself which calls it computes. but: modules of diffusers.hooks
    whose caches are accepted on networks that have ``enable_cache``.
    """
    for part, network in pipe.components.items():
        kind, off = _cache_of(network, but) if isinstance(network, nn.Module) else (None, "")
        if kind is not None:
            raise ConfigError(
                f"A cache ({kind}) is on {part}. It counts calls or compares their inputs, and would answer the calls that correct "
                f"a step with those of the step itself. {off.format(part)} first."
            )


def _cache_of(network: Any, but: Collection[str]) -> tuple[str | None, str]:
    """(the cache that is on a network, how to take it off). Layerwise casting and offloading keep no state."""
    for module in network.modules():
        source = _source(vars(module).get("forward"))
        for package, foreign in FOREIGN.items():
            if source.startswith(package):
                return foreign
    if getattr(network, "_is_cached", False):
        return MARKED
    resets = hasattr(network, "_reset_stateful_cache")
    for module in network.modules():
        for name, hook in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).items():
            accepted = module_of(hook) == EXACT or (resets and module_of(hook) in but)
            if getattr(hook, "_is_stateful", False) and not accepted and name != NAME:
                if getattr(network, "is_cache_enabled", False):
                    return str(name), "Call pipe.{}.disable_cache()"
                registry = "diffusers.hooks.HookRegistry.check_if_exists_or_initialize(pipe.{})"
                return str(name), f"Call {registry}.remove_hook({name!r})"
    unknown = getattr(network, "is_cache_enabled", False) and not resets
    return ("enable_cache", "Call pipe.{}.disable_cache()") if unknown else (None, "")


def _source(forward: Any) -> str:
    """The module that a function, method or partial is from, whatever name it was given by functools.wraps."""
    function = getattr(forward, "func", getattr(forward, "__func__", forward))
    return str(getattr(function, "__globals__", {}).get("__name__", ""))
