import torch

from iec.efficiency.integer.weights import IntegerWeight


def test_codes_and_offsets_give_back_every_grid():
    k = torch.stack([torch.arange(0, 256), torch.arange(-255, 1), torch.arange(-128, 128), torch.arange(300, 556)]).float()
    weight = IntegerWeight.of(k, torch.ones(4))
    assert weight.codes.dtype == torch.int8
    assert weight.offset.tolist() == [128, -127, 0, 428]
    assert torch.equal(weight.codes + weight.offset[:, None], k.int())


def test_a_weight_that_fits_into_8_bits_has_no_offset():
    assert IntegerWeight.of(torch.arange(-15.0, 16.0).view(1, -1, 1, 1), torch.ones(1)).offset is None
