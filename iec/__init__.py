"""Iterative Error Correction (arXiv 2511.06250) for efficient diffusion models.

import iec
model = iec.load_model("ddim_cifar_small")
samples = iec.sample(model, 64, correction=iec.Correction())
"""

from iec.efficiency.caching.config import CachingConfig
from iec.efficiency.prepare import quantize
from iec.efficiency.quantization import PTQConfig
from iec.efficiency.technique import Prepared, Technique
from iec.models import Model, load_model
from iec.models.unet import UNetNetwork
from iec.pipelines.apply import apply, remove
from iec.pipelines.scheduler import IECScheduler
from iec.runs.batches import Samples, sample
from iec.sampling.correction import Correction
from iec.sampling.ddim import Sampler
from iec.sampling.network import FeatureCache, Network, Prediction, Step
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable

__version__ = "0.1.0"

__all__ = [
    "CachingConfig",
    "Correction",
    "FeatureCache",
    "IECScheduler",
    "Model",
    "Network",
    "NoiseSchedule",
    "PTQConfig",
    "Placement",
    "Prediction",
    "Prepared",
    "Sampler",
    "Samples",
    "Step",
    "Technique",
    "Timetable",
    "UNetNetwork",
    "apply",
    "load_model",
    "quantize",
    "remove",
    "sample",
]
