"""Fill in the counted parts of docs/account.md from the tables in experiments/results, or check that they are what is written.

    python -m scripts.account            # writes docs/account.md
    python -m scripts.account --check    # exit code 1 where it would change

A part stands between `<!-- NAME -->` and `<!-- end -->`. Only rows of the weights that the package carries now are counted, each
cell once: where N differs, the row whose FID is tested in pairs, or that of the most images. A row with a correction is compared
with the row of its table that has the same network, technique, steps and noise and no correction. A change is better or worse
where its 95 % interval leaves out 0, and cannot be told where it does not; intervals are not adjusted for their number. Distances
of trained networks are counted where the reference has as many steps: else they are distances to another solver's error, too.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from iec.errors import ArtifactError
from iec.io.markdown import markdown_table
from iec.io.runtime import entry_point
from iec.metrics.interval import Interval
from scripts.counted import FID, KINDS, PSNR, Counted, counted_in, distinct, read
from scripts.marked import fill, names
from scripts.results_tables import SCORES

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs/account.md", ROOT / "experiments/results"
RMSE = "RMSE to ref. (levels)"
HIGHER_IS_BETTER = {FID: False, PSNR: True, RMSE: False}


def verdict(change: Interval, score: str) -> str:
    """``better``, ``worse`` or ``?``."""
    if change.low <= 0 <= change.high:
        return "?"
    return "better" if (change.value > 0) == HIGHER_IS_BETTER[score] else "worse"


def counts(rows: Sequence[Counted], *scores: str) -> str:
    """``better / worse / ?``, of each row by the first of the scores that it has a change of."""
    known = [(row, name) for row in rows if (name := next((score for score in scores if score in row.changes), ""))]
    found = Counter(verdict(row.changes[name], name) for row, name in known)
    return " / ".join(str(found[name]) for name in ("better", "worse", "?")) if found else ""


DISTANCE = "distance: better / worse / ?"
COUNTS = ("pairs", "FID: better / worse / ?", DISTANCE)


def counted(rows: Sequence[Counted], key: Callable[[Counted], tuple[str, ...]], *names: str) -> str:
    """A line of counts for each value of ``key``, in the order in which they come."""
    groups: dict[tuple[str, ...], list[Counted]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    body = []
    for values, group in groups.items():
        distance = counts(group, RMSE, PSNR)  # of the ideal network, whose images are the same or unlike, RMSE says more
        body.append([*values, str(len(group)), counts(group, FID), distance])
    return markdown_table([*names, *COUNTS], body)


def corrected(rows: Iterable[Counted], *kinds: str) -> list[Counted]:
    """The rows with one of these corrections, by model and in the order of ``kinds``."""
    found = [row for row in distinct(rows) if row.kind in kinds]
    return sorted(found, key=lambda row: (row.model, kinds.index(row.kind)))


def at_equal_steps(rows: Sequence[Counted]) -> str:
    return counted(corrected(rows, *KINDS), lambda row: (f"`{row.model}`", row.kind), "model", "correction")


def by_steps(rows: Sequence[Counted]) -> str:
    of_iec = sorted(corrected(rows, "IEC"), key=lambda row: (row.model, row.steps))
    return counted(of_iec, lambda row: (f"`{row.model}`", str(row.steps)), "model", "T")


def by_technique(rows: Sequence[Counted]) -> str:
    of_iec = sorted(corrected(rows, "IEC"), key=lambda row: (row.model, row.technique))
    return counted(of_iec, lambda row: (f"`{row.model}`", row.technique), "model", "technique")


def model_of(row: Counted) -> str:
    return row.model


def peers(rows: Sequence[Counted]) -> str:
    """For each technique of ``peers`` the change of FID by corrections, by twice the steps, and by the best row that costs no
    further call, with the number of rows that it is the best of.
    """
    body = []
    bases = sorted((row for row in rows if row.table.startswith("peers") and not row.kind and "," not in row.label), key=model_of)
    for base in bases:
        beside = [row for row in rows if (row.table, row.model) == (base.table, base.model) and FID in row.changes]
        own = {row.label.removeprefix(f"{base.label}, "): row for row in beside if row.label.startswith(f"{base.label}, ")}
        free = {name: row for name, row in own.items() if row.calls["total"] <= base.calls["total"]}
        best = min(free, key=lambda name: free[name].changes[FID].value, default="")
        named = [change_of(own.get(name)) for name in ("IEC", "IEC renorm", "Heun", "2T")]
        body.append(
            [
                f"`{base.model}`",
                base.label,
                f"{base.scores[FID].value:.0f}",
                *named,
                f"{best} (of {len(free)}): {change_of(free.get(best))}",
            ]
        )
    return markdown_table(
        ["model", "technique", "FID", "IEC", "IEC, norm restored", "Heun", "twice the steps", "best row at no further call"], body
    )


def change_of(row: Counted | None) -> str:
    if row is None or FID not in row.changes:
        return ""
    change = row.changes[FID]
    return f"{change.value:+.0f} [{change.low:+.0f}, {change.high:+.0f}]"


def training(results: Path) -> str:
    """FID of the checkpoints of a training, of other weights each, and what corrections change there."""
    body = []
    for path in sorted(results.glob("training_*/table.json")):
        by_label = {row.label: row for row in counted_in(path)}
        for base in (row for row in by_label.values() if not row.kind):
            changes = [change_of(by_label.get(f"{base.label} + {kind}")) for kind in ("IEC", "Heun")]
            body.append([f"`{base.model}`", base.label, f"{base.scores[FID].value:.0f}", *changes])
    return markdown_table(["model", "images seen", "FID", "change by IEC", "change by Heun"], body)


def seeds(rows: Sequence[Counted]) -> str:
    """What each correction changes, seed by seed, in the tables ``headline``."""
    groups: dict[tuple[str, ...], list[Counted]] = {}
    for row in sorted(rows, key=lambda row: (row.model, row.seed)):
        if row.table.startswith("headline") and row.kind:
            technique, *_ = row.label.split(", ")
            groups.setdefault((f"`{row.model}`", technique, row.kind), []).append(row)
    body = [[*names, changes_of(group, FID), changes_of(group, PSNR)] for names, group in groups.items()]
    return markdown_table(["model", "technique", "correction", "change of FID", "change of PSNR (dB)"], body)


NORM = {"IEC": " + IEC", "IEC, norm restored": " + IEC, renorm", "epsilon scaling": ", eps scaling", "Heun": ", Heun"}
FEATURE = {"IEC": ", cache from last", "state alone": ", cache from first", "feature alone": ", feature alone"}
"""Heading -> ending of a label in ``controls`` and in ``ablation_cache_from``."""


def variants(rows: Sequence[Counted], table: str, endings: dict[str, str], *scores: str) -> str:
    """What each variant of a technique changes, in the tables whose names begin with ``table``; empty where a row has none."""
    body = []
    by_label = {(row.model, row.label): row for row in sorted(rows, key=model_of) if row.table.startswith(table)}
    for model, label in by_label:
        found = [by_label.get((model, label + ending)) for ending in endings.values()]
        if found[0] is not None:
            values = [changes_of([row], score) for score in scores for row in found]
            name = label.removeprefix(f"{model}: ")
            body.append([f"`{model}`", f"DeepCache {name}" if name.startswith("N=") else name, *values])
    return markdown_table(["model", "technique", *(f"{SCORES[score][0]}: {name}" for score in scores for name in endings)], body)


ROUNDING = {
    "W8A8": ("W8A8", "W8A8, block"),
    "W4A8": ("W4A8, nearest", "W4A8, block"),
    **{
        f"CacheQuant {bits} N={n}": (f"CacheQuant {bits} N={n} uniform", f"CacheQuant {bits} N={n}, block")
        for bits in ("W8A8", "W4A8")
        for n in (5, 10)
    },
}
"""Technique -> its rows in ``techniques``, rounded to nearest and with learned rounding."""


def rounding(rows: Sequence[Counted]) -> str:
    """FID of each technique by either rounding, and what IEC changes there."""
    by_label = {(row.model, row.label): row for row in rows if row.table.startswith("techniques")}
    body = []
    for model in sorted({model for model, _ in by_label}):
        for name, labels in ROUNDING.items():
            plain = [by_label.get((model, label)) for label in labels]
            with_iec = [by_label.get((model, f"{label} + IEC")) for label in labels]
            values = [f"{row.scores[FID].value:.0f}" if row else "" for row in plain]
            changes = [[changes_of([row], score) for score in (FID, PSNR)] for row in with_iec]
            body.append([f"`{model}`", name, values[0], *changes[0], values[1], *changes[1]])
    header = ["FID", "IEC: FID", "IEC: PSNR (dB)"]
    return markdown_table(["model", "technique", *(f"{kind}: {of}" for kind in ("nearest", "learned") for of in header)], body)


def changes_of(rows: Sequence[Counted | None], score: str) -> str:
    """Separated by slashes, without rows that are not there or have none; a star as in docs/results.md."""
    _, decimals = SCORES[score]
    known = [(row.changes[score].value, "*" if score in row.significant else "") for row in rows if row and score in row.changes]
    return " / ".join(f"{change:+.{decimals}f}{star}" for change, star in known)


def provenance(rows: Sequence[Counted], stale: Sequence[str]) -> str:
    """Which rows are counted, and which tables are not."""
    body = []
    for model in sorted({row.model for row in rows}):
        own = [row for row in rows if row.model == model]
        images = ", ".join(map(str, sorted({row.images for row in own})))
        tables = ", ".join(f"`{name}`" for name in sorted({row.table for row in own}))
        body.append([f"`{model}`", str(len(own)), images, ", ".join(map(str, sorted({row.steps for row in own}))), tables])
    left_out = ", ".join(f"`{name}`" for name in stale) or "none"
    lines = markdown_table(["model", "rows", "N", "T", "tables of `experiments/results`"], body)
    return f"{lines}\n\nTables with rows of other weights, which are not counted: {left_out}."


def parts(results: Path) -> dict[str, str]:
    """name -> Markdown."""
    rows, stale = read(results)
    return {
        "at equal steps": at_equal_steps(rows),
        "by steps": by_steps(rows),
        "by technique": by_technique(rows),
        "peers": peers(rows),
        "seeds": seeds(rows),
        "norm": variants(rows, "controls", NORM, FID),
        "feature": variants(rows, "ablation_cache_from", FEATURE, FID, PSNR),
        "rounding": rounding(rows),
        "training": training(results),
        "provenance": provenance(rows, stale),
    }


def part_of(page: str, results: Path) -> Callable[[str], str]:
    """Name -> Markdown. Raises `ArtifactError` where the page does not have the parts that are made."""
    found = parts(results)
    if sorted(names(page)) != sorted(found):
        raise ArtifactError(
            f"The page has the parts {', '.join(names(page))}; the script makes {', '.join(found)}. Make them agree."
        )
    return found.__getitem__


if __name__ == "__main__":
    with entry_point():
        fill(__doc__, {PAGE: part_of(PAGE.read_text(encoding="utf-8"), RESULTS)})
