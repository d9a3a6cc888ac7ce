"""A diffusers UNet that can reuse its deep feature, or forecast it: DeepCache (arXiv 2312.00858) as a `Network`."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from iec.efficiency.caching.cut import Kind, find_cut
from iec.efficiency.caching.forecast import REUSE, Forecast
from iec.efficiency.caching.structure import Signals, structure_of
from iec.errors import ConfigError
from iec.models.inputs import Conditioning
from iec.sampling.network import Compiler, FeatureCache, Mode, Prediction, Step

TEXT, ADDED = "encoder_hidden_states", "added_cond_kwargs"
RESIDUALS = ("down_block_additional_residuals", "mid_block_additional_residual")
ARGUMENTS = frozenset({TEXT, ADDED, *RESIDUALS})
"""Arguments of a UNet2DConditionModel that may be in a `Conditioning`: text embeddings; ``text_embeds`` [B, P] and ``time_ids``
[B, n] of Stable Diffusion XL; the residuals of a ControlNet, one a skip and that of the mid block, both or neither."""


class CachedUNetNetwork:
    """Full calls run the whole UNet and return F, what enters the consumer of the cut's skip; cached calls start there.

    module: a UNet2DModel or UNet2DConditionModel, float or the ``unet`` of a quantized one; its own modules are run, in its own
    dtype. Build this after the UNet has been quantized. cut: see `find_cut`. forecast: what cached calls take for F, given those of
    the last refreshes.
    cond: class labels [B] of a UNet2DModel with a class embedding, text embeddings [B, tokens, width] of a UNet2DConditionModel; or
    a `Conditioning` of the latter's arguments, see `ARGUMENTS`. Residuals of a ControlNet are added to the skips; a cached call
    uses those of the skips that it makes. The deeper ones and the mid block's are within F, as they were at the last refresh.

    A full call equals ``module(x, t, cond).sample`` bit for bit, if the UNet and its down and up blocks have no hooks and no
    forward of their own: their parts are run, and they are not called. A hook on a deep module fires in full calls only. A cached
    call at the x and timestep that F was made with equals the full call. F [B, C, h, w] comes in with ``cache`` and goes out with
    the prediction, as do the skip tensor of the cut, if the forecast needs it, and how many earlier F it looks back at; nothing is
    kept between calls. F has one entry an image of x, so that a wrapper that doubles the batch
    (guidance) can fold both branches of an image into one, and a wrapper that corrects F can do so before it hands it in. Raises
    `ConfigError`.
    """

    def __init__(self, module: nn.Module, cut: int | Kind, forecast: Forecast = REUSE) -> None:
        from diffusers import UNet2DConditionModel

        self.cut, self.forecast = find_cut(module, cut), forecast
        self.module: Any = module.eval().requires_grad_(False)
        self.structure = structure_of(module)
        self.conditional = isinstance(module, UNet2DConditionModel)
        self.dtype: Any = module.dtype  # under layerwise casting that of the arithmetic, not of the parameters
        self.device = next(module.parameters()).device
        self._start = len(self.structure.up) - 1 - self.cut.index  # the up stage that F enters
        self._graphs: Mapping[Mode, Callable[..., Any]] = {}

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of the modules that cached calls leave out."""
        stages = (*self.structure.down[self.cut.index + 1 :], *self.structure.up[: self._start])
        return ("mid_block", *(name for stage in stages for name, _ in stage.parts))

    def compiled(self, compiler: Compiler) -> "CachedUNetNetwork":
        """See `Compilable`."""
        other = copy.copy(self)
        other._graphs = {"full": compiler(self._full), "cached": compiler(self._cached)}
        return other

    def __call__(
        self, x: Tensor, step: Step, cond: Tensor | Conditioning | None = None, cache: FeatureCache | None = None
    ) -> Prediction:
        timesteps, told = torch.full((len(x),), step.timestep, device=x.device), _arguments(cond)
        if step.mode == "full":
            eps, feature, probe = self._graphs.get("full", self._full)(x, timesteps, told)
            return Prediction(eps, feature, probe, self.forecast.history)
        if cache is None:
            raise ConfigError("A cached call needs the feature of an earlier full call. Make the first step a refresh step.")
        eps = self._graphs.get("cached", self._cached)(x, timesteps, told, self._reused(cache, step))
        return Prediction(eps, history=self.forecast.history)

    def _full(self, x: Tensor, timesteps: Tensor, told: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        """eps, F and the probe."""
        x, signals = self._input(x, timesteps, told)
        h, skips = self._down(x, signals, len(self.structure.down), told)
        probe = skips[self.cut.index] if self.forecast.needs_probe else None
        h = self.structure.run_mid(h, signals)
        if told.get(RESIDUALS[1]) is not None:
            h = h + told[RESIDUALS[1]]
        feature = self._up(h, skips, signals, 0, self._start)
        h = self._up(feature, skips, signals, self._start, len(self.structure.up))
        return self._output(h, timesteps), feature, probe

    def _cached(self, x: Tensor, timesteps: Tensor, told: Mapping[str, Any], cache: FeatureCache) -> Tensor:
        """eps, by what `_reused` gives."""
        x, signals = self._input(x, timesteps, told)
        _, skips = self._down(x, signals, self.cut.index + 1, told)
        h = self._feature(cache, skips[-1])
        return self._output(self._up(h, skips, signals, self._start, len(self.structure.up)), timesteps)

    def _input(self, x: Tensor, timesteps: Tensor, told: Mapping[str, Any]) -> tuple[Tensor, Signals]:
        x = x.to(self.dtype)
        if self.module.config.center_input_sample:
            x = 2 * x - 1.0
        return x, self._signals(x, timesteps, told)

    def _down(self, h: Tensor, signals: Signals, stages: int, told: Mapping[str, Any]) -> tuple[Tensor, list[Tensor]]:
        """What the last of the first ``stages`` gives, and the skips of all of them."""
        skips = []
        for stage in self.structure.down[:stages]:
            h = stage(h, signals)
            skips.append(h)
        residuals = told.get(RESIDUALS[0])
        if residuals is not None:
            skips = [skip + residual for skip, residual in zip(skips, residuals, strict=False)]  # a residual for every skip
        return h, skips

    def _up(self, h: Tensor, skips: list[Tensor], signals: Signals, start: int, stop: int) -> Tensor:
        """Up stages start .. stop-1; each takes the last of ``skips`` off the list."""
        for stage in self.structure.up[start:stop]:
            h = torch.cat([h, skips.pop()], dim=1)
            h = stage(h, signals, skips[-1].shape[-2:] if skips else None)  # the next skip's size, also where it was odd
        return h

    def _reused(self, cache: FeatureCache, step: Step) -> FeatureCache:
        """``cache`` with the one feature that the call takes; with all of them where it takes a probe of the call. Graphs are then
        given a fixed number of them: the oldest stands for those that are not there yet, which changes nothing (gamma = 1).
        """
        if not self.forecast.needs_probe:
            return replace(cache, feature=self.forecast.feature(cache, step, None), probe=None, earlier=())
        if self._graphs and not cache.earlier:
            return replace(cache, earlier=(cache.changed(torch.clone),) * self.forecast.history)
        return cache

    def _feature(self, cache: FeatureCache, skip: Tensor) -> Tensor:
        expected = (len(skip), self.cut.channels, *skip.shape[-2:])
        if cache.feature.shape != expected:
            raise ConfigError(
                f"The cached feature is {list(cache.feature.shape)}; cut {self.cut.index} at {self.cut.consumer} takes "
                f"{list(expected)}. Use the network that made it, and the images it was made from."
            )
        return self.forecast.feature(cache, cache.step, skip) if self.forecast.needs_probe else cache.feature

    def _signals(self, x: Tensor, timesteps: Tensor, told: Mapping[str, Any]) -> Signals:
        """Time embedding, class embedding and text, as the UNet's own forward makes them."""
        unet, cond = self.module, told.get(TEXT)
        if self.conditional:
            if cond is None:
                raise ConfigError("This UNet is conditional: give cond, its text embeddings [B, tokens, width].")
            emb = unet.time_embedding(unet.get_time_embed(x, timesteps))
            if unet.config.addition_embed_type is not None:
                emb = emb + unet.get_aug_embed(emb, cond, told.get(ADDED) or {})
            if unet.time_embed_act is not None:
                emb = unet.time_embed_act(emb)
            if unet.encoder_hid_proj is not None:
                cond = unet.encoder_hid_proj(cond)
            return Signals(emb, cond)
        emb = unet.time_embedding(unet.time_proj(timesteps).to(unet.dtype))
        if (unet.class_embedding is None) != (cond is None):
            has, way_out = ("no", "Leave cond out") if cond is not None else ("a", "Give cond, one label an image")
            raise ConfigError(f"This UNet has {has} class embedding. {way_out}.")
        if cond is not None:
            label = unet.time_proj(cond) if unet.config.class_embed_type == "timestep" else cond
            emb = emb + unet.class_embedding(label).to(unet.dtype)
        return Signals(emb, None)

    def _output(self, h: Tensor, timesteps: Tensor) -> Tensor:
        unet = self.module
        if unet.conv_norm_out is not None:
            h = unet.conv_act(unet.conv_norm_out(h))
        h = unet.conv_out(h)
        if not self.conditional and unet.config.time_embedding_type == "fourier":
            h = h / timesteps.view(-1, 1, 1, 1)  # a UNet2DModel with Fourier features works in units of the noise level
        return h


def _arguments(cond: Tensor | Conditioning | None) -> Mapping[str, Any]:
    """By name; a bare tensor is the text, or the class labels. Raises `ConfigError` for one that is not passed on here."""
    if not isinstance(cond, Conditioning):
        return {TEXT: cond}
    unknown = [name for name, value in cond.arguments.items() if name not in ARGUMENTS and value is not None]
    if unknown:
        raise ConfigError(f"A cached UNet takes no {', '.join(unknown)}. Leave that out, or run this UNet without caching.")
    if len({cond.arguments.get(name) is None for name in RESIDUALS}) == 2:
        raise ConfigError(
            f"Give {' and '.join(RESIDUALS)}, as a ControlNet does, or neither. (One alone is an old T2I-adapter's: run this UNet "
            "without caching.)"
        )
    return cond.arguments
