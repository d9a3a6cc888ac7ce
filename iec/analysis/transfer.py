"""The command ``rule``: fits the rule on each model, tests it on the others, and writes rule.json, rule.md and rule.png."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iec.analysis import figures
from iec.analysis.outcomes import pairs_in
from iec.analysis.pays import PREDICTORS
from iec.analysis.record import plain_values
from iec.analysis.rule import ErrorRate, Pair, Transfer, errors_of, transfers
from iec.errors import ConfigError
from iec.io.files import write_text
from iec.io.markdown import markdown_table

log = logging.getLogger(__name__)
TRIVIAL = {"always": float("-inf"), "never": float("inf")}
"""Rules that measure nothing, as thresholds."""


def run_rule(folders: Sequence[Path], score: str, predictor: str, images: int | None, out: Path) -> dict[str, Any]:
    """From the measurements and tables in ``folders`` and below; none: in ``out``. images: of those measured, the first; None: all.
    Raises `ConfigError`.
    """
    pairs = pairs_in(folders or [out], score)
    measured = min(len(values) for pair in pairs for values in pair.predictors.values())
    if images is not None and not 1 <= images <= measured:
        raise ConfigError(f"--images {images}: {measured} were measured. Choose 1 .. {measured}, or measure more.")
    counts = [2**k for k in range(measured.bit_length()) if 2**k < measured] + [measured] if images is None else [images]
    found = [transfer for name in PREDICTORS for n in counts for transfer in transfers(pairs, name, n)]
    shown = [transfer for transfer in found if transfer.predictor == predictor and transfer.images == counts[-1]]
    text = "\n\n".join([f"Pays: {score} becomes better.", _pairs_table(pairs), _transfers_table(found), _trivial_table(pairs)])
    log.info("%s", text)
    numbers = {
        "score": score,
        "pairs": [
            {
                "model": pair.model,
                "label": pair.label,
                "gain": pair.gain,
                "pays": pair.pays,
                **{name: pair.predicted(name, counts[-1]) for name in PREDICTORS},
            }
            for pair in pairs
        ],
        "transfers": [{**vars(t), **{name: _rate(getattr(t, name)) for name in ("fitted", "tested", "untuned")}} for t in found],
        "trivial": {model: {name: _rate(rate) for name, rate in rates.items()} for model, rates in _trivial(pairs).items()},
    }
    write_text(out / "rule.json", json.dumps(plain_values(numbers), allow_nan=False) + "\n")
    write_text(out / "rule.md", f"{text}\n")
    figures.predicted_and_measured(out / "rule.png", pairs, shown, predictor, score)
    return numbers


def _rate(rate: ErrorRate) -> dict[str, Any]:
    return {"wrong": rate.wrong, "pairs": rate.pairs, "rate": rate.interval}


def _trivial(pairs: Sequence[Pair]) -> dict[str, dict[str, ErrorRate]]:
    """model -> rule -> its error rate; a trivial rule looks at no predictor, so any will do."""
    models = dict.fromkeys(pair.model for pair in pairs)
    return {
        model: {name: errors_of([p for p in pairs if p.model == model], PREDICTORS[0], c) for name, c in TRIVIAL.items()}
        for model in models
    }


def _pairs_table(pairs: Sequence[Pair]) -> str:
    head = ["model", "pair", "change", "pays", *(f"{name} (dB)" for name in PREDICTORS)]
    lines = [
        [p.model, p.label, str(p.gain), "yes" if p.pays else "no", *(f"{p.predicted(name):+.1f}" for name in PREDICTORS)]
        for p in pairs
    ]
    return markdown_table(head, lines)


def _transfers_table(found: Sequence[Transfer]) -> str:
    head = [
        "predictor",
        "images",
        "fitted on",
        "tested on",
        "c (dB)",
        "wrong where fitted",
        "wrong where tested",
        "wrong with c = 0",
        "rank correlation",
    ]
    lines = [
        [
            t.predictor,
            str(t.images),
            t.fitted_on,
            t.tested_on,
            f"{t.c:.1f}",
            str(t.fitted),
            str(t.tested),
            str(t.untuned),
            f"{t.ranks:.2f}",
        ]
        for t in found
    ]
    return markdown_table(head, lines)


def _trivial_table(pairs: Sequence[Pair]) -> str:
    lines = [[model, *(str(rates[name]) for name in TRIVIAL)] for model, rates in _trivial(pairs).items()]
    return markdown_table(["model", *(f"{name} pays" for name in TRIVIAL)], lines)
