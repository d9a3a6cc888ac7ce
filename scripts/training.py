"""The training of a bundled model: its recipe, its objective, and its state after a number of steps.

Objective: the noise eps in x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, linear betas 1e-4 .. 0.02 over 1000 timesteps, drawn as
dense as the quadratic timetable visits them and one in each of B strata of a batch of B: t_i = floor(1000 ((i + u_i) / B)^2), u_i
uniform. Squared error weighted by

    w(t) = (1 - p) min(SNR, 5) / SNR + p,    SNR = abar_t / (1 - abar_t),    p = --unweighted

Uniform t without p is min-SNR-5 (arXiv 2303.09556), which nearly ignores the least noisy timesteps (5e-4 at t = 0). They are what
cleans even ground, of which Fashion-MNIST has much.

Optimiser: AdamW (0.9, 0.99), weight decay 0.01, warm-up, then a constant rate; gradient norm clipped to 1. EMA of the weights with
decay min(--ema, (1 + n) / (10 + n)), n counted from the beginning of the phase. The batch, noise and timesteps of step n depend on
(seed, n) and the kind of device alone. On a CPU a resumed training ends in the same bytes; on CUDA some gradients are summed in no
fixed order.
"""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from iec.errors import ConfigError, DatasetError, WeightsError
from iec.io.datasets import load_cifar10, load_fashion_mnist_32
from iec.io.files import write_atomic, write_text
from iec.sampling.timetable import NoiseSchedule

SNR_CAP = 5.0
DRAWS = 2
"""What a step draws, and from which generators; goes up with every change of it."""
BFLOAT16_CPU_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Recipe:
    """One model: its images (folder -> uint8 [N, 32, 32, C]), network and optimiser. ``attention`` is the level that has it."""

    images: Callable[[Path], np.ndarray]
    colours: int
    widths: tuple[int, ...]
    attention: int
    flips: bool
    learning_rate: float
    warm_up: int

    def network(self) -> Any:
        """A UNet2DModel with fresh weights."""
        levels = ["Attn" if k == self.attention else "" for k in range(len(self.widths))]
        return UNet2DModel(
            sample_size=32,
            in_channels=self.colours,
            out_channels=self.colours,
            block_out_channels=self.widths,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in levels),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(levels)),
            layers_per_block=1,
            norm_num_groups=8,
            norm_eps=1e-6,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            attention_head_dim=None,
        )


RECIPES = {
    # Shoes point left: no flips.
    "ddim_fashion_small": Recipe(load_fashion_mnist_32, 1, (16, 64, 128), 2, False, 1e-3, 300),
    "ddim_cifar_small": Recipe(load_cifar10, 3, (32, 64, 128, 128), 1, True, 6e-4, 500),
}


def read_images(recipe: Recipe, path: Path) -> np.ndarray:
    """uint8 [N, 32, 32, C] of the data set in a folder, or of one file of numpy. Raises `DatasetError`."""
    if path.suffix != ".npy":
        return recipe.images(path)
    try:
        images = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"--data {path} cannot be read ({error}). Write it with numpy.save, or name the data set's folder."
        ) from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, recipe.colours):
        form = f"{images.dtype} {list(images.shape)}"
        raise DatasetError(
            f"--data {path} holds {form} in place of uint8 [N, 32, 32, {recipe.colours}]. Name the data set's folder."
        )
    return images


def stratified(draw: np.random.Generator, size: int) -> np.ndarray:
    """Timesteps floor(1000 ((i + u) / size)^2), i = 0 .. size - 1: one in each stratum of a density like 1 / sqrt(t)."""
    return (1000 * ((np.arange(size) + draw.random(size)) / size) ** 2).astype(np.int64)


def batch_of_step(images: Tensor, n: int, size: int, seed: int, flips: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(x_0 [B, C, 32, 32] in [-1, 1], t [B], eps) of optimiser step n on the images' device, from generators keyed by (seed, n)."""
    device, draw = images.device, np.random.Generator(np.random.Philox(key=(seed, n)))
    chosen = torch.from_numpy(draw.integers(len(images), size=size)).to(device)
    t = torch.from_numpy(stratified(draw, size)).to(device)
    mirrored = torch.from_numpy(draw.random(size) < 0.5).to(device)
    noise = torch.Generator(device).manual_seed(int(draw.integers(2**32)))
    x = images[chosen].permute(0, 3, 1, 2).float() / 127.5 - 1
    eps = torch.randn(x.shape, generator=noise, device=device)
    if flips:
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    return x.contiguous(), t, eps


def loss_weight(abar: Tensor, unweighted: float) -> Tensor:
    """w(t) = (1 - p) min(SNR, 5) / SNR + p for every timestep."""
    return (1 - unweighted) * (SNR_CAP * (1 - abar) / abar).clamp(max=1.0) + unweighted


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there: any GPU, and processors with instructions for it."""
    cpuinfo = Path("/proc/cpuinfo")
    return device.type == "cuda" or (cpuinfo.exists() and not BFLOAT16_CPU_FLAGS.isdisjoint(cpuinfo.read_text().split()))


@dataclass
class Training:
    """Network, optimiser and averaged weights after ``step`` steps; the phase began at step ``begin`` (0: the constant rate)."""

    recipe: Recipe
    args: argparse.Namespace
    device: torch.device
    begin: int = 0
    step: int = 0
    ema: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(self.args.seed)  # the weights of a run from scratch
        self.model = self.recipe.network().to(self.device).train()
        if self.args.init is not None:
            load_weights(self.model, self.args.init)
        on_cuda = self.device.type == "cuda"
        self.optimiser = torch.optim.AdamW(self.model.parameters(), betas=(0.9, 0.99), weight_decay=0.01, fused=on_cuda)
        self.ema = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.abar = torch.from_numpy(NoiseSchedule().abar).float().to(self.device)
        self.weight = loss_weight(self.abar, self.args.unweighted)
        self.low = self.args.autocast == "bfloat16" or (self.args.autocast == "auto" and multiplies_bfloat16(self.device))
        # bfloat16 rounds x near -1 by up to 0.004, a good part of the least noise, which is 0.01: the first layer sees all of x.
        self.model.conv_in.forward = torch.autocast(self.device.type, enabled=False)(self.model.conv_in.forward)
        mode = ("default" if on_cuda else "none") if self.args.compile == "auto" else self.args.compile
        self.predict = self.model if mode == "none" else torch.compile(self.model, mode=mode, dynamic=False)

    def precision(self) -> AbstractContextManager[Any]:
        """A context for calls of the network."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.low)

    def learning_rate(self) -> float:
        """Warm-up and constant, or linear to zero over the cool-down."""
        rate: float = self.args.learning_rate
        if self.args.cool_down is None:
            return rate * min(1.0, (self.step + 1) / self.recipe.warm_up)
        return rate * (self.begin + self.args.cool_down - self.step) / self.args.cool_down

    def advance(self, images: Tensor) -> Tensor:
        """One optimiser step; returns its squared error [2], weighted and unweighted, without waiting for the device."""
        args = self.args
        x, t, eps = batch_of_step(images, self.step, args.batch, args.seed, self.recipe.flips)
        a = self.abar[t][:, None, None, None]
        with self.precision():
            prediction = self.predict(a.sqrt() * x + (1 - a).sqrt() * eps, t).sample
        error = (prediction.float() - eps).square().mean(dim=(1, 2, 3))
        loss = (error * self.weight[t]).mean()
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.param_groups[0]["lr"] = self.learning_rate()
        self.optimiser.step()
        n = self.step - self.begin
        weights = self.model.state_dict()
        averaged = [self.ema[name] for name in weights]
        torch._foreach_lerp_(averaged, list(weights.values()), 1 - min(args.ema, (1 + n) / (10 + n)))
        self.step += 1
        return torch.stack([loss, error.mean()]).detach()

    def options(self) -> dict[str, Any]:
        """What a resumed run must share with the one before."""
        names = ("model", "batch", "ema", "unweighted", "seed", "cool_down", "learning_rate")
        return {"draws": DRAWS, **{name: getattr(self.args, name) for name in names}}

    def save(self, folder: Path) -> None:
        """Write the whole state, and the averaged weights as a diffusers folder."""
        state = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "ema": self.ema}
        state |= {"step": self.step, "begin": self.begin, "options": self.options()}
        write_atomic(folder / "state.pt", partial(torch.save, state))
        weights = save({name: value.half().contiguous().cpu() for name, value in self.ema.items()}, metadata={"format": "pt"})
        write_atomic(folder / "ema" / WEIGHTS, lambda file: file.write(weights))
        write_text(folder / "ema/config.json", self.model.to_json_string())

    def load(self, file: Path, ignored: str = "") -> None:
        """Take over a saved state. Raises `ConfigError` when it was made with other options, except the ``ignored`` one."""
        state: dict[str, Any] = torch.load(file, map_location=self.device, weights_only=True)
        stored = state["options"]
        other = {k: stored.get(k) for k, v in self.options().items() if stored.get(k) != v and k != ignored}
        if other:
            raise ConfigError(f"{file} was made with {other}. Give the same options, or another --output.")
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.ema, self.step, self.begin = state["ema"], state["step"], state["begin"]


def load_weights(model: Any, path: Path) -> None:
    """Start from a safetensors file, or from the one in a diffusers folder. Raises `WeightsError`."""
    file = path if path.is_file() else path / WEIGHTS
    try:
        model.load_state_dict({name: value.float() for name, value in load_file(file).items()})
    except (OSError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"--init {file} does not hold this model's weights ({error}). Name a safetensors file of it.") from error
