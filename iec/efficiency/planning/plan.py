"""A planned schedule, found now or earlier."""

import logging
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iec.efficiency.cachequant.trajectories import FloatRuns
from iec.efficiency.caching import CachedUNetNetwork
from iec.efficiency.planning.config import PlanConfig
from iec.efficiency.planning.features import cheapest_refreshes, forecast_errors, inner_products, reuse, rule_of
from iec.efficiency.planning.final import Batch, FinalError
from iec.efficiency.planning.search import Evaluations, search
from iec.efficiency.planning.space import Choice, Space
from iec.efficiency.prepare import model_fingerprint
from iec.io.artifacts import artifact_path, cached
from iec.io.progress import reported
from iec.models import Model
from iec.sampling.ddim import Sampler
from iec.sampling.network import Calls, CountingNetwork
from iec.sampling.noise import Noise
from iec.sampling.refresh import quadratic, uniform
from iec.sampling.timetable import Timetable

SEED = 2**43
"""Far from the seeds of images, and from those of other calibrations: a plan is judged on images that it was not made from."""
KIND = "plan"
BATCH = 8
"""Images of which all features are held at once."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """refresh: the steps that run the full network. error: the objective there. calls: what finding it took, in images."""

    refresh: frozenset[int]
    error: float
    calls: Calls


def planned(
    model: Model,
    network: CachedUNetNetwork,
    table: Timetable,
    config: PlanConfig,
    artifacts: Path,
    forecast: dict[str, Any] | None = None,
) -> Plan:
    """The plan for the model's caching ``network`` on the steps of ``table``, without corrections, stored in the folder
    ``artifacts``. forecast: the identity of what the network forecasts; None: nothing.

    The steps are DDIM's in float64, whatever samples later. A search that was killed goes on from the values beside the artefact,
    ``plan-HASH.evaluations.json``, to the same plan. Raises `ConfigError` before any work, `NonFiniteError`, `StoreError`.
    """
    config.require_fits(len(table))
    work = _Planning(model, network, table, config, artifacts, forecast or {})
    path = artifact_path(artifacts, KIND, work.fingerprint)
    stored = cached(path, KIND, work.fingerprint, lambda: work.run(path.with_suffix(".evaluations.json")))
    plan = Plan(frozenset(stored["refresh"].tolist()), float(stored["error"]), Calls(*stored["calls"].tolist()))
    log.info("planned %s: %s error %.4g; calls in all: %s", sorted(plan.refresh), config.objective, plan.error, plan.calls)
    return plan


@dataclass(frozen=True)
class _Planning:
    model: Model
    network: CachedUNetNetwork
    table: Timetable
    config: PlanConfig
    artifacts: Path
    forecast: dict[str, Any]

    @property
    def base(self) -> dict[str, Any]:
        """What every plan of these steps depends on."""
        table = self.table
        return {
            **model_fingerprint(self.model),
            **table.fingerprint(),
            "noise_schedule": asdict(table.schedule),
            "cut": self.network.cut.index,
            "dtype": str(self.network.dtype),
            "seed": SEED,
        }

    @property
    def fingerprint(self) -> dict[str, Any]:
        own = {} if self.config.objective == "feature" else self.forecast
        return {**self.base, **self.config.as_dict(), **own}

    def run(self, evaluations: Path) -> dict[str, Tensor]:
        """The tensors of the artefact. evaluations: the file of the search."""
        rule = reuse if self.config.objective == "feature" else rule_of(self.network.forecast) or reuse
        errors, calls = forecast_errors(self.products(), rule), Calls(full=self.config.images * len(self.table))
        refresh, error = cheapest_refreshes(errors, self.config.refreshes)
        if self.config.objective == "final":
            choice, error, spent = self.searched(refresh, evaluations)
            refresh, calls = choice.refresh, calls + spent
        return {
            "refresh": torch.tensor(sorted(refresh), dtype=torch.int64),
            "error": torch.tensor(error, dtype=torch.float64),
            "calls": torch.tensor(astuple(calls), dtype=torch.int64),
        }

    def products(self) -> np.ndarray:
        """Inner products of features, see `inner_products`: an artefact that all plans of these steps share."""
        model, images, kind = self.model, self.config.images, f"{KIND}-features"
        size = min(BATCH, model.card.batch_size)
        fingerprint = {**self.base, "images": images}

        def make() -> dict[str, Tensor]:
            runs = FloatRuns(self.network, self.table, model.card.shape, SEED, size, model.cond(range(images)), model.guidance)
            calls = runs.calls(images, "features to plan with")
            return {"products": torch.from_numpy(inner_products(calls, len(self.table)))}

        return cached(artifact_path(self.artifacts, kind, fingerprint), kind, fingerprint, make)["products"].numpy()

    def searched(self, additive: frozenset[int], evaluations: Path) -> tuple[Choice, float, Calls]:
        """The best schedule by the final image, its error, and the calls of the search. additive: the best by features, to start
        from.
        """
        count, steps = self.config.refreshes, len(self.table)
        starts = [Choice(refresh) for refresh in dict.fromkeys([additive, *usual(steps, count)])]
        network = CountingNetwork(self.model.guided(self.network))
        with reported("planning") as report:
            objective = FinalError(network, lambda choice: Sampler(self.table, refresh=choice.refresh), (), self.model.device)
            limit = self.config.evaluations
            evaluate = Evaluations(objective, limit, network.calls, evaluations, lambda done: report(done, limit))
            objective.batches = self.batches(network)
            best = search(Space(steps), starts, evaluate, SEED)
        return best, evaluate(best), network.calls

    def batches(self, network: CountingNetwork) -> list[Batch]:
        model, images = self.model, self.config.images
        parts = [range(k, min(k + model.card.batch_size, images)) for k in range(0, images, model.card.batch_size)]
        full, shape = Sampler(self.table), model.card.shape
        return [Batch.of(network, full, Noise(SEED, tuple(part), shape), model.cond(part), model.device) for part in parts]


def usual(steps: int, count: int) -> list[frozenset[int]]:
    """The uniform and the quadratic schedule of ``count`` refreshes, where there is one, and the evenest: floor(j T / n)."""
    interval = -(-steps // count)
    found = [uniform(steps, interval), quadratic(steps, interval), frozenset(j * steps // count for j in range(count))]
    return [refresh for refresh in found if len(refresh) == count]
