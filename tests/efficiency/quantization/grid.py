"""xq as the tests write it: from delta, z and a number of bits."""

from iec.efficiency.quantization.quantizer import levels, round_to_grid


def fake_quantize(x, delta, zero_point, bits):
    """delta and zero_point broadcast against x. The zero point may be fractional, it is rounded here."""
    z = zero_point.round()
    return round_to_grid(x, delta, -z, levels(bits) - 1 - z)
