"""The report as a page of Markdown, beside its JSON."""

from collections.abc import Sequence
from pathlib import Path

from iec.gpucheck.part import FAILED, OVER, Line
from iec.gpucheck.results import PAGE, PartResult, Results
from iec.gpucheck.run import counted
from iec.io.files import write_text
from iec.io.markdown import markdown_table

REHEARSAL = (
    "**This is a rehearsal on a CPU. It says that the check runs, and nothing about CUDA:** no number below is of a GPU, and what "
    "needs one is skipped."
)
TOY = "Networks are tiny versions of the paper's: times and memory say nothing about the paper's networks."


def write_report(results: Results, folder: Path) -> None:
    """report.json and report.md, each complete or as it was before."""
    results.write(folder)
    text = markdown(results)
    write_text(folder / PAGE, text)


def markdown(results: Results) -> str:
    """What was run on which device at which size, then each part."""
    machine = results.machine
    blocks = [f"# Check of {machine.device}"]
    if machine.kind == "cpu":
        blocks.append(REHEARSAL)
    if results.size == "toy":
        blocks.append(TOY)
    blocks += [_summary(results), _machine(results), *(_section(part, machine.version) for part in results.parts)]
    return "\n\n".join(blocks) + "\n"


def _summary(results: Results) -> str:
    rows = [
        (part.name, "**failed**" if part.failed else part.state, counted(part.lines), f"{part.seconds:.0f} s", part.question)
        for part in results.parts
    ]
    return table(("part", "state", "lines", "time", "question"), rows)


def _machine(results: Results) -> str:
    machine = results.machine
    environment = machine.environment
    rows = [
        ("date", results.date),
        ("size", results.size),
        ("device", machine.device),
        *machine.facts.items(),
        ("CPU of the references", f"{machine.cpu}; {machine.cores} cores"),
        ("platform", environment.platform),
        ("source", f"{environment.revision or 'no clone'}, version {machine.version}"),
        ("Python", environment.python),
        *environment.packages.items(),
        *machine.flags.items(),
    ]
    return "## Machine\n\n" + table(("", ""), rows)


def _section(part: PartResult, version: str) -> str:
    blocks = [f"## {part.name}: {part.question}"]
    if part.version != version:
        blocks.append(f"Measured by other sources, version {part.version}.")
    if part.error:
        blocks.append(f"The part is {part.state}:\n\n{fenced(part.error)}")
    if part.lines:
        rows = [(_verdict(line), line.what, *_numbers(line), _remark(line)) for line in part.lines]
        blocks.append(table(("verdict", "what", "value", "limit", "unit", "remark"), rows))
    blocks += [f"{line.what}:\n\n{fenced(line.remark)}" for line in part.lines if line.verdict == FAILED]
    return "\n\n".join(blocks)


def _verdict(line: Line) -> str:
    return f"**{line.verdict}**" if line.verdict in (OVER, FAILED) else line.verdict


def _numbers(line: Line) -> tuple[str, str, str]:
    value = "" if line.value is None else f"{line.value:.4g}"
    limit = "" if line.limit is None else f"{line.limit:.3g}"
    return value, limit, line.unit


def _remark(line: Line) -> str:
    return "see below" if line.verdict == FAILED else line.remark


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Of Markdown; what is in an entry of it stays in it."""
    return markdown_table(head, [[text.replace("|", "\\|").replace("\n", " ") for text in row] for row in rows])


def fenced(text: str) -> str:
    return f"```\n{text}\n```"
