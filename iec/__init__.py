"""Iterative Error Correction (arXiv 2511.06250) for efficient diffusion models.

import iec
model = iec.load_model("ddim_cifar_small")
samples = iec.sample(model, 64, correction=iec.Correction())

Each name is imported when it is first used: `import iec` itself loads neither torch nor diffusers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from iec import errors as errors

if TYPE_CHECKING:
    from iec.efficiency.caching.config import CachingConfig as CachingConfig
    from iec.efficiency.prepare import quantize as quantize
    from iec.efficiency.quantization.config import PTQConfig as PTQConfig
    from iec.efficiency.technique import Prepared as Prepared
    from iec.efficiency.technique import Technique as Technique
    from iec.models.model import Model as Model
    from iec.models.source import load_model as load_model
    from iec.models.unet import UNetNetwork as UNetNetwork
    from iec.pipelines.apply import apply as apply
    from iec.pipelines.apply import remove as remove
    from iec.pipelines.euler import IECEulerScheduler as IECEulerScheduler
    from iec.pipelines.flow import IECFlowMatchScheduler as IECFlowMatchScheduler
    from iec.pipelines.scheduler import IECScheduler as IECScheduler
    from iec.runs.batches import Samples as Samples
    from iec.runs.batches import sample as sample
    from iec.sampling.correction import Correction as Correction
    from iec.sampling.ddim import Sampler as Sampler
    from iec.sampling.network import FeatureCache as FeatureCache
    from iec.sampling.network import Network as Network
    from iec.sampling.network import Prediction as Prediction
    from iec.sampling.network import Step as Step
    from iec.sampling.placement import Placement as Placement
    from iec.sampling.timetable import NoiseSchedule as NoiseSchedule
    from iec.sampling.timetable import Timetable as Timetable

__version__ = "0.2.0"

_HOMES = {
    "CachingConfig": "efficiency.caching.config",
    "Correction": "sampling.correction",
    "FeatureCache": "sampling.network",
    "IECEulerScheduler": "pipelines.euler",
    "IECFlowMatchScheduler": "pipelines.flow",
    "IECScheduler": "pipelines.scheduler",
    "Model": "models.model",
    "Network": "sampling.network",
    "NoiseSchedule": "sampling.timetable",
    "PTQConfig": "efficiency.quantization.config",
    "Placement": "sampling.placement",
    "Prediction": "sampling.network",
    "Prepared": "efficiency.technique",
    "Sampler": "sampling.ddim",
    "Samples": "runs.batches",
    "Step": "sampling.network",
    "Technique": "efficiency.technique",
    "Timetable": "sampling.timetable",
    "UNetNetwork": "models.unet",
    "apply": "pipelines.apply",
    "load_model": "models.source",
    "quantize": "efficiency.prepare",
    "remove": "pipelines.apply",
    "sample": "runs.batches",
}
"""Public name -> the module below `iec` that defines it."""

__all__ = [*_HOMES]  # names, as text


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
