"""The configuration groups ``sampler``, ``iec`` and ``corrector``: what walks the timetable."""

from omegaconf import DictConfig, ListConfig

from iec.correctors import configured
from iec.efficiency.technique import FIRST, Technique
from iec.errors import ConfigError
from iec.models import Card
from iec.sampling.correction import Correction
from iec.sampling.ddim import Sampler
from iec.sampling.dtypes import SOLVER_DTYPES, dtype_name
from iec.sampling.multistep import with_solver
from iec.sampling.placement import Placement
from iec.sampling.solver import Solver
from iec.sampling.timetable import Timetable


def solver_of(config: DictConfig, card: Card, technique: Technique) -> Solver:
    """With what the card says where the configuration leaves it open, and the technique's refresh steps. Raises `ConfigError`."""
    options = config.sampler
    dtype = SOLVER_DTYPES[dtype_name(options.dtype, SOLVER_DTYPES, "sampler.dtype")]
    final = card.final if options.final is None else options.final
    if options.timesteps is not None:
        if options.steps is not None or options.spacing is not None:
            raise ConfigError("sampler.timesteps is a whole timetable; leave sampler.steps and sampler.spacing unset with it.")
        table = Timetable.from_timesteps(list(options.timesteps), card.schedule, final=final, eta=options.eta)
    else:
        spacing, steps = options.spacing or card.spacing, card.steps if options.steps is None else options.steps
        table = Timetable.spaced(spacing, steps, card.schedule, final=final, eta=options.eta)
    ddim = Sampler(
        timetable=table,
        correction=_correction(config.iec),
        placement=_placement(config.iec),
        epsilon_scale=config.iec.epsilon_scale,
        refresh=technique.refresh(len(table)),
        adaptive=technique.adaptive,
        dtype=dtype,
    )
    corrector = configured.corrector_of(config.corrector)
    if technique.refresh_found_by_prepare:  # what does not fit is refused now, and not after they are found
        corrector.attach(ddim.refreshed_at(FIRST), card.shape)
    return with_solver(options.solver, corrector.attach(ddim, card.shape))


def _correction(iec: DictConfig) -> Correction:
    """The preset with what the configuration changes of it."""
    changes = {key: iec[key] for key in ("tolerance", "norm", "cache_from") if iec[key] is not None}
    if (given := iec["lambda"]) is not None:
        values = list(given) if isinstance(given, ListConfig) else [given]
        if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
            raise ConfigError(f"iec.lambda={given} must be a number, or a list with one for each correction.")
        changes["lambdas"] = tuple(float(v) for v in values)
    return Correction.preset(iec.preset, iterations=iec.iterations, evaluate_at=iec.evaluate_at, renorm=iec.renorm, **changes)


def _placement(iec: DictConfig) -> Placement:
    return Placement(iec.placement, iec.fraction, iec.count, tuple(iec.steps or ()), iec.cached_steps, iec.last_step)
