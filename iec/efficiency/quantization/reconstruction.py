"""Reconstruction: the rounding of the weights, learned unit by unit from the float network's outputs."""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor, nn

from iec.efficiency.quantization.artifact import calibration_tensors, fill_calibration
from iec.efficiency.quantization.calibration import CalibrationCall
from iec.efficiency.quantization.learning import collect, learn
from iec.efficiency.quantization.model import QuantizedUNet
from iec.efficiency.quantization.units import units
from iec.errors import ConfigError
from iec.io.artifacts import artifact_path, load_artifact, save_artifact
from iec.models.inputs import Conditioning
from iec.sampling.network import Network

KIND = "ptq-unit"
SEED = 0


def reconstruct(
    quantized: QuantizedUNet,
    network: Network,
    unet: nn.Module,
    reference: Network,
    calls: Sequence[CalibrationCall],
    *,
    progress: Callable[[int, int], None] | None = None,
    checkpoint: Path | None = None,
) -> None:
    """Learn the rounding of the weights of ``quantized``, calibrated before, as its config says. Changes ``quantized`` in place.

    network: evaluates ``quantized.unet`` as it will be sampled. unet, reference: the float UNet that it was made from, and what
        evaluates that one; always called in full mode.
    calls: as `calibrate` took them, or any of them. ``config.reconstruction.samples`` images of them are used.
    progress: called with (units done, units).
    checkpoint: a folder of this run's own, which gets a file a finished unit. Called again after an interruption, with equal
        arguments and a network that is as calibration left it, those units are skipped and the result has the same bytes. Files
        made from other weights, calls, scales or settings are left aside; what else ``network`` depends on is for the caller to
        tell apart by folder. Save the result with `save_calibration`; the folder can then be deleted.

    A unit (see `units`) learns to give what it gives in the float network's full call, from what the quantized network feeds it:
    with quantized activations, the units before it already hardened, those behind it still to nearest. Where the sampled call is
    a cached one, so is the call that the input comes from, and the unit learns to undo the error of caching too; a unit that
    cached calls do not reach learns from full calls alone, and one that no call reaches is rounded to nearest. Activation
    scales stay, unless ``step_learning_rate`` lets delta be learned as well; only those of steps that were drawn change.

    Inputs and targets of one unit at a time are in files in a temporary folder (TMPDIR): ``samples`` times the floats of the
    unit's input and output, twice the input if ``quantized_input`` < 1. In memory are one batch of them and, for each weight of the
    unit, about ten floats.

    The original (quant/layer_recon.py and block_recon.py of zysxmu/IEC) also learns zero points and, behind the cut, the float
    weights and biases, has no regulariser and makes some of its optimizers anew in every iteration. Raises `ConfigError`,
    `NonFiniteError`, `ArtifactError` for a damaged file in ``checkpoint``.
    """
    config = quantized.config
    _require(quantized, calls)
    for layer in quantized.layers().values():
        layer.set_rounding(None)
    drawn = draw(calls, config.reconstruction.samples)
    first = drawn[0].select(slice(0, 1))
    names = units(quantized, unet, lambda: reference(first.x, replace(first.step, mode="full"), first.cond))
    paths = _paths(quantized, drawn, names, checkpoint)
    done = _restore(quantized, paths)
    for k, name in enumerate(names[done:], done):
        if progress is not None:
            progress(k, len(names))
        with tempfile.TemporaryDirectory(prefix="iec-") as folder:
            samples = collect(name, quantized, network, unet, reference, drawn, Path(folder))
            if samples is not None:
                learn(name, quantized.unet.get_submodule(name), samples, quantized.context, config.reconstruction)
            del samples  # its files are mapped
        if paths:
            save_artifact(*paths[k], calibration_tensors(quantized, f"{name}."))
    if progress is not None:
        progress(len(names), len(names))


def draw(calls: Sequence[CalibrationCall], samples: int) -> list[CalibrationCall]:
    """``samples`` images of the calls, drawn with a fixed seed and spread as evenly over the calls as can be; at most all."""
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(len(calls), generator=generator).tolist()
    images = [torch.randperm(len(calls[k].x), generator=generator).tolist() for k in order]
    turns = [(k, image) for turn in zip_longest(*images) for k, image in zip(order, turn, strict=True) if image is not None]
    chosen: dict[int, list[int]] = {}
    for k, image in turns[:samples]:
        chosen.setdefault(k, []).append(image)
    return [calls[k].select(torch.tensor(sorted(chosen[k]))) for k in sorted(chosen)]


def _require(quantized: QuantizedUNet, calls: Sequence[CalibrationCall]) -> None:
    if quantized.config.reconstruct == "none":
        raise ConfigError("There is nothing to reconstruct: efficiency.reconstruct=none. Use layer or block.")
    if not calls:
        raise ConfigError("A reconstruction needs calibration calls; give those that the network was calibrated on.")
    corrected = [name for name, layer in quantized.layers().items() if layer.alpha is not None]
    if corrected:
        raise ConfigError(
            f"{corrected[0]} has a correction, which was fitted to weights that reconstruction changes. Reconstruct first."
        )


def _paths(
    quantized: QuantizedUNet, calls: Sequence[CalibrationCall], names: list[str], checkpoint: Path | None
) -> list[tuple[Path, str, dict[str, object]]]:
    """Path, kind and fingerprint of the file of every unit; none without a folder."""
    if checkpoint is None:
        return []
    origin = _digest(quantized, calls)
    config = quantized.config.fingerprint()
    fingerprints: list[dict[str, object]] = [{"config": config, "origin": origin, "unit": name} for name in names]
    return [(artifact_path(checkpoint, KIND, fingerprint), KIND, fingerprint) for fingerprint in fingerprints]


def _restore(quantized: QuantizedUNet, paths: list[tuple[Path, str, dict[str, object]]]) -> int:
    """Put the units that have a file in place, up to the first that has none. Returns their number."""
    stored: dict[str, Tensor] = {}
    done = 0
    for path, kind, fingerprint in paths:
        if not path.exists():
            break
        stored |= load_artifact(path, kind, fingerprint)
        done += 1
    if done:
        fill_calibration(quantized, calibration_tensors(quantized) | stored, paths[0][0].parent)
    return done


def _digest(quantized: QuantizedUNet, calls: Sequence[CalibrationCall]) -> str:
    """sha256 of the float weights, the calibration and the calls."""
    digest = hashlib.sha256()
    tensors = [*quantized.unet.parameters(), *calibration_tensors(quantized).values()]
    for call in calls:
        stored = () if call.cache is None else call.cache.stored
        steps = tuple(cache.step for cache in stored) or (None,)
        digest.update(repr((call.step, *steps)).encode())
        told = call.cond.tensors() if isinstance(call.cond, Conditioning) else [call.cond]
        values = [call.x, *told, *(value for cache in stored for value in (cache.feature, cache.probe))]
        tensors += [value for value in values if value is not None]
    for tensor in tensors:
        digest.update(repr((tensor.shape, tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
