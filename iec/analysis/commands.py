"""The analyses as commands: each writes KIND-LABEL.json and KIND-LABEL.png into a folder, and logs its table."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from iec.analysis import figures
from iec.analysis.errors import Errors, errors
from iec.analysis.growth import growth, require_growth
from iec.analysis.heldout import held_out, markdown, require_held_out
from iec.analysis.krylov import Estimate
from iec.analysis.norms import Options, Spectrum, require_no_corrector, spectra
from iec.analysis.outcomes import outcome_key
from iec.analysis.pays import PREDICTORS, Payoff, measure, require_measurable
from iec.analysis.pays import SEED as PAYS_SEED
from iec.analysis.plan import held_out_plan, plan_for, require_plannable
from iec.analysis.record import Subject
from iec.analysis.state import Arrays
from iec.analysis.suggest import SEED, require_suggestible, suggest_for
from iec.efficiency.planning.plan import SEED as PLANNING_SEED
from iec.efficiency.techniques import DeepCache, FullPrecision
from iec.errors import ConfigError
from iec.io.progress import stage
from iec.metrics.interval import Interval
from iec.sampling.ddim import takes_single_steps

log = logging.getLogger(__name__)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def run_norms(subject: Subject, options: Options, every: int) -> dict[str, Any]:
    """Norms at every ``every``-th step along the cell's own trajectories."""
    if every < 1:
        raise ConfigError(f"--every {every} must be at least 1.")
    require_no_corrector(subject.cell.sampler)
    table = subject.cell.sampler.timetable
    steps = [i for i in range(0, len(table), every) if not table.is_noop(i)]
    stored = _norms_of_steps(subject, options, steps)
    labels = list(dict.fromkeys(key.rsplit("/", 1)[0] for key in stored[steps[0]]))
    kind = "norm" if options.derivative == "exact" else "bound"
    numbers: dict[str, Any] = {"options": asdict(options), "steps": steps, "matrices": {}}
    curves = {}
    for label in labels:
        value, done = (np.stack([stored[i][f"{label}/{kind}{end}"] for i in steps], 1) for end in ("", " converged"))
        curves[label] = np.where(done, value, np.nan)  # N x steps
        numbers["matrices"][label] = _summary(curves[label]) | {
            column: np.stack([stored[i][f"{label}/{column}"] for i in steps], 1)
            for column in ("norm", "norm converged", "bound", "bound converged", "radius", "radius converged")
            if f"{label}/{column}" in stored[steps[0]]
        }
        log.info("%s: %s", label, " ".join(f"{v:.3f}" for v in numbers["matrices"][label]["mean"]))
    subject.write("norms", numbers)
    name = "largest singular value" if kind == "norm" else "lower bound of the largest singular value"
    title = f"{subject.label}: mean and 5 to 95 % of {subject.images} images"
    figures.norms_against_step(subject.path("norms", ".png"), steps, curves, title, name)
    return numbers


def _norms_of_steps(subject: Subject, options: Options, steps: list[int]) -> dict[int, Arrays]:
    """step -> the arrays [N] of `_arrays`, computed where they are not kept yet."""
    state, setup = subject.state("norms", options=asdict(options)), None
    found: dict[int, list[Arrays]] = {i: [] for i in steps}
    with stage("norms", len(steps) * len(subject.batches)) as advance:
        for k, indices in enumerate(subject.batches):
            names = {i: f"step-{i:04d}-{k}" for i in steps}
            if missing := [i for i in steps if state.stored(names[i]) is None]:
                setup = setup or subject.setup()
                for i, spectrum in spectra(setup, subject.cell.seed, indices, missing, options):
                    state.keep(names[i], _arrays(spectrum))
                    advance()
            for i in steps:
                found[i].append(state.stored(names[i]) or {})
    return {i: {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} for i, parts in found.items()}


def _arrays(found: dict[str, Spectrum]) -> Arrays:
    """``LABEL/norm``, ``LABEL/norm converged`` .. [N] each."""
    arrays: Arrays = {}
    for label, spectrum in found.items():
        for name, estimate in spectrum._asdict().items():
            if isinstance(estimate, Estimate):
                arrays[f"{label}/{name}"] = estimate.value.cpu().numpy()
                arrays[f"{label}/{name} converged"] = estimate.converged.cpu().numpy()
    return arrays


def _summary(values: np.ndarray) -> dict[str, Any]:
    """Over the images whose estimate converged, at each step; values [N, steps]."""
    count = (~np.isnan(values)).sum(axis=0)
    contractive = np.where(count > 0, (values < 1).sum(axis=0) / np.maximum(count, 1), np.nan)
    some = np.where(count > 0, values, 0.0)  # so that a column without any does not warn
    return {
        "mean": np.where(count > 0, np.nanmean(some, axis=0), np.nan),
        "quantiles": {q: np.where(count > 0, np.nanquantile(some, q, axis=0), np.nan) for q in QUANTILES},
        "share below 1": contractive,
        "unconverged": len(values) - count,
    }


def run_errors(subject: Subject) -> dict[str, Any]:
    """Errors of the cell's technique without corrections and with them (the paper's, if the cell has none), and how they grow."""
    cell, state = subject.cell, subject.state("errors")
    require_growth(cell.sampler.timetable)
    runs: dict[str, list[Errors]] = {"without IEC": [], "with IEC": []}
    with stage("errors", 2 * len(subject.batches)) as advance:
        for k, indices in enumerate(subject.batches):
            setup, reference = None, None
            for label in runs:
                stored = state.stored(f"{label}-{k}")
                if stored is None:
                    setup = setup or subject.setup()
                    reference = reference or setup.reference_states(cell.seed, indices)
                    sampler = setup.plain if label == "without IEC" else setup.corrected
                    stored = state.keep(f"{label}-{k}", asdict(errors(setup, sampler, cell.seed, indices, reference)))
                runs[label].append(Errors.of(stored))
                advance()
    joined = {label: Errors.joined(parts) for label, parts in runs.items()}
    numbers: dict[str, Any] = {}
    for label, run in joined.items():
        fitted = growth(run)
        parts = {name: getattr(run, name).mean(axis=0) for name in ("total", "made", "carried", "growth")}
        numbers[label] = {"growth": fitted.as_dict(), "effective": list(run.effective), "mean over images": parts}
        numbers[label]["final error of each image"] = run.total[:, -1]
        log.info("%s, %s: %s", subject.label, label, fitted)
    subject.write("errors", numbers)
    figures.error_parts(
        subject.path("errors", ".png"), joined, f"{subject.label}: mean over {subject.images} images, 95 % interval"
    )
    return numbers


def run_suggest(subject: Subject, calibration_images: int, lambdas: tuple[float, ...], budget: int | None) -> dict[str, Any]:
    """A suggestion for the cell's technique, tested on the images of the cell's own seed."""
    sampler = subject.cell.sampler
    assert takes_single_steps(sampler)  # `Subject.of_experiment` lets no other pass
    require_suggestible(sampler, calibration_images, lambdas, budget)
    require_held_out(subject.cell.seed, SEED)
    setup = subject.setup()
    state = subject.state("suggest", calibration_images=calibration_images)
    found = suggest_for(setup, images=calibration_images, lambdas=lambdas, budget=budget, state=state)
    lines = held_out(setup, found, subject.cell.seed, range(subject.images))
    log.info("%s\n\n%s\n", found.table(lambdas), markdown(lines))
    log.info("%s", f"Use {found.overrides}" if found.steps else "Nothing beats no correction: iec=none")
    responses = found.responses
    gains = {lam: -100 * responses.gains(lam) for lam in lambdas}
    numbers = {
        "calibration": {"seed": SEED, "images": calibration_images, "lambdas": lambdas, "budget": budget},
        "overrides suggested": found.overrides,
        "chosen": found.steps,
        "considered": found.considered,
        "lambda": found.lam,
        "predicted change of the squared error": found.predicted,
        "measured change of the error on the calibration images": list(found.measured),
        "steps": {"index": responses.steps, "wanted lambda": responses.best, "change of the squared error (%)": gains},
        "held out": [line._asdict() for line in lines],
    }
    subject.write("suggest", numbers)
    title = f"{subject.label}: a correction at one step, predicted from {calibration_images} images"
    curves = {f"lambda = {lam:g}": values for lam, values in gains.items()}
    figures.gains(subject.path("suggest", ".png"), responses.steps, curves, found.steps, title)
    return numbers


@dataclass(frozen=True)
class Budget:
    """Full calls of an image to spend, of which ``corrections`` are corrections (None: as many as pay), and how many ways to spend
    them are tried.
    """

    calls: int
    corrections: int | None
    evaluations: int


def run_plan(subject: Subject, calibration_images: int, lambdas: tuple[float, ...], budget: Budget) -> dict[str, Any]:
    """Where the full calls of DeepCache pay most, tested on the images of the cell's own seed."""
    cell = subject.cell
    if not isinstance(cell.technique, DeepCache):
        raise ConfigError(
            f"--calls chooses refresh steps too, and efficiency={cell.efficiency} has none that are free. Use "
            "efficiency=deepcache, or leave --calls out."
        )
    refresh = frozenset({0})  # any will do: the choice replaces those of the cell, which are not found for nothing
    sampler = cell.sampler.refreshed_at(refresh)
    assert takes_single_steps(sampler)  # `Subject.of_experiment` lets no other pass
    options: dict[str, Any] = {"images": calibration_images, "lambdas": lambdas, "evaluations": budget.evaluations}
    require_plannable(sampler, budget.calls, budget.corrections, **options)
    require_held_out(cell.seed, PLANNING_SEED)
    setup = replace(subject, cell=replace(cell, technique=cell.technique.at(refresh), sampler=sampler)).setup()
    state = subject.state("plan", calibration_images=calibration_images, lambdas=lambdas, budget=asdict(budget))
    assert state.folder is not None  # of a subject it never is
    plan = plan_for(setup, budget.calls, budget.corrections, **options, path=state.folder / "evaluations.json")
    lines = held_out_plan(setup, plan, subject.cell.seed, range(subject.images))
    log.info("%s\n\nThe search took %s, in images.\nUse %s", markdown(lines), plan.spent, plan.overrides)
    numbers = {
        "calibration": {"seed": PLANNING_SEED, "images": calibration_images, "lambdas": lambdas, "budget": asdict(budget)},
        "overrides planned": plan.overrides,
        "refresh": sorted(plan.choice.refresh),
        "corrected": sorted(plan.choice.corrected),
        "lambda": plan.choice.lam,
        "error on the calibration images": plan.error,
        "calls of the search": asdict(plan.spent),
        "held out": [line._asdict() for line in lines],
    }
    subject.write("plan", numbers)
    return numbers


def with_errors(subjects: Sequence[Subject]) -> list[Subject]:
    """Those whose correction may pay: with corrections, if any has some, and not in full precision. Else `ConfigError`."""
    corrected = [subject for subject in subjects if subject.cell.sampler.corrected] or subjects
    found = [subject for subject in corrected if not isinstance(subject.cell.technique, FullPrecision)]
    if not found:
        raise ConfigError("Full precision has no error that could be corrected. Choose a technique, e.g. efficiency=deepcache.")
    return found


def run_pays(subject: Subject) -> dict[str, Any]:
    """Whether the cell's corrections (the paper's, if it has none) will pay, from images of a seed of their own."""
    cell = subject.cell
    if cell.seed == PAYS_SEED:
        raise ConfigError(f"seed={cell.seed} is the seed that is measured on, and a rule is tested on others. Choose another.")
    require_measurable(cell.sampler)
    state, setup, parts = subject.state("pays", seed=PAYS_SEED), None, list[Arrays]()
    with stage("measuring", len(subject.batches)) as advance:
        for k, indices in enumerate(subject.batches):
            if (stored := state.stored(f"images-{k}")) is None:
                setup = setup or subject.setup()
                stored = state.keep(f"images-{k}", asdict(measure(setup, PAYS_SEED, indices)))
            parts.append(stored)
            advance()
    payoff = Payoff.joined(parts)
    predictors = {name: getattr(payoff, name) for name in PREDICTORS}
    means = {name: Interval.of_mean(values) for name, values in predictors.items()}
    log.info("%s: %s", subject.label, ", ".join(f"{name.replace('_', ' ')} {mean} dB" for name, mean in means.items()))
    per_step = {name: getattr(payoff, name) for name in ("error", "displacement", "bias", "removed", "norm_ratio", "made", "taken")}
    kinds = ("full", "cached", "corrections", "full precision")
    numbers = {
        "seed": PAYS_SEED,
        "model": cell.card.name,
        "outcome_key": outcome_key(cell.identity),
        "identity": cell.identity,
        "predictors": {name: {"mean": means[name], "images": values} for name, values in predictors.items()},
        "steps": payoff.steps,
        "mean over images": {name: values.mean(axis=0) for name, values in per_step.items()},
        "calls": {
            name: dict(zip(kinds, calls, strict=True))
            for name, calls in (("walk", payoff.walk_calls), ("pilot", payoff.pilot_calls))
        },
    }
    subject.write("pays", numbers)
    return numbers
