"""Why a correction helps or harms: norms of a step, growth of the error, and which corrections pay.

    from iec import analysis
    suggestion = analysis.suggest(model, prepared, sampler)
    print(suggestion.table(), suggestion.overrides)

`suggest` adds corrections to given refresh steps; `plan_for` chooses both for a budget of calls.

As commands: python -m iec.analysis.
"""

from iec.analysis.errors import Errors, errors
from iec.analysis.growth import Growth, growth
from iec.analysis.heldout import held_out
from iec.analysis.norms import Options, Spectrum, spectra
from iec.analysis.plan import CallPlan, plan_for
from iec.analysis.setup import Setup
from iec.analysis.suggest import Suggestion, suggest, suggest_for

__all__ = [
    "CallPlan",
    "Errors",
    "Growth",
    "Options",
    "Setup",
    "Spectrum",
    "Suggestion",
    "errors",
    "growth",
    "held_out",
    "plan_for",
    "spectra",
    "suggest",
    "suggest_for",
]
