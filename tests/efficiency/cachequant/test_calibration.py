"""From a float UNet to a calibrated network: stages in order, kept, resumed to the same bytes, refused for anything else."""

import copy
import multiprocessing
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from iec.efficiency.cachequant import CacheQuantConfig, Calibration, calibration
from iec.efficiency.caching import CachedUNetNetwork
from iec.efficiency.quantization import PTQConfig, QuantizedNetwork, Reconstruction, calibrate, quantize_unet
from iec.errors import ArtifactError, ConfigError
from iec.io import locks
from iec.sampling.correction import Correction
from iec.sampling.ddim import Sampler
from iec.sampling.noise import Noise
from iec.sampling.placement import Placement
from iec.sampling.timetable import NoiseSchedule, Timetable
from tests.efficiency.cachequant.conftest import REFRESH, SHAPE, TABLE
from tests.efficiency.caching.unets import make

NOISE = Noise(0, (0, 1, 2), SHAPE)
PTQ = PTQConfig(scale_rule="max", calibration_images=3)
CONFIG = CacheQuantConfig(2, "pixel", PTQ, dps_images=3, dec_images=4)
SMALL = Timetable.spaced("uniform", 3, NoiseSchedule())
FINGERPRINT = {"model": "tiny", "weights": "random"}


@pytest.fixture
def unet():
    return make("one layer, centred input")[0]


@pytest.fixture
def prepare(unet, tmp_path):
    def made(config=CONFIG, table=TABLE, artifacts=tmp_path, fingerprint=FINGERPRINT, artifact=None, **options):
        own = {"fingerprint": fingerprint, "seed": 7, "artifacts": artifacts, "batch_size": 3, **options}
        return Calibration.of(unet, config, table, SHAPE, **own).prepared(artifact)

    return made


def sample(found, cond=None, **options):
    return list(Sampler(TABLE, refresh=found.refresh, **options).trajectory(found.network, NOISE, cond))[-1]


def kinds(folder):
    return sorted(path.name.rpartition("-")[0] for path in folder.iterdir())


STAGES = ["cachequant", "cachequant-cache", "cachequant-ptq", "cachequant-schedule"]


def test_a_calibration_is_kept_and_gives_the_same_images_when_it_is_loaded(prepare, tmp_path, monkeypatch):
    found = prepare()
    assert kinds(tmp_path) == STAGES
    assert 0 in found.refresh and len(found.refresh) == 3
    monkeypatch.setattr(calibration.FloatRuns, "calls", None)  # nothing is run again
    for again in (prepare(), prepare(artifact=found.path, artifacts=tmp_path / "elsewhere")):
        assert again.refresh == found.refresh
        assert torch.equal(sample(again), sample(found))
    assert kinds(tmp_path) == STAGES


@pytest.mark.parametrize("stop", ["fit_cache", "calibrate", "fit_quantization"])
def test_a_calibration_that_was_killed_resumes_to_the_same_bytes(prepare, tmp_path, monkeypatch, stop):
    expected = prepare(artifacts=tmp_path / "whole").path.read_bytes()
    folder = tmp_path / "killed"
    with monkeypatch.context() as patch:

        def killed(*args, **kwargs):
            raise KeyboardInterrupt

        patch.setattr(calibration, stop, killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(artifacts=folder)
    done = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(done) == {"fit_cache": 1, "calibrate": 2, "fit_quantization": 3}[stop]
    assert prepare(artifacts=folder).path.read_bytes() == expected
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())


def test_other_bits_share_the_schedule_and_the_cache_correction(prepare, tmp_path):
    prepare()
    prepare(replace(CONFIG, ptq=replace(PTQ, weight_bits=4)))
    assert kinds(tmp_path) == sorted([*STAGES, "cachequant", "cachequant-ptq"])


@pytest.mark.usefixtures("one_thread")
def test_processes_with_other_bits_compute_what_they_share_once(prepare, tmp_path, monkeypatch):
    def note(name):
        original = getattr(calibration, name)

        def noting(*args, **kwargs):
            with (tmp_path / name).open("a") as file:
                file.write("called\n")
            return original(*args, **kwargs)

        monkeypatch.setattr(calibration, name, noting)

    for name in ("cheapest_refreshes", "fit_cache", "calibrate"):
        note(name)
    monkeypatch.setattr(locks, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: time.sleep(0.02)))
    configs = [replace(CONFIG, ptq=replace(PTQ, weight_bits=bits)) for bits in (8, 4, 8, 4)]
    folder = tmp_path / "artifacts"
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=prepare, args=(config, TABLE, folder)) for config in configs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    calls = {name: len((tmp_path / name).read_text().split()) for name in ("cheapest_refreshes", "fit_cache", "calibrate")}
    assert calls == {"cheapest_refreshes": 1, "fit_cache": 1, "calibrate": 2}
    assert kinds(folder) == sorted([*STAGES, "cachequant", "cachequant-ptq"])


OTHERS = {
    "cachequant.interval: stored 2, expected 3": {"config": replace(CONFIG, interval=3)},
    "cachequant.refresh: stored 'dps', expected 2 entries": {"config": replace(CONFIG, refresh=REFRESH)},
    "cachequant.ptq.weight_bits: stored 8, expected 4": {"config": replace(CONFIG, ptq=replace(PTQ, weight_bits=4))},
    "cachequant.dec_quant: stored True, expected False": {"config": replace(CONFIG, dec_quant=False)},
    "cachequant.dps_images: stored 3, expected 4": {"config": replace(CONFIG, dps_images=4)},
    "cut: stored 2, expected 0": {"config": replace(CONFIG, cut=0)},
    "timetable: stored 5 entries, expected 3 entries": {"table": SMALL},
    "eta: stored 0.0, expected 0.5": {"table": replace(TABLE, eta=0.5)},
    "model: stored 'tiny', expected 'other'": {"fingerprint": {**FINGERPRINT, "model": "other"}},
}


def test_a_calibration_made_from_anything_else_is_refused_by_name(prepare):
    path = prepare().path
    for difference, options in OTHERS.items():
        with pytest.raises(ArtifactError) as caught:
            prepare(artifact=path, **options)
        assert difference in str(caught.value)


def test_a_missing_or_damaged_file_is_refused(prepare, tmp_path):
    with pytest.raises(ArtifactError, match="no calibration at"):
        prepare(artifact=tmp_path / "nothing.safetensors")
    path = prepare().path
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ArtifactError, match="not a complete calibration"):
        prepare()


def test_without_corrections_it_is_plain_caching_of_a_quantized_network(prepare, unet):
    """Calibrated here by hand, on the same calls."""
    found = prepare(replace(CONFIG, refresh=REFRESH, dec_cache=False, dec_quant=False))
    runs = calibration.FloatRuns(CachedUNetNetwork(unet, "pixel"), TABLE, SHAPE, 7, 3)
    quantized = quantize_unet(unet, PTQ, len(TABLE))
    network = CachedUNetNetwork(quantized.unet, "pixel")
    calibrate(quantized, network, runs.calibration_calls(REFRESH, 3))
    plain = list(Sampler(TABLE, refresh=REFRESH).trajectory(QuantizedNetwork(quantized, network), NOISE))
    assert torch.equal(sample(found), plain[-1])


def test_each_correction_changes_the_images(prepare):
    images = [
        sample(prepare(replace(CONFIG, refresh=REFRESH, dec_cache=cache, dec_quant=quant)))
        for cache in (True, False)
        for quant in (True, False)
    ]
    assert len({tuple(image.flatten().tolist()) for image in images}) == 4


def test_cached_rows_are_calibrated_on_corrected_features(prepare):
    """The input of the consumer's shortcut at a cached step: its range is that of a F + b."""
    plain, corrected = (prepare(replace(CONFIG, refresh=frozenset({0}), dec_cache=flag, dec_quant=False)) for flag in (False, True))
    consumer = plain.network.network.network.cut.consumer
    rows = [found.network.quantized.quantizers()[f"{consumer}.conv_shortcut.input[h]"].delta for found in (plain, corrected)]
    assert rows[0][0] == rows[1][0] and (rows[0][1:] != rows[1][1:]).all()


def test_corrections_of_iec_go_to_refresh_steps_and_full_calls_elsewhere_are_refused(prepare):
    found = prepare(replace(CONFIG, refresh=REFRESH))
    sampler = Sampler(TABLE, Correction(1), Placement("all_steps"), refresh=REFRESH)
    assert sampler.corrected == REFRESH
    assert not torch.equal(list(sampler.trajectory(found.network, NOISE))[-1], sample(found))
    for options in ({"refresh": frozenset({0, 1, 3})}, {"refresh": None}):
        with pytest.raises(ArtifactError, match=r"no calibration for sampling step 1.*full or cached"):
            list(Sampler(TABLE, **options).trajectory(found.network, NOISE))
    full = Sampler(TABLE, Correction(1), Placement("all_steps", cached_steps="full"), refresh=REFRESH)
    with pytest.raises(ArtifactError, match="no calibration for sampling step 1"):
        list(full.trajectory(found.network, NOISE))
    cached = Sampler(TABLE, Correction(1), Placement("all_steps", cached_steps="cached"), refresh=REFRESH)
    assert torch.isfinite(list(cached.trajectory(found.network, NOISE))[-1]).all()


def test_refreshing_at_every_step_is_the_quantized_network(prepare):
    """No cached step is left; only the layers that the feature enters are corrected, at full calls too."""
    every = frozenset(range(5))
    found = prepare(replace(CONFIG, interval=1, refresh=every, dec_quant=False))
    assert found.tables.a.eq(1).all() and found.tables.b.eq(0).all()
    quantized = list(Sampler(TABLE).trajectory(found.network, NOISE))[-1]
    assert torch.equal(sample(found), quantized)
    assert not torch.equal(sample(prepare(replace(CONFIG, interval=1, refresh=every))), quantized)


@pytest.mark.parametrize("cut", [0, 1, 5])
def test_a_text_conditional_unet(tmp_path, cut):
    unet, cond = make("text")
    config = replace(CONFIG, cut=cut, dec_images=3)
    options = {"fingerprint": FINGERPRINT, "seed": 7, "artifacts": tmp_path, "batch_size": 3}
    found = Calibration.of(unet, config, TABLE, SHAPE, cond=cond, **options).prepared()
    assert torch.isfinite(sample(found, cond)).all()
    with pytest.raises(ArtifactError, match="cond: stored"):
        Calibration.of(unet, config, TABLE, SHAPE, cond=cond + 1, **options).prepared(found.path)
    with pytest.raises(ConfigError, match="2 conditionings for 3 calibration images"):
        Calibration.of(unet, config, TABLE, SHAPE, cond=cond[:2], **options)


def test_the_network_works_in_the_dtype_of_its_weights(unet, prepare):
    unet.to(torch.bfloat16)
    found = prepare()
    assert torch.isfinite(sample(found)).all()
    runs = calibration.FloatRuns(CachedUNetNetwork(unet, "pixel"), TABLE, SHAPE, 7, 3)
    assert next(runs.calls(1, "test")).feature.dtype == torch.bfloat16


def test_learned_rounding_is_kept_resumed_and_corrected(prepare, tmp_path, monkeypatch):
    ptq = replace(PTQ, weight_bits=4, reconstruct="block", reconstruction=Reconstruction(iterations=1, batch_size=2, samples=5))
    config = replace(CONFIG, refresh=REFRESH, ptq=ptq)
    expected = prepare(config, artifacts=tmp_path / "whole").path.read_bytes()
    folder, real, units = tmp_path / "killed", calibration.reconstruct, []

    def killed(*args, progress, **kwargs):
        def report(done, total):
            units.append(total)
            if done == 3:
                raise KeyboardInterrupt

        real(*args, progress=report, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(calibration, "reconstruct", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, artifacts=folder)
    assert len([path for path in folder.iterdir() if path.is_dir() for _ in path.iterdir()]) == 3
    found = prepare(config, artifacts=folder)
    assert found.path.read_bytes() == expected
    assert kinds(folder) == ["cachequant", "cachequant-cache", "cachequant-ptq", "cachequant-rounding", "cachequant-units"]
    nearest = prepare(replace(config, ptq=replace(ptq, reconstruct="none")))
    with safe_open(found.path, "pt") as ours, safe_open(nearest.path, "pt") as theirs:
        name = next(key for key in ours.keys() if key.startswith("alpha."))  # noqa: SIM118
        assert not torch.equal(ours.get_tensor(name), theirs.get_tensor(name))  # fitted to the weights as deployed


REFUSED = {
    "interval=6 must be": {"interval": 6},
    "interval=0 must be": {"interval": 0},
    "dps_images=0 must be": {"dps_images": 0},
    "dec_images=1 must be": {"dec_images": 1},
    "add 0 to the refresh steps": {"refresh": frozenset({1, 3})},
    r"refresh steps hold \[7\]": {"refresh": frozenset({0, 7})},
    "split_skips=true": {"ptq": replace(PTQ, split_skips=False)},
    "cut=99 is not there": {"cut": 99},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_run_is_refused_before_any_work(prepare, tmp_path, monkeypatch, message):
    monkeypatch.setattr(calibration, "quantize_unet", None)
    with pytest.raises(ConfigError, match=message):
        prepare(replace(CONFIG, **REFUSED[message]))
    assert not list(tmp_path.iterdir())


def test_the_float_unet_is_left_as_it_is(prepare, unet):
    before = copy.deepcopy(unet.state_dict())
    prepare()
    assert all(torch.equal(before[name], value) for name, value in unet.state_dict().items())
