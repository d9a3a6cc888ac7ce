"""A sampler whose corrector is fitted to the network that it will sample."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from iec.correctors.pairs import CalibratedCorrector, PairedRuns
from iec.efficiency.prepare import model_fingerprint
from iec.models import Model
from iec.sampling.ddim import Sampler
from iec.sampling.network import Network
from iec.sampling.solver import Solver


def fitted(
    sampler: Solver, model: Model, network: Network, *, technique: dict[str, Any] | None = None, artifacts: Path | None = None
) -> Solver:
    """The same, with its corrector fitted if it is one that is calibrated; with any other it is ``sampler``.

    network: what a technique prepared, without guidance. artifacts: the folder where what was measured is stored and found again;
    ``technique`` then has to tell the network from any other network of the model (`iec.efficiency.technique.identity_of`).
    Raises `ArtifactError`, `StoreError`, `NonFiniteError`.
    """
    if not isinstance(sampler, Sampler) or not isinstance(sampler.corrector, CalibratedCorrector):
        return sampler
    table = sampler.timetable
    fingerprint = {
        **model_fingerprint(model),
        "technique": technique,
        **table.fingerprint(),
        "refresh": None if sampler.refresh is None else sorted(sampler.refresh),
        "dtype": str(sampler.dtype).removeprefix("torch."),
    }
    runs = PairedRuns(
        reference=model.guided(model.network),
        network=model.guided(network),
        sampler=sampler,
        shape=model.card.shape,
        cond=model.cond,
        device=model.device,
        batch_size=model.card.batch_size,
        artifacts=artifacts,
        fingerprint=fingerprint,
    )
    return replace(sampler, corrector=sampler.corrector.fitted(runs))
