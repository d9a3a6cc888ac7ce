"""Simulated post-training quantization of diffusion UNets, rounding to nearest or as learned (W8A8, W4A8)."""

from iec.efficiency.quantization.artifact import cached_calibration, load_calibration, save_calibration
from iec.efficiency.quantization.calibration import CalibrationCall, calibrate, calibrate_step
from iec.efficiency.quantization.config import PTQConfig, Reconstruction
from iec.efficiency.quantization.model import QuantizedNetwork, QuantizedUNet, describe, quantize_unet, weight_bytes
from iec.efficiency.quantization.reconstruction import reconstruct

__all__ = [
    "CalibrationCall",
    "PTQConfig",
    "QuantizedNetwork",
    "QuantizedUNet",
    "Reconstruction",
    "cached_calibration",
    "calibrate",
    "calibrate_step",
    "describe",
    "load_calibration",
    "quantize_unet",
    "reconstruct",
    "save_calibration",
    "weight_bytes",
]
