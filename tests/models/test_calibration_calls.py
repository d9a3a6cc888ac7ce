"""The calls that a row states for its calibration are those that its calibration makes."""

import pytest

from iec.efficiency.cachequant import CacheQuantConfig
from iec.efficiency.caching import CachedUNetNetwork
from iec.efficiency.prepare import calibration_calls as ptq_calls
from iec.efficiency.quantization import PTQConfig
from iec.io.records import parse
from iec.models.unet import UNetNetwork
from iec.runs.records import PreparedRecord
from iec.runs.sampling import calibration_calls, prepare
from iec.sampling.timetable import NoiseSchedule, Timetable

T = "sampler.timesteps=[900,600,300,300]"  # the third step changes nothing: 3 steps call the network, or 4 with a feature to make
PTQ = ["efficiency=w8a8", "efficiency.scale_rule=max", "efficiency.calibration_images=2"]
CACHED = ["efficiency=cachequant_w4a8", *PTQ[1:], "efficiency.interval=2", "efficiency.dec_images=3", "efficiency.dps_images=5"]
SEARCH = ["corrector=es_search", "corrector.calibration_images=2", "corrector.values=3"]
DPS = (2 + 2 + 3 + 3 + 5) * 4
CASES = {
    "nothing": ("ddim_cifar", ["efficiency=deepcache", "efficiency.interval=2"], 0),
    "schedule and both corrections": ("ldm_imagenet", [*CACHED, "efficiency.schedule=dps"], DPS),
    "quantizer and pairs": ("ddim_cifar", [*PTQ, "corrector=affine", "corrector.calibration_images=3"], 2 * (3 + 4) + 2 * 3 * 3),
    "pairs of a cache": (
        "ddim_cifar",
        ["corrector=stepback", "corrector.calibration_images=1", "efficiency=deepcache", "efficiency.schedule=explicit",
         "efficiency.steps=[0,2]"],
        2 * 4,
    ),
    "search": ("ldm_imagenet", [*SEARCH, "efficiency=deepcache", "efficiency.interval=3"], 2 * 4 * 3),
}  # fmt: skip


@pytest.fixture
def called(monkeypatch):
    """Inputs that UNets were called on, those counted that have data."""
    counts = []
    for kind in (UNetNetwork, CachedUNetNetwork):

        def counting(self, x, *args, call=kind.__call__, **kwargs):
            counts.append(0 if x.is_meta else len(x))
            return call(self, x, *args, **kwargs)

        monkeypatch.setattr(kind, "__call__", counting)
    return counts


@pytest.mark.parametrize("case", CASES)
def test_what_is_stated_is_what_is_called(make_cell, tiny_cards, tmp_path, called, case):
    """Under guidance an image, with two inputs, is one call. A second cell takes what is on disk and states the same."""
    name, own, expected = CASES[case]
    cell = make_cell(f"model={name}", "model.random_weights=true", T, *own, f"paths.output={tmp_path}")
    model = cell.model.load("cpu")
    called.clear()
    assert calibration_calls(cell, *prepare(cell, model)) == expected == sum(called) / model.branches
    called.clear()
    assert calibration_calls(cell, *prepare(cell, model)) == expected and sum(called) == 0


def test_reconstruction_has_no_number_of_calls():
    learned, table = PTQConfig(reconstruct="layer"), Timetable.spaced("uniform", 4, NoiseSchedule())
    assert ptq_calls(learned, table) is CacheQuantConfig(5, cut=0, ptq=learned).calibration_calls(4) is None
    assert ptq_calls(PTQConfig(calibration_images=3), table) == 3 * 8


def test_corrections_that_are_off_and_a_given_schedule_cost_nothing():
    def images(**options):
        ptq = PTQConfig(calibration_images=2)
        return CacheQuantConfig(5, cut=0, ptq=ptq, dec_images=3, dps_images=5, **options).calibration_calls(1)

    given = {"refresh": frozenset({0})}
    assert (images(), images(**given)) == (15, 10)
    assert images(dec_quant=False, **given) == images(dec_cache=False, **given) == 7
    assert images(dec_quant=False, dec_cache=False, **given) == 4


def test_an_older_record_is_read():
    assert parse(PreparedRecord, {"refresh": None, "cost": None}).calibration_calls is None
