import pytest
import torch

from iec.efficiency.integer.weights import IntegerWeight, pack, packed_shape, unpack


def test_codes_and_offsets_give_back_every_grid():
    k = torch.stack([torch.arange(0, 256), torch.arange(-255, 1), torch.arange(-128, 128), torch.arange(300, 556)]).float()
    weight = IntegerWeight.of(k, torch.ones(4))
    assert weight.codes.dtype == torch.int8
    assert weight.offset.tolist() == [128, -127, 0, 428]
    assert torch.equal(weight.codes + weight.offset[:, None], k.int())


def test_a_weight_that_fits_into_8_bits_has_no_offset():
    assert IntegerWeight.of(torch.arange(-15.0, 16.0).view(1, -1, 1, 1), torch.ones(1)).offset is None


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (5, 3, 1, 1), (1, 1), (6, 2)], ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_packed_weights_come_back_bit_for_bit(bits, shape):
    """Odd numbers of weights, every value of a byte's both halves."""
    q = torch.arange(torch.Size(shape).numel()).remainder(1 << bits).flip(0).to(torch.uint8).view(shape)
    packed = pack(q, bits)
    assert torch.equal(unpack(packed, q.shape, bits), q)
    assert (packed.dtype, packed.shape) == (torch.uint8, packed_shape(q.shape, bits))
    assert packed.nbytes == ((q.numel() + 1) // 2 if bits <= 4 else q.numel())


def test_every_pair_of_4_bit_weights_is_one_byte():
    pairs = torch.cartesian_prod(torch.arange(16), torch.arange(16)).flatten()
    assert pack(pairs, 4).tolist() == [low + 16 * high for low in range(16) for high in range(16)]
