"""Train the bundled CIFAR-10 model, resumably. Run it again with the same arguments and it goes on where it stopped.

    python scripts/train_ddim_cifar_small.py --data data --steps 40000                       # from scratch
    python scripts/train_ddim_cifar_small.py --data data --steps 40000 --init iec/models/ddim_cifar_small --ema 0.9995

Recipe: eps-prediction, linear betas 1e-4 .. 0.02 over 1000 steps, t uniform, squared error weighted by min(SNR, 5) / SNR
(arXiv 2303.09556); random horizontal flip; AdamW (0.9, 0.99), weight decay 0.01, learning rate 6e-4 after 500 warm-up steps
and falling linearly to zero over the last tenth; batch 64; gradient norm clipped to 1; EMA of the weights with decay
min(--ema, (1 + n) / (10 + n)). The batch, noise and timesteps of step n depend on (seed, n) alone.

``OUTPUT/state.pt`` is the whole training state; ``OUTPUT/ema`` holds the averaged weights as a diffusers folder (float16).
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from safetensors.torch import save

from iec.io.files import write_atomic
from iec.io.runtime import keep_freed_memory, resolve_device
from iec.metrics.images.datasets import load_cifar10
from iec.sampling.timetable import NoiseSchedule

CONFIG = Path(__file__).parents[1] / "iec/models/ddim_cifar_small/config.json"
WARM_UP, SNR_CAP, LEARNING_RATE = 500, 5.0, 6e-4


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with CIFAR-10 (see iec/metrics/images/datasets.py)")
    parser.add_argument("--output", type=Path, default=Path("outputs/train_ddim_cifar_small"))
    parser.add_argument("--init", type=Path, help="diffusers folder whose weights to start from")
    parser.add_argument("--steps", type=int, default=40_000, help="total optimiser steps")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def batch_of_step(images: torch.Tensor, n: int, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x_0 [B,3,32,32] in [-1, 1], t [B], eps) of optimiser step n, drawn from a generator keyed by (seed, n)."""
    draw = np.random.Generator(np.random.Philox(key=(seed, n)))
    x = images[torch.from_numpy(draw.integers(len(images), size=size))].permute(0, 3, 1, 2).float() / 127.5 - 1
    flip = torch.from_numpy(draw.random(size) < 0.5)
    x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    eps = torch.from_numpy(draw.standard_normal(x.shape, dtype=np.float32))
    return x, torch.from_numpy(draw.integers(1000, size=size)), eps


def learning_rate(n: int, steps: int) -> float:
    """Linear warm-up, constant, linear to zero over the last tenth."""
    return LEARNING_RATE * min(1.0, (n + 1) / WARM_UP, (steps - n) / max(1.0, 0.1 * steps))


def build(init: Path | None) -> Any:
    if init is not None:
        return UNet2DModel.from_pretrained(init, torch_dtype=torch.float32)
    return UNet2DModel.from_config(json.loads(CONFIG.read_text()))


def export(ema: dict[str, torch.Tensor], folder: Path) -> None:
    """Write the averaged weights as a diffusers folder, float16."""
    weights = save({name: value.half().contiguous() for name, value in ema.items()}, metadata={"format": "pt"})
    write_atomic(folder / "diffusion_pytorch_model.safetensors", lambda file: file.write(weights))
    write_atomic(folder / "config.json", lambda file: file.write(CONFIG.read_bytes()))


def main() -> None:
    args = arguments()
    keep_freed_memory()
    torch.manual_seed(args.seed)  # the initial weights of a run from scratch
    device = resolve_device(args.device)
    images = torch.from_numpy(load_cifar10(args.data))
    abar = torch.from_numpy(NoiseSchedule().abar).float().to(device)
    weight = (abar / (1 - abar)).clamp(min=1e-8).reciprocal().mul(SNR_CAP).clamp(max=1.0)  # min(SNR, cap) / SNR

    model = build(args.init).to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    ema = {name: value.clone() for name, value in model.state_dict().items()}
    start, state_file = 0, args.output / "state.pt"
    if state_file.exists():
        state: dict[str, Any] = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        ema, start = state["ema"], state["step"]
        print(f"resuming at step {start} of {args.steps}")

    losses: list[float] = []
    began = time.monotonic()
    for n in range(start, args.steps):
        x, t, eps = (value.to(device) for value in batch_of_step(images, n, args.batch, args.seed))
        a = abar[t][:, None, None, None]
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(n, args.steps)
        error = (model(a.sqrt() * x + (1 - a).sqrt() * eps, t).sample - eps).square().mean(dim=(1, 2, 3))
        optimiser.zero_grad()
        (error * weight[t]).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        decay = min(args.ema, (1 + n) / (10 + n))
        for name, value in model.state_dict().items():
            ema[name].lerp_(value, 1 - decay)
        losses.append(error.mean().item())
        if (n + 1) % args.save_every == 0 or n + 1 == args.steps:
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "ema": ema, "step": n + 1}
            write_atomic(state_file, partial(torch.save, state))
            export(ema, args.output / "ema")
            speed = (n + 1 - start) / (time.monotonic() - began)
            print(
                f"step {n + 1}/{args.steps}  eps error {np.mean(losses[-args.save_every :]):.4f}  "
                f"{speed * args.batch:.0f} images/s  ETA {(args.steps - n - 1) / speed / 3600:.1f} h",
                flush=True,
            )


if __name__ == "__main__":
    main()
