"""Techniques from their configuration: what they are asked for, what they refuse before any work, what they cost."""

import json
from dataclasses import asdict, dataclass

import pytest
import torch

from iec.efficiency.caching import CachedUNetNetwork
from iec.efficiency.cost import CallCost, Cost, network_cost
from iec.efficiency.quantization import PTQConfig
from iec.efficiency.technique import Technique, technique_of
from iec.efficiency.techniques import DeepCache
from iec.errors import ConfigError, StoreError
from iec.io.records import parse
from iec.runs.runner import run_cell
from iec.sampling.correction import Correction
from iec.sampling.ddim import Sampler
from iec.sampling.network import CountingNetwork
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable
from tests.efficiency.caching.unets import make

QUADRATIC = [0, 5, 15, 27, 42, 59, 78, 98, 120, 144, 168, 194, 221]
TABLE = Timetable.spaced("uniform", 4, NoiseSchedule())
NOISE = Noise(0, (0, 1, 2), (3, 8, 8))


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["efficiency.interval=5"], {0, 5, 10, 15}),
        (["efficiency.interval=20"], {0}),
        (["efficiency.cut=latent"], {0, 5, 10, 15}),
        (["efficiency.schedule=explicit", "efficiency.steps=[0,1]", "sampler.steps=2"], {0, 1}),
        (["efficiency.schedule=explicit", "efficiency.steps=[0,3,19]"], {0, 3, 19}),
        (["efficiency.schedule=quadratic", "efficiency.interval=20", "sampler.steps=250"], QUADRATIC),
        (["efficiency.schedule=centred", "efficiency.centre=15", "sampler.steps=50"], [0, 5, 9, 13, 17, 21, 26, 31, 37, 43]),
    ],
)  # fmt: skip
def test_refresh_schedules_of_the_configuration(make_cell, overrides, steps):
    cell = make_cell("efficiency=deepcache", "iec=all_steps", *overrides)
    assert cell.sampler.refresh == cell.sampler.corrected == set(steps)
    assert cell.identity["efficiency"]["refresh"] == sorted(steps)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["efficiency.interval=0"], "interval=0 must be a whole number of at least 1"),
        (["efficiency.interval=21"], r"interval=21.*1 \.\. 20"),
        (["efficiency.cut=10"], r"0 \(shallowest\) \.\. 7 \(deepest\)"),
        (["efficiency.cut=-1"], "not there"),
        (["efficiency.schedule=random"], "uniform, quadratic, centred, explicit"),
        (["efficiency.schedule=explicit"], "needs efficiency.steps"),
        (["efficiency.schedule=explicit", "efficiency.steps=[1,2]"], "add 0"),
        (["efficiency.schedule=explicit", "efficiency.steps=[0,20]"], r"\[20\]"),
        (["efficiency.schedule=centred"], "needs efficiency.centre"),
        (["efficiency.schedule=centred", "efficiency.centre=20"], "centre of 0"),
        (["efficiency.schedule=quadratic", "efficiency.power=1"], "above 1"),
        (["efficiency.centre=3"], "belongs to efficiency.schedule=centred"),
        (["efficiency.steps=[0]"], "belongs to efficiency.schedule=explicit"),
        (["efficiency.power=1.5"], "quadratic or centred"),
        (["efficiency.schedule=quadratic", "efficiency.power=0"], "above 1"),
        (["efficiency.cut=deepest"], "pixel or latent"),
        (["iec.cached_steps=sometimes"], "skip, cached, full"),
    ],
)
def test_what_cannot_be_cached_is_refused_before_any_weights_are_loaded(make_cell, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_cell("efficiency=deepcache", *overrides)


NEEDED = {"centred": ["efficiency.centre=3"], "explicit": ["efficiency.steps=[0]"], "adaptive": ["efficiency.threshold=0.3"]}
"""What a schedule cannot do without."""


@pytest.mark.parametrize("efficiency", ["deepcache", "cachequant_w8a8"])
def test_every_schedule_that_a_message_lists_is_taken(make_cell, efficiency):
    with pytest.raises(ConfigError, match="Unknown efficiency.schedule 'random'; choose ") as refused:
        make_cell(f"efficiency={efficiency}", "efficiency.schedule=random")
    names = str(refused.value).rpartition("choose ")[2].removesuffix(".").split(", ")
    assert len(names) == 6
    for name in names:
        make_cell(f"efficiency={efficiency}", f"efficiency.schedule={name}", *NEEDED.get(name, []))


def test_corrections_at_cached_steps_have_to_be_asked_for(make_cell):
    """And each way of asking is another cell, only where it makes a difference."""
    ways = ("skip", "cached", "full")
    cells = {how: make_cell("efficiency=deepcache", "iec=all_steps", f"iec.cached_steps={how}") for how in ways}
    assert cells["skip"].sampler.corrected == {0, 5, 10, 15}
    assert cells["cached"].sampler.corrected == cells["full"].sampler.corrected == frozenset(range(20))
    assert len({cell.slug for cell in cells.values()}) == 3
    plain = [make_cell("iec=all_steps", f"iec.cached_steps={how}").identity for how in ways]
    assert plain[0] == plain[1] == plain[2]


@pytest.mark.parametrize("cache_from", ["first", "last"])
@pytest.mark.parametrize("how", ["cached", "full"])
def test_corrections_at_cached_steps_by_hand(how, cache_from):
    unet, _ = make("pixel")
    network = CachedUNetNetwork(unet.double(), "pixel")
    correction, refresh = Correction(1, cache_from=cache_from), frozenset({0})
    placement = Placement("explicit", steps=(1,), cached_steps=how)
    counted = CountingNetwork(network)
    states = list(Sampler(TABLE, correction, placement, refresh).trajectory(counted, NOISE))
    made = counted.calls
    assert (made.full, made.cached, made.correction, made.cached_correction) == (3, 9, *((0, 3) if how == "cached" else (3, 0)))

    recorded = Recorder(network)
    list(Sampler(TABLE, correction, placement, refresh).trajectory(recorded, NOISE))
    calls = {(step.index, step.correction): (x, step, cache) for x, step, cache in recorded.calls}
    first, second, third = calls[1, 0], calls[1, 1], calls[2, 0]
    y = TABLE.A[1] * states[1] + TABLE.B[1] * network(*first[:2], cache=first[2]).eps
    g = TABLE.A[1] * states[1] + TABLE.B[1] * network(second[0], second[1], cache=second[2]).eps
    assert second[1].mode == how
    torch.testing.assert_close(second[0], y)
    torch.testing.assert_close(states[2], y + 0.5 * (g - y))
    renewed = how == "full" and cache_from == "last"
    expected = network(second[0], second[1], cache=second[2]).feature if renewed else first[2].feature
    torch.testing.assert_close(third[2].feature, expected)


class Recorder:
    def __init__(self, network):
        self.network, self.calls = network, []

    def __call__(self, x, step, cond=None, cache=None):
        self.calls.append((x, step, cache))
        return self.network(x, step, cond, cache)


def test_a_frozen_image_keeps_its_refreshed_feature():
    """Two corrections in full mode at a cached step; an image that has converged after the first keeps that feature."""
    unet, _ = make("pixel")
    network = CachedUNetNetwork(unet.double(), "pixel")
    placement, refresh = Placement("explicit", steps=(1,), cached_steps="full"), frozenset({0})
    plain = list(Sampler(TABLE, refresh=refresh).trajectory(network, NOISE))
    once = list(Sampler(TABLE, Correction(1), placement, refresh).trajectory(network, NOISE))
    change = torch.linalg.vector_norm((once[2] - plain[2]).flatten(1), dim=1)
    recorder = Recorder(network)
    tolerance = change.sort().values[:2].mean().item()
    list(Sampler(TABLE, Correction(2, tolerance=tolerance), placement, refresh).trajectory(recorder, NOISE))
    third = next(cache for _, step, cache in recorder.calls if step.index == 2)
    corrections = [(x, step) for x, step, _ in recorder.calls if step.correction]
    assert [len(x) for x, _ in corrections] == [3, 3]
    features = [network(x, step).feature for x, step in corrections]
    quick = int(change.argmin())
    slow = [i for i in range(3) if i != quick]
    torch.testing.assert_close(third.feature[quick], features[0][quick])
    torch.testing.assert_close(third.feature[slow], features[1][slow])
    assert not torch.allclose(features[0][quick], features[1][quick])


def test_no_correction_is_the_base_sampler_in_every_batch(make_cell, tmp_path):
    """Bit for bit, the later batches too, with caching."""
    common = ["efficiency=deepcache", "efficiency.interval=2", "num_images=4", "batch_size=2", "sampler.steps=4", "metrics=none"]
    base = run_cell(make_cell(*common, f"paths.output={tmp_path}")).first_images(4)
    none = run_cell(make_cell(*common, "iec=all_steps", "iec.iterations=0", f"paths.cell={tmp_path / 'none'}")).first_images(4)
    some = run_cell(make_cell(*common, "iec=all_steps", f"paths.output={tmp_path}")).first_images(4)
    assert (base == none).all() and not (base == some).all()


def test_bits_set_the_cost():
    unet, _ = make("pixel")
    shape = (3, 8, 8)
    full = network_cost(unet, shape, 1, cut=1)
    assert full.full.bops == full.full.macs * 1024 and full.cached.macs < full.full.macs
    w8a8 = network_cost(unet, shape, 1, config=PTQConfig())
    assert w8a8.full == CallCost(full.full.macs, full.full.macs * 64) and w8a8.cached is None
    softmax = network_cost(unet, shape, 1, config=PTQConfig(softmax_bits=16)).full.bops - w8a8.full.bops
    w4a8 = network_cost(unet, shape, 1, config=PTQConfig(weight_bits=4)).full.bops
    ends = 64 * (16 * 27 + 3 * 16 * 9)  # conv_in and conv_out stay at 8 bits: 8 x 8 positions, 16 channels
    # scores and values of attention are no weights
    attention = softmax / 64  # the MACs of softmax x value: half of those of attention
    assert w4a8 == 32 * (full.full.macs - 2 * attention - ends) + 64 * (2 * attention + ends)
    assert attention > 0


def test_the_cost_of_an_image_follows_its_calls():
    cost = Cost(10, CallCost(100, 1000), CallCost(10, 20))
    calls = {"full": 2, "cached": 3, "correction": 1, "cached_correction": 4}
    assert cost.per_image(calls) == CallCost(3 * 100 + 7 * 10, 3 * 1000 + 7 * 20)
    assert parse(Cost, json.loads(json.dumps(asdict(cost)))) == cost


def test_configurations_that_make_no_technique():
    with pytest.raises(ConfigError, match="not a technique"):
        technique_of({"name": "x", "_target_": "pathlib.Path"})
    with pytest.raises(ConfigError, match="efficiency=x cannot be made"):
        technique_of({"name": "x", "_target_": "nowhere.Nothing"})
    with pytest.raises(ConfigError, match="schedule"):
        technique_of({"name": "x", "_target_": "iec.efficiency.techniques.DeepCache", "schedule": "now and then"})
    for name in ("Plain", "Melting", "Undecorated"):
        with pytest.raises(ConfigError, match=r"@dataclass\(frozen=True\)"):
            technique_of({"name": "x", "_target_": f"{__name__}.{name}"})
    made = technique_of({"name": "x", "_target_": "iec.efficiency.techniques.DeepCache", "interval": 3})
    assert made == DeepCache(interval=3)


class Plain(Technique):
    def prepare(self, model, table, artifacts):
        raise NotImplementedError


@dataclass
class Melting(Plain):
    factor: int = 2


@dataclass(frozen=True)
class Derived(DeepCache):
    """A built-in technique with a field of its own, a tuple."""

    factor: int = 2
    blocks: tuple = (1, 2)


class Undecorated(Derived):
    factor: int = 3


@dataclass(frozen=True)
class Contradiction(DeepCache):
    """Its refresh steps are to be found by prepare, and yet refresh gives them in advance, and prepare none."""

    refresh_found_by_prepare = True


def test_the_fields_of_a_derived_technique_are_part_of_its_identity(make_cell, tmp_path):
    own = ["efficiency=deepcache", f"efficiency._target_={__name__}.Derived", "sampler.steps=4", "efficiency.interval=2"]
    identities = [make_cell(*own, f"+efficiency.factor={factor}").identity for factor in (2, 4)]
    assert identities[0] != identities[1] and identities[0] != make_cell(*own[:1], *own[2:]).identity
    run = [*own, "num_images=2", "batch_size=2", "metrics=none", f"paths.output={tmp_path}"]
    first, again = run_cell(make_cell(*run)), run_cell(make_cell(*run))  # its tuple comes back from the folder as a list
    assert first.manifest == again.manifest


def test_refresh_steps_come_once(make_cell, tmp_path):
    own = ["efficiency=deepcache", f"efficiency._target_={__name__}.Contradiction", "metrics=none", f"paths.output={tmp_path}"]
    with pytest.raises(ConfigError, match="both or neither"):
        run_cell(make_cell(*own, "num_images=1"))


def test_images_of_another_schedule_are_not_continued(make_cell, tmp_path):
    cell = ["efficiency=deepcache", "sampler.steps=4", "efficiency.interval=2", "batch_size=1", "metrics=none"]
    result = run_cell(make_cell(*cell, "num_images=1", f"paths.output={tmp_path}"))
    path = result.cell.folder / "prepared.json"
    path.write_text(path.read_text().replace("[\n  0,\n  2\n ]", "[0, 1]"))
    with pytest.raises(StoreError, match=r"refresh steps \[0, 1\]"):
        run_cell(make_cell(*cell, "num_images=2", f"paths.output={tmp_path}"))
