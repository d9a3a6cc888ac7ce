"""Every fit where its answer is known in closed form, and the moments behind it against plain ones."""

import numpy as np
import pytest
import torch

from iec.correctors.affine import Affine
from iec.correctors.fits import FITS
from iec.efficiency.moments import PairSums
from iec.errors import ConfigError
from iec.sampling.timetable import NoiseSchedule, Timetable

TABLE = Timetable.from_timesteps([900, 600, 300, 100, 100], NoiseSchedule())


def moments(e, f):
    """Of pairs [steps, B, C, H, W]; the fourth step has none."""
    sums = PairSums(len(TABLE), e.shape[2])
    for i in range(len(TABLE)):
        if i != 3:
            sums.add(i, e[i], f[i])
    return sums.moments()


def pairs(seed=0, channels=2):
    rng = np.random.default_rng(seed)
    offset = np.arange(channels)[:, None, None]
    f = rng.standard_normal((len(TABLE), 16, channels, 8, 8)) + 0.3 + offset
    return torch.from_numpy(f), torch.from_numpy(rng.standard_normal(f.shape))


def test_moments_of_a_stream_are_those_of_all_values():
    f, n = pairs()
    e = 1.3 * f + 0.4 * n
    m, whole = moments(e, f), moments(e, f).pooled()
    for i in (0, 4):
        for c in range(2):
            expected = np.cov(e[i, :, c].ravel(), f[i, :, c].ravel(), bias=True)
            np.testing.assert_allclose([m.var_x[i, c], m.var_y[i, c], m.cov[i, c]], [*expected.diagonal(), expected[0, 1]], 1e-12)
        expected = np.cov(e[i].ravel(), f[i].ravel(), bias=True)
        found = [whole.var_x[i, 0], whole.var_y[i, 0], whole.cov[i, 0]]
        np.testing.assert_allclose(found, [*expected.diagonal(), expected[0, 1]], 1e-12)
        np.testing.assert_allclose([whole.mean_x[i, 0], whole.mean_y[i, 0]], [e[i].mean(), f[i].mean()], 1e-12)
    assert whole.count[0] == 16 * 2 * 64 and whole.count[3] == 0


@pytest.mark.parametrize("granularity", ["step", "channel"])
@pytest.mark.parametrize("fit", FITS)
def test_equal_predictions_leave_every_bit(fit, granularity):
    f, _ = pairs()
    gain, bias = Affine(fit=fit, granularity=granularity).tables(moments(f, f), TABLE)
    assert (gain == 1).all() and (bias == 0).all()


@pytest.mark.parametrize("fit", FITS)
def test_a_step_without_pairs_is_left_alone(fit):
    f, n = pairs()
    gain, bias = Affine(fit=fit).tables(moments(2 * f + n, f), TABLE)
    assert gain[3] == 1 and bias[3] == 0 and (fit == "ptqd" or (gain[:3] != 1).all())


@pytest.mark.parametrize(("fit", "granularity"), [("d2", "step"), ("d2", "channel"), ("ptqd", "step"), ("ptqd", "channel")])
def test_an_affine_error_is_undone(fit, granularity):
    f, _ = pairs()
    gain, bias = Affine(fit=fit, granularity=granularity).tables(moments(1.25 * f + 0.1, f), TABLE)
    torch.testing.assert_close(gain[0], torch.full_like(gain[0], 0.8), rtol=1e-9, atol=0)
    torch.testing.assert_close(bias[0], torch.full_like(bias[0], 0.08), rtol=1e-8, atol=0)


def test_d2_is_least_squares_of_f_on_e():
    f, n = pairs()
    e = 1.1 * f + 0.5 * n - 0.2
    gain, bias = Affine(fit="d2", granularity="channel").tables(moments(e, f), TABLE)
    slope, offset = np.polyfit(e[1, :, 1].ravel(), f[1, :, 1].ravel(), 1)
    np.testing.assert_allclose([gain[1, 1], bias[1, 1]], [slope, -offset], 1e-9)


def test_ptqd_recovers_slope_and_bias_and_keeps_the_rest():
    """d = k f + m + noise of its own: the slope of eps' on f is 1 and the mean gap 0, where least squares shrinks. Released code
    leaves a gap of -k mean f / (1 + k), because it subtracts mean d.
    """
    f, n = pairs()
    e = 1.2 * f + 0.1 + 0.6 * n
    for fit, low, high in (("ptqd", 0.99, 1.01), ("d2", 0.5, 0.9)):
        gain, bias = Affine(fit=fit).tables(moments(e, f), TABLE)
        corrected = gain[0] * e[0] - bias[0]
        assert low < np.polyfit(f[0].ravel(), corrected.ravel(), 1)[0] < high
        assert (corrected - f[0]).mean().abs() < 1e-12


def test_ptqd_has_one_gain_for_all_channels_and_a_bias_for_each_and_only_shrinks():
    f, _ = pairs()
    offset = torch.tensor([0.0, 0.5]).view(1, 1, 2, 1, 1)
    gain, bias = Affine(fit="ptqd", granularity="channel").tables(moments(f + offset, f), TABLE)
    whole = moments(f + offset, f).pooled()
    k = whole.cov[0, 0] / whole.var_y[0, 0] - 1
    assert gain.shape == bias.shape == (len(TABLE), 2) and gain[0, 0] == gain[0, 1]
    expected = (offset.flatten() - k * f[0].mean((0, 2, 3))) / (1 + k)
    torch.testing.assert_close(bias[0], expected, rtol=1e-9, atol=1e-12)
    assert (Affine(fit="ptqd").tables(moments(0.8 * f, f), TABLE).gain == 1).all()  # a negative k is 0


def test_tac_is_least_squares_through_the_origin_drawn_towards_one():
    f, _ = pairs()
    plain = Affine(fit="tac", ridge=0.0).tables(moments(1.25 * f, f), TABLE)
    torch.testing.assert_close(plain.gain[:3], torch.full((3, 1), 0.8, dtype=torch.float64), rtol=1e-9, atol=0)
    gains = [Affine(fit="tac", ridge=r).tables(moments(1.25 * f, f), TABLE).gain[0].item() for r in (0.0, 0.1, 1e9)]
    assert gains[0] < gains[1] < gains[2] == pytest.approx(1) and (plain.bias == 0).all()
    e = 1.25 * f[0]
    assert gains[1] == pytest.approx((((e * f[0]).mean() + 0.1) / ((e * e).mean() + 0.1)).item(), rel=1e-9)


def test_qdrift_cancels_the_variance_that_the_error_adds():
    """Gaussian data of variance s^2, VE: eps = sig z / (s^2 + sig^2). To first order in the step and in V, error of variance V adds
    dsig^2 V to the state, and the longer step takes 2 sig c dsig away.
    """
    f, n = pairs()
    v = 0.04
    gain, bias = Affine(fit="qdrift").tables(moments(f + v**0.5 * n, f), TABLE)
    sig_t, sig_s = (np.sqrt((1 - abar) / abar) for abar in (TABLE.abar_t, TABLE.abar_s))
    for i in (0, 1, 2, 4):
        dsig, sig = sig_t[i] - sig_s[i], sig_t[i]
        assert 2 * sig * (gain[i].item() - 1) * dsig == pytest.approx(dsig**2 * v, rel=0.1)
    assert (gain >= 1).all() and (bias == 0).all()
    explained = Affine(fit="qdrift").tables(moments(1.2 * f + 0.3, f), TABLE).gain
    torch.testing.assert_close(explained, torch.ones_like(explained), rtol=0, atol=1e-9)  # no noise in it: no drift


def test_es_restores_the_size_of_f():
    f, n = pairs()
    e = 1.1 * f + 0.3 * n
    gain, _ = Affine(fit="es").tables(moments(e, f), TABLE)
    assert ((gain[0] * e[0]) ** 2).mean().item() == pytest.approx((f[0] ** 2).mean().item(), rel=1e-9)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fit=mine", "choose d2, ptqd, tac, qdrift, es"),
        ("granularity=pixel", "step, channel"),
        ("source=both", "full_precision, corrected"),
        ("ridge=-1", "not negative"),
        ("calibration_images=0", "at least 1"),
    ],
)
def test_what_cannot_be_fitted_is_refused(make_cell, override, message):
    with pytest.raises(ConfigError, match=message):
        make_cell("corrector=affine", f"corrector.{override}")
