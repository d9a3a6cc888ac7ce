"""Where pairs of predictions are taken, by hand; and the whole way from a configuration to corrected images."""

import pytest
import torch

import iec
from iec.correctors.affine import Affine
from iec.correctors.pairs import SEED, PairedRuns
from iec.efficiency.moments import PairSums
from iec.errors import ConfigError, NonFiniteError
from iec.runs.runner import run_cell
from iec.sampling.ddim import Sampler
from iec.sampling.network import CountingNetwork, Prediction
from iec.sampling.noise import Noise
from iec.sampling.timetable import NoiseSchedule, Timetable

TABLE = Timetable.from_timesteps([900, 600, 300, 300], NoiseSchedule(), eta=0.3)
SHAPE = (2, 4, 4)


def reference(x, step, cond=None, cache=None):
    assert step.mode == "full" and cache is None
    return Prediction(torch.sin(x + step.timestep))


def efficient(x, step, cond=None, cache=None):
    """Full calls are exact and leave a feature; cached ones add it."""
    if step.mode == "full":
        return Prediction(torch.sin(x + step.timestep), x.mean((1, 2, 3), keepdim=True) + step.index)
    return Prediction(torch.sin(x + step.timestep) + 0.1 * cache.feature)


def runs(refresh=None, batch_size=2, network=efficient, table=TABLE):
    return PairedRuns(
        reference, network, Sampler(table, refresh=refresh), SHAPE, lambda indices: None, batch_size=batch_size
    )  # fmt: skip


def test_pairs_are_taken_at_the_states_of_the_full_precision_run_from_the_steps_own_kind_of_call():
    """Two batches; a cached step gets the feature of the last refresh at those states, also that of a step that changes nothing."""
    found = runs(frozenset({0, 2})).moments(3)
    noise = Noise(SEED, (0, 1, 2), SHAPE)
    states = list(Sampler(TABLE).trajectory(reference, noise))
    sums = PairSums(4, 2)
    features = {0: states[0].mean((1, 2, 3), keepdim=True), 2: states[2].mean((1, 2, 3), keepdim=True) + 2}
    for i, t in ((0, 900), (1, 600), (3, 300)):
        f = torch.sin(states[i] + t)
        sums.add(i, f + (0 if i == 0 else 0.1 * features[0 if i == 1 else 2]), f)
    for name, expected in sums.moments().tensors().items():
        torch.testing.assert_close(getattr(found, name), expected, rtol=1e-10, atol=1e-12)
    assert found.var_x[0].equal(found.var_y[0]) and found.count.flatten().tolist() == [48, 48, 0, 48]


def test_every_step_costs_one_call_of_each_network_and_image():
    """A step that changes nothing costs none, but where it refreshes the cache."""
    for refresh, expected in ((None, (15, 0)), (frozenset({0, 2}), (10, 10))):
        network = CountingNetwork(efficient)
        runs(refresh, network=network).moments(5)
        assert (network.calls.full, network.calls.cached) == expected


def test_the_corrected_source_is_the_run_that_will_be_sampled():
    """Each step is fitted at states that the steps before it and itself have corrected; fitted again there, nothing is left."""

    def biased(x, step, cond=None, cache=None):
        return Prediction(0.8 * torch.sin(x + step.timestep) ** 3 + 0.2)

    own = runs(network=biased)
    fit = Affine(calibration_images=3, source="corrected").fitted(own)
    states = list(Sampler(TABLE, corrector=fit).trajectory(biased, Noise(SEED, (0, 1, 2), SHAPE)))
    for i, t in ((0, 900), (1, 600), (3, 300)):
        e, f = biased(states[i], iec.Step(i, t)).eps, torch.sin(states[i] + t)
        gap = fit.gain[i] * e - fit.bias[i] - f
        assert abs(gap.mean()) < 1e-12 and abs((gap * e).mean()) < 1e-12  # least squares at these very states
    elsewhere = Affine(calibration_images=3).fitted(own)
    assert torch.allclose(elsewhere.gain[0], fit.gain[0]) and not torch.allclose(elsewhere.gain[3], fit.gain[3])


def test_predictions_that_are_not_finite_are_refused_and_an_unfitted_corrector_too():
    with pytest.raises(NonFiniteError, match="fitted"):
        runs(network=lambda x, step, cond=None, cache=None: Prediction(x / 0)).moments(1)
    with pytest.raises(ConfigError, match="has to be fitted"):
        list(Sampler(TABLE, corrector=Affine()).trajectory(reference, Noise(0, (0,), SHAPE)))


def test_a_gain_on_purpose_is_undone_and_its_pairs_are_measured_once(make_cell, tmp_path):
    """eps times 1.1 everywhere: once fitted, the images are those of full precision. Fits share the file of their pairs."""
    wrong = ["efficiency=error_gain", "efficiency.gain=1.1"]
    fitted = [*wrong, "corrector=affine", "corrector.calibration_images=2"]

    def images(*overrides):
        small = ["sampler.steps=2", "num_images=1", "batch_size=1", "metrics=none", f"paths.output={tmp_path}"]
        return run_cell(make_cell(*small, *overrides)).first_images(1).astype(int)

    def files():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "artifacts").glob("corrector-*.safetensors")}

    exact = images()
    assert abs(images(*wrong) - exact).max() > 5 and abs(images(*fitted) - exact).max() <= 1
    pairs = files()
    assert abs(images(*fitted, "corrector.fit=ptqd", "corrector.granularity=channel") - exact).max() <= 1 and files() == pairs
    assert abs(images(*fitted, "corrector.source=corrected") - exact).max() <= 1
    assert len(pairs) == 1 and len(files()) == 2
    images(*wrong[:1], "efficiency.gain=1.2", *fitted[2:])
    assert len(files()) == 3  # another technique is another file


def test_cached_steps_with_full_corrections_are_refused(make_cell):
    given = ["corrector=affine", "efficiency=deepcache", "iec=all_steps"]
    with pytest.raises(ConfigError, match="iec.cached_steps=cached, or skip"):
        make_cell(*given, "iec.cached_steps=full")
    with pytest.raises(ConfigError, match="iec.cached_steps=cached, or skip"):  # whichever steps will be found to refresh
        make_cell(*given, "iec.cached_steps=full", "efficiency.schedule=planned")
    assert make_cell(*given, "efficiency.schedule=planned").slug
    for way_out in ("cached", "skip"):
        assert make_cell(*given, f"iec.cached_steps={way_out}").slug
    assert make_cell("corrector=affine", "iec=all_steps", "iec.cached_steps=full").slug  # without a cache all calls are full


def test_the_library_fits_to_the_network_that_it_is_given():
    model = iec.load_model("ddim_cifar_small", device="cpu")

    def wrong(x, step, cond=None, cache=None):
        prediction = model.network(x, step, cond, cache)
        return Prediction(1.1 * prediction.eps)

    exact = iec.sample(model, 1, steps=2)
    mended = iec.sample(model, 1, steps=2, network=wrong, corrector=Affine(calibration_images=2))
    assert abs(mended.images.astype(int) - exact.images).max() <= 1 and mended.calls == exact.calls
