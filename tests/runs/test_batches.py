"""`iec.sample`: the library without Hydra and without a folder."""

import numpy as np
import pytest
import torch

import iec
from iec.errors import ConfigError
from iec.io.cores import intra_op_threads
from iec.runs.batches import sample_batch
from iec.sampling.network import Prediction
from iec.sampling.timetable import NoiseSchedule, Timetable


@pytest.fixture(scope="module")
def model():
    return iec.load_model("ddim_cifar_small", device="cpu")


def test_plain_and_corrected(model):
    plain = iec.sample(model, 3, steps=2, batch_size=2, trace=3)
    corrected = iec.sample(model, 3, steps=2, batch_size=2, correction=iec.Correction())
    assert plain.images.shape == (3, 32, 32, 3) and plain.images.dtype == np.uint8
    assert plain.states.shape == (3, 3, 3, 32, 32)
    assert (plain.calls.full, plain.calls.correction) == (8, 0) and (corrected.calls.full, corrected.calls.correction) == (8, 8)
    assert not np.array_equal(plain.images, corrected.images) and plain.seconds > 0
    nowhere = iec.sample(model, 3, steps=2, batch_size=2, correction=iec.Correction(), placement=iec.Placement("none"))
    assert np.array_equal(plain.images, nowhere.images)
    more = iec.sample(model, 3, steps=2, batch_size=2, trace=8)
    assert np.array_equal(more.states, plain.states) and more.calls == plain.calls


def test_a_placement_of_nothing_is_refused_and_one_of_a_correction_is_not(model):
    where = {"steps": 2, "placement": iec.Placement("first_step")}
    with pytest.raises(ConfigError, match="Give correction"):
        iec.sample(model, 1, **where)
    assert iec.sample(model, 1, **where, correction=iec.Correction()).calls.correction == 1


def test_an_image_has_the_same_bytes_however_many_are_asked_for(model):
    few, many = (iec.sample(model, n, steps=2, batch_size=4).images for n in (3, 6))
    assert np.array_equal(few, many[:3])


def test_across_batch_sizes_only_floating_point_drift_remains(model):
    a, b = (iec.sample(model, 4, steps=3, batch_size=size, trace=4).states[-1] for size in (1, 4))
    assert np.abs(a - b).max() < 1e-4


def test_a_given_timetable(model):
    table = Timetable.from_timesteps([700, 300], model.card.schedule)
    assert iec.sample(model, 1, timetable=table).calls.full == 2


def test_progress_is_called_once_a_step(model):
    sampler, ticks = iec.Sampler(Timetable.spaced("quad", 3, model.card.schedule)), []
    sample_batch(model, model.network, sampler, 0, (0,), on_step=lambda: ticks.append(1))
    assert len(ticks) == 3


@pytest.mark.parametrize("bad", [
    {"num_images": 0}, {"num_images": 1.5}, {"num_images": 1, "batch_size": 0}, {"num_images": 1, "steps": 1001},
    {"num_images": 1, "steps": 0}, {"num_images": 1, "steps": 2, "timetable": Timetable.spaced("uniform", 4, NoiseSchedule())},
])  # fmt: skip
def test_bad_requests_are_refused(model, bad):
    with pytest.raises(ConfigError):
        iec.sample(model, **bad)


@pytest.mark.parametrize(
    ("name", "value", "way_out"),
    [
        ("correction", True, r"iec\.Correction\(\)"),
        ("correction", iec.Correction, r"the class Correction\. Give iec\.Correction\(\)"),
        ("placement", "all_steps", r'iec\.Placement\("all_steps"\)'),
        ("timetable", 4, r"iec\.Timetable\.spaced\("),
        ("corrector", "unic", r"iec\.correctors"),
    ],
)
def test_an_argument_of_another_type_is_refused_with_what_to_give(model, name, value, way_out):
    with pytest.raises(ConfigError, match=f"{name} has to be a .*{way_out}"):
        iec.sample(model, 1, **{name: value})


@pytest.mark.parametrize("wrong", ["a module of diffusers", "a model", "a class", "text"])
def test_what_is_no_network_is_refused_with_what_to_give(model, wrong):
    given = {"a module of diffusers": model.unet, "a model": model, "a class": iec.UNetNetwork, "text": "unet"}[wrong]
    for call in (lambda: iec.sample(model, 1, steps=1, network=given), lambda: iec.Prepared(given)):
        with pytest.raises(ConfigError, match=r"network (is a UNet2DModel|has to be an iec\.Network).*iec\.UNetNetwork\(unet\)"):
            call()


def test_a_unet_is_given_as_its_network(model):
    given = iec.sample(model, 1, steps=1, network=iec.UNetNetwork(model.unet))
    assert np.array_equal(given.images, iec.sample(model, 1, steps=1).images)


def test_a_name_in_the_place_of_a_model_is_refused_with_the_call_that_loads_it():
    table = Timetable.spaced("uniform", 4, NoiseSchedule())
    for call in (lambda: iec.sample("ddim_cifar_small", 1), lambda: iec.quantize("ddim_cifar_small", iec.PTQConfig(), table)):
        with pytest.raises(ConfigError, match=r"model has to be a Model, and is of type str\. Give iec\.load_model\("):
            call()


@pytest.mark.parametrize("arguments", [(iec.PTQConfig(), 4), (Timetable.spaced("uniform", 4, NoiseSchedule()), iec.PTQConfig())])
def test_quantize_refuses_arguments_of_another_type(model, arguments):
    with pytest.raises(ConfigError, match=r"has to be a (Timetable|PTQConfig), .*Give e\.g\. iec\."):
        iec.quantize(model, *arguments)


def test_a_dtype_is_taken_by_name_and_as_torch_has_it(model):
    """Of the solver's arithmetic."""
    single = [iec.sample(model, 1, steps=2, dtype=dtype).images for dtype in (torch.float32, "float32", "torch.float32")]
    assert all(np.array_equal(images, single[0]) for images in single)
    for dtype in (torch.float16, "bfloat16", torch.int64):
        with pytest.raises(ConfigError, match=r"dtype=\w+; choose float64, float32"):
            iec.sample(model, 1, steps=2, dtype=dtype)


def test_sample_computes_with_the_threads_it_is_told_and_leaves_the_setting_as_it_was(model):
    numbers = []

    def network(x, step, cond=None, cache=None):
        numbers.append(torch.get_num_threads())
        return Prediction(x)

    with intra_op_threads(2):
        iec.sample(model, 1, network=network, steps=2)
        iec.sample(model, 1, network=network, steps=2, threads=3)
        assert torch.get_num_threads() == 2 and numbers == [1, 1, 3, 3]
    with pytest.raises(ConfigError, match="threads=0 must be at least 1"):
        iec.sample(model, 1, threads=0)
