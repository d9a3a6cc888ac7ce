import pytest
import torch

from iec.errors import ConfigError
from iec.sampling.noise import Noise

SHAPE = (3, 8, 8)


def test_an_image_has_its_noise_in_any_batch_and_order():
    together = Noise(7, (0, 1, 2, 3), SHAPE)
    alone, reversed_ = Noise(7, (2,), SHAPE), Noise(7, (3, 2, 1, 0), SHAPE)
    assert torch.equal(together.initial()[2], alone.initial()[0])
    assert torch.equal(together.of_step(5)[2], alone.of_step(5)[0])
    assert torch.equal(together.initial(), reversed_.initial().flip(0))


def test_draws_do_not_shift_each_other():
    noise = Noise(7, (0,), SHAPE)
    alone = noise.of_step(9)
    assert torch.equal(Noise(7, (0,), SHAPE).of_step(9), alone)
    draws = [noise.initial(), noise.of_step(0), noise.of_step(1), Noise(7, (1,), SHAPE).initial(), Noise(8, (0,), SHAPE).initial()]
    assert len({d.flatten()[0].item() for d in draws}) == len(draws)


def test_it_is_standard_normal_and_cast_from_one_draw():
    x = Noise(0, tuple(range(64)), SHAPE).initial()
    assert x.dtype == torch.float64
    assert abs(x.mean().item()) < 0.03 and abs(x.std().item() - 1) < 0.03
    assert torch.equal(Noise(0, tuple(range(64)), SHAPE).initial(torch.float32), x.float())


def test_seeds_that_differ_by_two_to_the_32_differ():
    assert not torch.equal(Noise(5, (0,), SHAPE).initial(), Noise(5 + 2**32, (0,), SHAPE).initial())


@pytest.mark.parametrize(("seed", "indices"), [(-1, (0,)), (2**64, (0,)), (1.5, (0,)), ("1", (0,)), (0, (-1,)), (0, (1.0,))])
def test_what_is_no_number_of_a_stream_is_refused(seed, indices):
    with pytest.raises(ConfigError, match="whole number of 0"):
        Noise(seed, indices, SHAPE)
