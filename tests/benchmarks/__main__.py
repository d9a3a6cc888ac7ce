"""Ratios of times and memory, each against a named reference in the same run (limits of time and memory where there is none):

    make bench
    make bench ARGS=kernels     integer kernels alone, see `kernels`
    make bench ARGS=compiled    torch.compile, bfloat16 and channels_last alone, see `compiled`

Run it while nothing else runs. Prints a Markdown table with the wanted bound; exits with 1 if a bound is missed.
"""

import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import scipy.linalg
import torch
from diffusers import UNet2DModel

from iec.efficiency.caching import CachedUNetNetwork, uniform
from iec.efficiency.cost import network_cost
from iec.efficiency.prepare import quantize
from iec.efficiency.quantization import PTQConfig
from iec.io.environment import describe_device, instruction_sets
from iec.io.runtime import command_parser, keep_freed_memory
from iec.metrics.extractors.inception import Inception
from iec.metrics.frechet import GaussianStatistics, frechet_distance
from iec.models import load_model
from iec.models.unet import UNetNetwork
from iec.sampling.correction import Correction
from iec.sampling.ddim import Sampler
from iec.sampling.network import Step
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable
from tests.benchmarks import compiled, kernels
from tests.benchmarks.memory import peak_of
from tests.metrics.inception_networks import pytorch_fid_network, random_weights, torch_fidelity_network

BATCH, STEPS = 32, 10


def interleaved(first: Callable[[], object], second: Callable[[], object], repeats: int = 5) -> float:
    """Median of first's time over second's, the two taken in turn, after one warm-up each."""
    ratios = []
    for k in range(repeats + 1):
        seconds = []
        for run in (first, second):
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
        if k:
            ratios.append(seconds[0] / seconds[1])
    return median(ratios)


def loop_over_bare_calls() -> float:
    """The whole sampling loop (noise, float64 solver, checks) over the same number of network calls alone."""
    model = load_model(device="cpu")
    table = Timetable.spaced("quad", STEPS, model.card.schedule)
    noise, network = Noise(0, tuple(range(BATCH)), model.card.shape), model.network
    x = noise.initial(torch.float32)

    def bare() -> None:
        with torch.no_grad():
            for i, (t, _) in enumerate(table.pairs):
                network(x, Step(i, t))

    return interleaved(lambda: list(Sampler(table).trajectory(network, noise)), bare)


def iec_over_plain() -> float:
    """K = 1 on all steps over plain DDIM."""
    model = load_model(device="cpu")
    table = Timetable.spaced("quad", STEPS, model.card.schedule)
    noise = Noise(0, tuple(range(BATCH)), model.card.shape)
    corrected = Sampler(table, Correction(), Placement("all_steps"))
    return interleaved(
        lambda: list(corrected.trajectory(model.network, noise)), lambda: list(Sampler(table).trajectory(model.network, noise))
    )


def quantized_over_float() -> float:
    """One simulated W8A8 forward over the float forward."""
    model = load_model(device="cpu")
    table = Timetable.spaced("quad", 2, model.card.schedule)
    quantized = quantize(model, PTQConfig(calibration_images=8), table)
    x, step = torch.randn(BATCH, *model.card.shape), Step(0, table.pairs[0][0])
    with torch.no_grad():
        return interleaved(lambda: [quantized(x, step) for _ in range(4)], lambda: [model.network(x, step) for _ in range(4)])


def sqrtm_over_eigh() -> float:
    """FID of 2048-d features through scipy.linalg.sqrtm over ours."""
    draw = np.random.default_rng(0)
    a, b = (draw.standard_normal((4096, 2048)) @ draw.standard_normal((2048, 2048)) / 45 for _ in range(2))
    ours_a, ours_b = (GaussianStatistics.of(v) for v in (a, b))

    def reference() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            scipy.linalg.sqrtm(ours_a.cov @ ours_b.cov)

    return interleaved(reference, lambda: frechet_distance(ours_a, ours_b), repeats=1)


def inception_over_packages(images: int = 50) -> float:
    """Our one pass of Inception for all scores over the faster of torch-fidelity's and pytorch-fid's own pass for FID alone.

    Same random weights, images, batch and threads; each with its own resize.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, digest, tensors = random_weights(Path(folder))
        ours = Inception(weights=path, digest=digest)
    theirs, other = torch_fidelity_network(tensors, ("2048",)), pytorch_fid_network(tensors)
    pixels = np.random.default_rng(0).integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    with torch.inference_mode():
        return max(
            interleaved(lambda: ours(pixels), reference, repeats=2)
            for reference in (lambda: theirs(x), lambda: other(x.float() / 255))
        )


def peak_gigabytes(num_images: int) -> float:
    """Peak resident memory of one W4A8 cell with IEC and scores, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = ["efficiency=w4a8", "iec=all_steps", "sampler.steps=4", f"num_images={num_images}", f"paths.output={folder}"]
        code = f"import sys, runpy; sys.argv = {['run.py', *overrides]!r}; runpy.run_path('run.py', run_name='__main__')"
        return peak_of(code)


def correction_statistics_gigabytes(images: int) -> float:
    """Peak resident memory of fitting CacheQuant's cache correction to the bundled model, in a process of its own."""
    return peak_of(
        "import iec; from iec.efficiency.caching import CachedUNetNetwork as Cached; "
        "from iec.efficiency.cachequant import FloatRuns, fit_cache; "
        "model = iec.load_model(device='cpu'); table = iec.Timetable.spaced('quad', 10, model.card.schedule); "
        "runs = FloatRuns(Cached(model.unet, model.card.cut), table, model.card.shape, 0, 32); "
        f"fit_cache(runs, frozenset((0, 5)), {images})"
    )


def speedup_over_promise(interval: int) -> float:
    """DeepCache's measured speed-up over the one its MACs promise: the paper's CIFAR-10 architecture, random weights, T = 10."""
    unet, shape = cifar10_architecture(), (3, 32, 32)
    network, table = CachedUNetNetwork(unet, "pixel"), Timetable.spaced("quad", STEPS, NoiseSchedule())
    noise, refresh = Noise(0, tuple(range(BATCH)), shape), uniform(STEPS, interval)
    plain, cached = UNetNetwork(unet), Sampler(table, refresh=refresh)
    measured = interleaved(
        lambda: list(Sampler(table).trajectory(plain, noise)), lambda: list(cached.trajectory(network, noise)), repeats=1
    )
    cost = network_cost(unet, shape, 0, cut="pixel")
    full, shallow = cost.full.macs, cost.cached.macs
    promised = STEPS * full / (len(refresh) * full + (STEPS - len(refresh)) * shallow)
    return measured / promised


def cifar10_architecture() -> torch.nn.Module:
    """The UNet of DDPM's CIFAR-10 model (Ho et al., 35.7 M parameters)."""
    down = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D")
    up = ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    return UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=down,
        up_block_types=up,
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    ).eval()


def calibration_minutes(reconstruct: str) -> float:
    """W4A8 calibration of the bundled model for T = 50."""
    model = load_model(device="cpu")
    table = Timetable.spaced("quad", 50, model.card.schedule)
    began = time.perf_counter()
    quantize(model, PTQConfig(weight_bits=4, reconstruct=reconstruct), table)
    return (time.perf_counter() - began) / 60


def main() -> None:
    keep_freed_memory()
    parts = {"kernels": kernels.main, "compiled": compiled.main}
    parser = command_parser(__doc__)
    parser.add_argument("part", nargs="?", choices=parts, help="its own options follow; the ratios below, if not given")
    args, rest = parser.parse_known_args()
    if args.part is not None:
        parts[args.part](rest)
        return
    if rest:
        parser.error(f"unrecognized options: {' '.join(rest)}")
    print(f"Machine: {describe_device(torch.device('cpu'))}; batch {BATCH}, {STEPS} steps\n")
    print("| ratio | measured | wanted |\n|---|---|---|")
    missed = False
    vnni = any(name in instruction_sets() for name in ("avx_vnni", "avx512_vnni", "amx_int8"))
    memory: dict[int, float] = {}

    def peak(n: int) -> float:
        return memory.setdefault(n, peak_gigabytes(n))

    for name, measure, low, high in [
        ("sampling loop / bare network calls", loop_over_bare_calls, 0.0, 1.03),
        ("IEC, K = 1, all steps / plain DDIM", iec_over_plain, 1.95, 2.05),
        ("simulated W8A8 forward / float forward", quantized_over_float, 0.0, 1.6),
        *[("float32 forward / W8A8 forward on integers, CIFAR-10 model, batch 8", kernels.float32_over_int8, 1.8, np.inf)] * vnni,
        *[
            (f"DeepCache N = {n}, measured speed-up / that of its MACs", partial(speedup_over_promise, n), 0.9, np.inf)
            for n in (3, 5, 10)
        ],
        ("calibration, W4A8, T = 50 (minutes)", partial(calibration_minutes, "none"), 0.0, 2.0),
        ("calibration with layer-wise reconstruction (minutes)", partial(calibration_minutes, "layer"), 0.0, 15.0),
        ("calibration with block-wise reconstruction (minutes)", partial(calibration_minutes, "block"), 0.0, 15.0),
        (
            "peak memory of the cache correction's statistics, 512 images (GB)",
            lambda: correction_statistics_gigabytes(512),
            0.0,
            1.0,
        ),
        ("Inception, one pass for all scores / the faster package's pass for FID alone", inception_over_packages, 0.0, 1.0),
        ("scipy.linalg.sqrtm / our Frechet distance, 2048-d", sqrtm_over_eigh, 10.0, np.inf),
        ("peak memory of one cell, N = 128 (GB)", lambda: peak(128), 0.0, 3.0),
        ("peak memory N = 512 / N = 128", lambda: peak(512) / peak(128), 0.0, 1.1),
    ]:
        value = measure()
        missed |= not low <= value <= high
        wanted = f"<= {high:g}" if low == 0 else f">= {low:g}" if high == np.inf else f"{low:g} .. {high:g}"
        print(f"| {name} | {value:.3f} | {wanted} |", flush=True)
    raise SystemExit(int(missed))


if __name__ == "__main__":
    main()
