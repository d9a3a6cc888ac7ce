"""A model's UNet quantized and calibrated, now or earlier."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iec.efficiency.integer import cached_network, integer_tensors, require_kernels, require_machine, with_kernels
from iec.efficiency.quantization import (
    CalibrationCall,
    PTQConfig,
    QuantizedNetwork,
    QuantizedUNet,
    cached_calibration,
    calibrate,
    load_calibration,
    quantize_unet,
    reconstruct,
)
from iec.errors import require_type
from iec.io.artifacts import artifact_path
from iec.io.paths import user_path
from iec.io.progress import reported, stage
from iec.models import Model
from iec.models.cards import require_network
from iec.models.unet import network_of
from iec.sampling.ddim import Sampler
from iec.sampling.guidance import unet_batch
from iec.sampling.network import Step
from iec.sampling.noise import Noise
from iec.sampling.timetable import Timetable

CALIBRATION_SEED = 2**40
"""Far from any seed a person would sample with, so that calibration images are not the sampled ones."""


def quantize(
    model: Model,
    config: PTQConfig,
    table: Timetable,
    *,
    artifacts: Path | str | None = None,
    artifact: Path | str | None = None,
    kernels: str = "simulated",
) -> QuantizedNetwork:
    """The model's network quantized, and calibrated for the steps of ``table``.

    * artifacts: a folder where calibrations, integers and compiled passes are stored and found again; of several processes that
      need the same one, one computes it. None: nothing is stored.
    * artifact: a calibration file that must be used.
    * kernels: ``simulated`` computes in float arithmetic on the grid; ``int8`` on 8-bit integers, with compiled passes between
      them; ``int8_unfused`` without. One calibration serves all.

    On a CPU the last bits of a calibration depend on torch's number of threads, which is left as it is (a cell uses 1).

    Raises `ConfigError` for an ideal model, and for a quantization that the kernels do not have; `DeviceError`
    for a machine that cannot run them; `ArtifactError` if a file is missing, damaged, or was computed from something else;
    `StoreError` if it cannot be written.
    """
    require_type("model", model, Model, 'iec.load_model("ddim_fashion_small")')
    require_type("config", config, PTQConfig, "e.g. iec.PTQConfig(weight_bits=4)")
    require_type("table", table, Timetable, 'e.g. iec.Timetable.spaced("uniform", 20, model.card.schedule)')
    require_network(model.card)
    require_kernels(kernels, config)
    folder = None if artifacts is None else user_path(artifacts)
    require_machine(kernels, model.device, folder)

    def simulated() -> QuantizedUNet:
        return _simulated(model, config, table, folder, artifact)

    if kernels == "simulated" or folder is None or artifact is not None:
        return QuantizedNetwork(with_kernels(simulated(), kernels, folder))
    fingerprint, make = calibration_fingerprint(model, config, table), lambda: integer_tensors(simulated())
    return QuantizedNetwork(cached_network(model.unet, config, len(table), kernels, folder, fingerprint, make)[0])


def _simulated(
    model: Model, config: PTQConfig, table: Timetable, artifacts: Path | None, artifact: Path | str | None
) -> QuantizedUNet:
    network = quantize_unet(model.unet, config, len(table))
    fingerprint = calibration_fingerprint(model, config, table)
    if artifact is not None:
        load_calibration(user_path(artifact), network, fingerprint)
    elif artifacts is None:
        _calibrate(network, model, config, table, None)
    else:
        path = artifact_path(artifacts, "ptq", fingerprint)
        units = path.with_suffix(".units")
        cached_calibration(path, network, fingerprint, lambda: _calibrate(network, model, config, table, units))
    return network


def _calibrate(network: QuantizedUNet, model: Model, config: PTQConfig, table: Timetable, units: Path | None) -> None:
    """units: the folder of what an interrupted reconstruction has finished."""
    inputs, cond = calibration_inputs(model, table, config.calibration_images, float_batch(model, config))
    calls = [CalibrationCall(x, Step(i, t), cond) for i, (x, (t, _)) in enumerate(zip(inputs, table.pairs, strict=True))]
    evaluate = network_of(network.unet)
    with reported("calibrating") as report:
        calibrate(network, evaluate, calls, report)
    if config.reconstruct != "none":
        with reported(f"reconstruction by {config.reconstruct}") as report:
            reconstruct(network, evaluate, model.unet, model.network, calls, progress=report, checkpoint=units)


def calibration_calls(config: PTQConfig, table: Timetable) -> int | None:
    """Of `quantize`: full-precision trajectories, then each step of the quantized network. None with ``reconstruct``, which runs
    parts of the network many times.
    """
    steps = sum(not table.is_noop(i) for i in range(len(table))) + len(table)
    return config.calibration_images * steps if config.reconstruct == "none" else None


def calibration_fingerprint(model: Model, config: PTQConfig, table: Timetable) -> dict[str, Any]:
    """Everything a calibration depends on."""
    return {
        **model_fingerprint(model),
        "config": config.fingerprint(),
        **table.fingerprint(),
        "seed": CALIBRATION_SEED,
    }


def model_fingerprint(model: Model) -> dict[str, Any]:
    """What a calibration depends on of the model."""
    return {("model" if key == "name" else key): value for key, value in model.identity.items()}


def float_batch(model: Model, config: PTQConfig) -> int:
    """Images that a float run of the calibration computes at once: ``efficiency.calibration_batch`` bounds its memory too."""
    return min(model.card.batch_size, config.calibration_batch)


def calibration_inputs(model: Model, table: Timetable, count: int, size: int) -> tuple[Tensor, Tensor | None]:
    """The UNet's inputs on full-precision trajectories from fresh noise, float32 [T, B, C, H, W], and its cond [B, ...].

    B: ``count``, or twice as many under guidance, which has two branches (`unet_batch`). size: images of a batch. Nothing of the
    result's size is held beside it.
    """
    everything, branches = model.cond(range(count)), model.branches
    inputs = torch.empty(len(table), count * branches, *model.card.shape, dtype=torch.float32, device=model.device)
    with stage("calibration trajectories", -(-count // size) * len(table)) as advance:
        for start in range(0, count, size):
            indices = tuple(range(start, min(start + size, count)))
            noise = Noise(CALIBRATION_SEED, indices, model.card.shape)
            cond = None if everything is None else everything[start : start + size]
            for i, x in enumerate(Sampler(table).trajectory(model.guided(model.network), noise, cond, model.device)):
                if i:
                    advance()
                if i < len(table):  # the last state is no input
                    both = slice(start * branches, (indices[-1] + 1) * branches)
                    inputs[i, both] = unet_batch(model.guidance, x, cond)[0]
    return inputs, None if everything is None else unet_batch(model.guidance, everything, everything)[1]
