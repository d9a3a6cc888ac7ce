"""Train a bundled model, resumably. Run the same command again and it goes on where it stopped, to the same weights.

    python scripts/train_small.py ddim_fashion_small --data /usr/share/datasets/fashion-mnist --steps 100000
    python scripts/train_small.py ddim_fashion_small --data /usr/share/datasets/fashion-mnist --cool-down 10000
    python scripts/train_small.py ddim_cifar_small --data data --init iec/models/ddim_cifar_small

Minutes on a GPU: see "Training" in docs/models.md.

Objective and optimiser: `scripts.training`.

Phases: the constant rate lives in ``OUTPUT/constant``. ``--cool-down STEPS`` starts from its state, takes the rate linearly to zero
in ``OUTPUT/cool_down`` and leaves the constant phase as it is, to be continued. Each folder holds ``state.pt`` (all of the
training), ``ema`` (averaged weights, a diffusers folder in float16) and ``samples`` (pictures of them).
"""

import argparse
import math
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.func import functional_call

from iec.errors import ArtifactError, ConfigError, NonFiniteError
from iec.io.files import require_folder
from iec.io.images import grid, save_png, to_uint8
from iec.io.paths import user_path
from iec.io.runtime import entry_point, keep_freed_memory, resolve_device
from scripts.training import RECIPES, Training, read_images


def positive(text: str) -> int:
    """A whole number from 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked. Raises `ConfigError`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", choices=RECIPES)
    add("--data", type=user_path, default=Path("data"), help="folder with the data set (see iec/io/datasets.py), or its .npy file")
    add("--output", type=user_path, help="default: outputs/train_small/MODEL")
    add("--init", type=user_path, help="weights to start from: a safetensors file or a diffusers folder")
    add("--steps", type=positive, default=100_000, help="optimiser steps at the constant rate")
    add("--minutes", type=float, help="stop after so long, as Ctrl-C does")
    add("--cool-down", type=positive, metavar="STEPS", help="take the rate to zero over these steps, in a folder of its own")
    add("--batch", type=positive, default=64)
    add("--learning-rate", type=float, help="default: the model's, which suits a batch of 64")
    add("--ema", type=float, default=0.9998)
    add("--unweighted", type=float, default=0.25, help="share p of the unweighted loss, 0 .. 1")
    add("--seed", type=int, default=0)
    add("--save-every", type=positive, default=200)
    add("--sample-every", type=positive, default=2000)
    add("--device", default="auto")
    add("--threads", type=positive, default=1)
    add(
        "--compile",
        choices=("auto", "none", "default", "reduce-overhead"),
        default="auto",
        help="torch.compile's mode; auto: on CUDA",
    )
    add("--autocast", choices=("auto", "none", "bfloat16"), default="auto", help="auto: bfloat16 where the hardware multiplies it")
    args = parser.parse_args(argv)
    args.output = args.output or Path("outputs/train_small") / args.model
    if args.learning_rate is None:
        args.learning_rate = RECIPES[args.model].learning_rate
    if not 0 <= args.unweighted <= 1:
        raise ConfigError(f"--unweighted {args.unweighted} is no share: choose a number from 0 to 1.")
    if not all(value is None or 0 < value < math.inf for value in (args.learning_rate, args.minutes)):
        raise ConfigError("--learning-rate and --minutes are positive numbers.")
    return args


@torch.no_grad()
def sample_grid(training: Training, count: int = 16, steps: int = 25) -> np.ndarray:
    """uint8 [H, W, 3]: pictures of the averaged weights, from the same noise each time, by DDIM (arXiv 2010.02502)."""
    scheduler: Any = DDIMScheduler()  # its defaults are this schedule, and x_0 clipped to [-1, 1]
    scheduler.set_timesteps(steps)
    draw = np.random.default_rng(0)
    shape = (count, training.recipe.colours, 32, 32)
    x = torch.from_numpy(draw.standard_normal(shape, dtype=np.float32)).to(training.device)
    for t in scheduler.timesteps.tolist():
        with training.precision():
            eps = functional_call(training.model, training.ema, (x, t)).sample
        x = scheduler.step(eps.float(), t, x).prev_sample
    return grid(to_uint8(x), columns=8, scale=2)


def open_phase(training: Training) -> tuple[Path, int]:
    """(folder, last step) of the phase that the options ask for, with ``training`` at the step it has reached."""
    args = training.args
    constant, cool_down = (args.output / phase / "state.pt" for phase in ("constant", "cool_down"))
    file = constant if args.cool_down is None else cool_down
    if file.exists():
        training.load(file)
    elif file == cool_down and constant.exists():
        training.load(constant, ignored="cool_down")
        training.begin = training.step
    elif file == cool_down:
        raise ArtifactError(f"{constant} does not exist, so there is nothing to cool down. Train at the constant rate first.")
    return file.parent, args.steps if args.cool_down is None else training.begin + args.cool_down


def watch_signals() -> list[int]:
    """A list that SIGTERM and Ctrl-C are added to from now on, instead of ending the process."""
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: received.append(number))
    return received


def train(training: Training, images: Tensor, stop: Sequence[int]) -> None:
    """Go on to the end of the phase, for --minutes, or until ``stop`` holds a signal; state, progress and pictures on the way."""
    args = training.args
    folder, end = open_phase(training)
    images = images.to(training.device)
    print(f"{folder}: step {training.step} of {end}, {'bfloat16' if training.low else 'float32'}", flush=True)
    first, began, last, losses = training.step, time.monotonic(), False, []
    deadline = math.inf if args.minutes is None else began + 60 * args.minutes
    while training.step < end and not last:
        losses.append(training.advance(images))
        n, last = training.step, bool(stop) or time.monotonic() >= deadline
        if n % args.save_every and n != end and not last:
            continue
        weighted, error = torch.stack(losses).mean(dim=0).tolist()
        if not math.isfinite(weighted):
            raise NonFiniteError(f"The loss is {weighted} at step {n}; {folder} is as it was. Try --autocast none.")
        losses.clear()
        training.save(folder)
        speed = (n - first) / (time.monotonic() - began)
        print(
            f"step {n}/{end}  error {weighted:.4f} weighted, {error:.4f} unweighted  rate {training.learning_rate():.1e}  "
            f"{speed * args.batch:.0f} images/s  ETA {(end - n) / speed / 3600:.1f} h",
            flush=True,
        )
        if n % args.sample_every == 0 or n == end:
            save_png(folder / f"samples/{n:07d}.png", sample_grid(training))


def main() -> None:
    args = arguments()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    require_folder(args.output, "--output")
    recipe, stop = RECIPES[args.model], watch_signals()
    images = torch.from_numpy(read_images(recipe, args.data))
    train(Training(recipe, args, resolve_device(args.device)), images, stop)
    if stop:
        print("Stopped. The state is saved; the same command goes on from there.")
        raise SystemExit(128 + stop[0])


if __name__ == "__main__":
    with entry_point():
        main()
