"""Configurations refuse a value of another type when they are made, by name, before anything is computed with it."""

from dataclasses import fields, replace
from typing import get_args

import numpy as np
import pytest

from iec.correctors.affine import Affine
from iec.correctors.dcw import DCW
from iec.correctors.es import EpsilonScaling
from iec.correctors.es_search import EpsilonSearch
from iec.correctors.restart import Restart
from iec.correctors.timeshift import TimeShift
from iec.correctors.unic import UniC
from iec.efficiency.added_errors import ErrorGain, ErrorNoise, ErrorRounding, ErrorSmooth, ErrorStale
from iec.efficiency.cachequant.config import CacheQuantConfig
from iec.efficiency.caching.config import CachingConfig
from iec.efficiency.caching.forecast_config import ForecastConfig
from iec.efficiency.planning.config import PlanConfig
from iec.efficiency.quantization.config import PTQConfig, Reconstruction
from iec.efficiency.techniques import CacheQuant, DeepCache
from iec.errors import PLAIN, ConfigError
from iec.sampling.correction import Correction
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable

CORRECTORS = [Affine(), DCW(), EpsilonScaling(), EpsilonSearch(), Restart(), TimeShift(), UniC()]
TECHNIQUES = [DeepCache(), CacheQuant(), ErrorGain(), ErrorNoise(), ErrorRounding(), ErrorSmooth(), ErrorStale()]
CONFIGS = [
    *(CachingConfig(), ForecastConfig(), PlanConfig(3), PTQConfig(), Reconstruction(), CacheQuantConfig(5, "latent")),
    *(Correction(), Placement(), NoiseSchedule(), Timetable(((5, 0),), NoiseSchedule()), *CORRECTORS, *TECHNIQUES),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_every_number_truth_value_and_text_is_refused_as_anything_else_and_taken_as_itself(config):
    looked_at = [f for f in fields(config) if f.init and set(get_args(f.type) or [f.type]) <= PLAIN.keys()]
    assert looked_at
    for field in looked_at:
        for value in ([1], b"1") if "str" in str(field.type) else ([1], "1"):
            with pytest.raises(ConfigError, match=rf"{field.name}=.* must be .*(number|true or false|text)"):
                replace(config, **{field.name: value})
    assert replace(config) == config


@pytest.mark.parametrize(
    ("build", "message", "way_out"),
    [
        (lambda: CachingConfig(interval=0), "interval=0 must be a whole number of at least 1", lambda: CachingConfig(interval=1)),
        (lambda: CachingConfig(interval=2.5), "interval=2.5 must be a whole number", lambda: CachingConfig(interval=2)),
        (lambda: CachingConfig(interval="5"), "interval='5' must be a whole number", lambda: CachingConfig(interval=5)),
        (lambda: CachingConfig(interval=True), "interval=True must be a whole number", CachingConfig),
        (lambda: CachingConfig(cut=2.5), "cut=2.5 must be a whole number or text or None", lambda: CachingConfig(cut=2)),
        (
            lambda: CachingConfig(schedule="explicit", steps=[2, 4]), "add 0",
            lambda: CachingConfig(schedule="explicit", steps=[0, 2, 4]),
        ),
        (lambda: CachingConfig(schedule="explicit", steps=[0, 2.5]), "whole numbers", None),
        (lambda: CachingConfig(schedule="explicit", steps=5), "steps=5 must be sampling indices", None),
        (lambda: CachingConfig(schedule="quadratic", power=1), "above 1", lambda: CachingConfig(schedule="quadratic", power=1.5)),
        (lambda: CachingConfig(schedule="centred", centre=-1), "centre=-1", lambda: CachingConfig(schedule="centred", centre=0)),
        (
            lambda: CachingConfig(schedule="planned", refreshes=0), "refreshes=0 must be a whole number of at least 1",
            lambda: CachingConfig(schedule="planned", refreshes=1),
        ),
        (lambda: PTQConfig(calibration_images=0), "calibration_images=0 must be .* at least 1", None),
        (lambda: PTQConfig(calibration_images="8"), "images='8' must be a whole", lambda: PTQConfig(calibration_images=8)),
        (lambda: PTQConfig(reconstruction={"iterations": 3}), "has to be a Reconstruction", None),
        (lambda: Correction(iterations="2"), "iterations='2' must be a whole number", lambda: Correction(iterations=2)),
        (lambda: Correction(lambdas=0.5), r"lambda=0.5 must be a sequence .* \(0.5,\)", lambda: Correction(lambdas=(0.5,))),
        (lambda: Correction(lambdas="5"), "lambda='5' must be a sequence", lambda: Correction(lambdas=[0.5])),
        (lambda: Placement("first_last", count=0), "count=0 must be at least 1", lambda: Placement("first_last", count=1)),
        (lambda: Placement("first_last", count="2"), "count='2' must be a whole number", lambda: Placement("first_last", count=2)),
        (lambda: Placement("explicit", steps=3), "steps=3 must be whole numbers", lambda: Placement("explicit", steps=(3,))),
    ],
)  # fmt: skip
def test_what_a_practitioner_would_write_is_refused_by_name(build, message, way_out):
    with pytest.raises(ConfigError, match=message):
        build()
    if way_out is not None:
        way_out()


def test_numbers_of_numpy_are_numbers():
    assert Correction(tolerance=np.float32(0.5)).tolerance == 0.5 and Placement("first_last", fraction=np.float64(0.1))
