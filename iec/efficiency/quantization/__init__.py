"""Simulated post-training quantization of diffusion UNets, rounding to nearest (W8A8, W4A8)."""

from iec.efficiency.quantization.artifact import load_calibration, save_calibration
from iec.efficiency.quantization.calibration import CalibrationCall, calibrate, calibrate_row
from iec.efficiency.quantization.config import PTQConfig
from iec.efficiency.quantization.model import QuantizedNetwork, QuantizedUNet, describe, quantize_unet, weight_bytes

__all__ = [
    "CalibrationCall",
    "PTQConfig",
    "QuantizedNetwork",
    "QuantizedUNet",
    "calibrate",
    "calibrate_row",
    "describe",
    "load_calibration",
    "quantize_unet",
    "save_calibration",
    "weight_bytes",
]
