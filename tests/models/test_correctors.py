"""Every corrector on a guided latent model with a cache: branches, conds and features stay with their image."""

import torch

from iec.runs.sampling import prepare
from iec.sampling.network import CountingNetwork
from iec.sampling.noise import Noise

CORRECTORS = {
    "none": [],
    "es": ["corrector.k=0.001"],
    "affine": ["corrector.calibration_images=3", "corrector.granularity=channel", "corrector.source=corrected"],
    "unic": [],
    "dcw": ["corrector.high=0.01"],
    "stepback": ["corrector.calibration_images=3"],
    "timeshift": ["corrector.window=60"],
    "restart": ["corrector.sigma_max=5", "corrector.sigma_min=0.5", "corrector.repeats=1"],
}


def test_correctors_attach_to_a_guided_model(make_cell, tiny_cards, tmp_path):
    """Each has states of its own, and a batch of two is its images alone, up to rounding."""
    common = ["model=ldm_imagenet", "model.random_weights=true", "efficiency=deepcache", "efficiency.interval=2", "sampler.steps=4"]
    model, finals = None, {}
    for name, own in CORRECTORS.items():
        cell = make_cell(*common, f"corrector={name}", *own, f"paths.output={tmp_path}")
        model = model or cell.model.load("cpu")
        prepared, sampler = prepare(cell, model)

        def final(*indices, prepared=prepared, sampler=sampler, model=model):
            network = CountingNetwork(model.guided(prepared.network))
            *_, x = sampler.trajectory(network, Noise(0, indices, model.card.shape), model.cond(indices))
            return x, network.calls.total

        (both, calls), (second, alone) = final(0, 1), final(1)
        torch.testing.assert_close(both[1:], second, rtol=1e-4, atol=1e-4)
        assert calls == 2 * alone and (alone == 4) == (name != "restart")
        finals[name] = both
    assert all((finals["none"] - x).abs().max() > 1e-3 for name, x in finals.items() if name != "none")
    assert len({x.sum().item() for x in finals.values()}) == len(CORRECTORS)
