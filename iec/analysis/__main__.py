"""Why IEC helps or harms a cell: norms of its steps, growth of its errors, and which corrections pay.

    python -m iec.analysis norms model=ddim_cifar_small sampler.steps=50
    python -m iec.analysis errors efficiency=w8a8 sampler.steps=50 --images 32
    python -m iec.analysis suggest efficiency=deepcache efficiency.interval=10 sampler.steps=50
    python -m iec.analysis suggest efficiency=deepcache sampler.steps=50 --calls 10     # refreshes and corrections together
    python -m iec.analysis pays efficiency=w4a8 iec=all_steps sampler.steps=20          # will the correction pay?
    python -m iec.analysis rule outputs/rule                                            # the rule, fitted and tested
    python -m iec.analysis errors experiments/figure2.yaml --scale small      # every row of the file, of each bundled model
    python -m iec.analysis norms experiments/figure1.yaml --model ideal_fashion

Overrides are those of ``iec run``. Written to --out: a figure, a JSON file with all numbers, and state/, from which the same
command goes on. In a checkout it is also ``python scripts/analyse.py``.
"""

import argparse
import logging
from pathlib import Path

from iec.analysis.commands import Budget, run_errors, run_norms, run_pays, run_plan, run_suggest, with_errors
from iec.analysis.jacobian import DIFFERENCE
from iec.analysis.norms import LAMBDAS, Options
from iec.analysis.pays import PREDICTORS
from iec.analysis.plan import EVALUATIONS
from iec.analysis.record import Subject
from iec.analysis.suggest import GRID
from iec.analysis.transfer import run_rule
from iec.io.files import require_folder
from iec.io.float32 import without_tf32
from iec.io.paths import user_path
from iec.io.runtime import command_parser, entry_point, keep_freed_memory
from iec.metrics.paired import PSNR
from iec.tables.experiment import Experiment
from iec.tables.scales import add_scale_options


def arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    norms = commands.add_parser("norms", help="largest singular values of A I + B J and grad G (the paper's Fig. 1)")
    norms.add_argument("--every", type=int, default=5, help="every so many steps")
    norms.add_argument("--lambdas", type=float, nargs="*", default=list(LAMBDAS), help="of grad G")
    norms.add_argument("--derivative", default="exact", help="exact, or difference for networks that round (a lower bound)")
    norms.add_argument("--relative", type=float, default=DIFFERENCE, help="step of the differences, relative to |x|")
    errors = commands.add_parser("errors", help="error against step, what a step makes and what it inherits (Fig. 2)")
    suggest = commands.add_parser("suggest", help="the lambda and the steps that pay most per call, tested on other seeds")
    suggest.add_argument("--calibration-images", type=int, default=8)
    suggest.add_argument("--lambdas", type=float, nargs="*", default=list(GRID), help="to choose from")
    suggest.add_argument("--budget", type=int, help="at most so many corrections an image; all that pay, if not given")
    suggest.add_argument("--calls", type=int, help="full calls an image: choose the refresh steps too, see docs/planner.md")
    suggest.add_argument("--corrections", type=int, help="of --calls; as many as pay, if not given")
    suggest.add_argument(
        "--evaluations", type=int, help=f"with --calls: ways to spend them that are tried; {EVALUATIONS}, if not given"
    )
    pays = commands.add_parser("pays", help="whether a correction will pay, measured on a few images, see docs/rule.md")
    rule = commands.add_parser("rule", help="the threshold of such a measurement, fitted on one model and tested on the others")
    rule.add_argument("--predictor", choices=PREDICTORS, default=PREDICTORS[0], help="of the picture")
    rule.add_argument("--score", default=PSNR.label, help="label of the paired score that has to become better")
    rule.add_argument("--images", type=int, help="use the first so many of those that were measured; all, if not given")
    for command in (norms, errors, suggest, pays, rule):
        command.add_argument("--out", type=user_path, default=Path("outputs/analysis"))
    for command, images, seed in (
        (norms, 16, "the cell's"),
        (errors, 32, "the cell's"),
        (suggest, 32, "the cell's"),
        (pays, 8, "its own"),
    ):
        command.add_argument("--images", type=int, default=images, help=f"of {seed} seed")
        command.add_argument("--label", help="of the files and figures, without an experiment file; the cell's slug, if not given")
        add_scale_options(command)
    args, rest = parser.parse_known_args()  # files and overrides may stand anywhere among the options
    if unknown := [word for word in rest if word.startswith("-")]:
        parser.error(f"unrecognized options: {' '.join(unknown)}")
    if args.command == "rule" and any("=" in word for word in rest):
        parser.error("rule takes folders, and no overrides")
    files = [user_path(word) for word in rest if "=" not in word]
    if args.command != "rule":
        require_options_apply(parser, args, files)
    return argparse.Namespace(**vars(args), files=files, overrides=[word for word in rest if "=" in word])


def require_options_apply(parser: argparse.ArgumentParser, args: argparse.Namespace, files: list[Path]) -> None:
    """End with a message where an option would do nothing."""
    if files and args.label is not None:
        parser.error("--label names one cell, and the rows of a file have labels. Leave it out.")
    if not files and (args.scale is not None or args.model):
        parser.error("--scale and --model choose rows of an experiment file, and none is given. Use an override: model=NAME.")
    if args.command != "suggest":
        return
    if args.calls is None and (args.corrections is not None or args.evaluations is not None):
        parser.error("--corrections and --evaluations belong to --calls.")
    if args.calls is not None and args.budget is not None:
        parser.error("--budget is of corrections alone; with --calls it is --corrections.")


def subjects(args: argparse.Namespace) -> list[Subject]:
    """Checked, all of them before the first is computed."""
    if args.files:
        experiments = [Experiment.read(path, args.overrides, args.scale, args.model) for path in args.files]
        found = [subject for experiment in experiments for subject in Subject.of_experiment(experiment, args.images, args.out)]
    else:
        found = [Subject.of(args.overrides, args.images, args.out, args.label)]
    return with_errors(found) if args.command == "pays" else found


@without_tf32()
def main() -> None:
    """See the module's docstring. Float32 is float32, whoever calls it."""
    args = arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    keep_freed_memory()
    require_folder(args.out, "--out")
    if args.command == "rule":
        run_rule(args.files, args.score, args.predictor, args.images, args.out)
        return
    for subject in subjects(args):
        if args.command == "norms":
            run_norms(subject, Options(tuple(args.lambdas), args.derivative, args.relative), args.every)
        elif args.command == "errors":
            run_errors(subject)
        elif args.command == "pays":
            run_pays(subject)
        elif args.calls is not None:
            budget = Budget(args.calls, args.corrections, EVALUATIONS if args.evaluations is None else args.evaluations)
            run_plan(subject, args.calibration_images, tuple(args.lambdas), budget)
        else:
            run_suggest(subject, args.calibration_images, tuple(args.lambdas), args.budget)


if __name__ == "__main__":
    with entry_point():
        main()
