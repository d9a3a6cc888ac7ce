"""What README and docs tell a person to type works."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, StableDiffusionPipeline

from iec.errors import ConfigError
from iec.runs.runner import run_cell
from iec.tables.experiment import Experiment
from scripts import architecture
from tests.tiny_flow import FLUX, flux
from tests.tiny_pipelines import WORDS, stable_diffusion

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
PROGRAMS = [(name, program) for name, text in PAGES.items() for program in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
COMMANDS = sorted(
    {c for text in PAGES.values() for c in re.findall(r"^ {4}(?:PYTHONPATH=DIR )?iec run (.*?)(?:  +#.*)?$", text, re.MULTILINE)}
)
FEWER = {
    "num_inference_steps=50": "num_inference_steps=5",
    "calibration_images=8": "calibration_images=2",
    '"quad", 10': '"quad", 4',
    "range(8)": "range(3)",
    "images=4": "images=2",
    "sample(model, 8": "sample(model, 2",
    "PTQConfig(": "PTQConfig(search_samples=1024, ",
}
"""So that the programs take seconds; what a page says -> what is run."""
SMALL = ["iec=all_steps", "sampler.steps=3", "num_images=2", "batch_size=2", "metrics=none"]


def the_program(first_line):
    (source,) = [program for _, program in PROGRAMS if program.startswith(f"# {first_line}\n")]
    return source


def test_the_readme_is_one_page():
    assert len(PAGES["README.md"].encode()) < 10_000
    assert not [line for line in PAGES["README.md"].splitlines() if len(line) > 132]


@pytest.mark.parametrize(("page", "program"), [(name, program) for name, program in PROGRAMS if not program.startswith("# ")])
@pytest.mark.filterwarnings("ignore::iec.metrics.frechet.FewSamplesWarning")
def test_programs_run(page, program, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # one of them draws a plot
    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", lambda name: stable_diffusion())
    prompt = (WORDS["text"][:1], WORDS["none"][:1])
    monkeypatch.setattr(StableDiffusionPipeline, "encode_prompt", lambda *_, **__: prompt)
    for said, run in FEWER.items():
        program = program.replace(said, run)
    exec(compile(program, page, "exec"), {})
    printed = capsys.readouterr().out
    assert printed and "nan" not in printed and "None" not in printed


def test_the_program_with_a_cache_runs(monkeypatch, capsys):
    pipe = flux(FlowMatchEulerDiscreteScheduler(shift=3.0))
    pipe.default_sample_size = 8
    pipe.encode_prompt = lambda **_: (FLUX["prompt_embeds"], FLUX["pooled_prompt_embeds"], torch.zeros(7, 3))
    monkeypatch.setattr(FluxPipeline, "from_pretrained", lambda name: pipe)
    program = the_program("FLUX with a cache and a correction").replace("num_inference_steps=50", "num_inference_steps=5")
    exec(program, {})
    assert capsys.readouterr().out


NO_CELL = r"-m |efficiency=engine|--help|pooled_keys|rounded_eps|calm_eps|devices="
"""Commands that make none here; devices are GPUs, and an engine has a file."""


@pytest.mark.parametrize("command", [c for c in COMMANDS if not re.search(NO_CELL, c)])
def test_commands_make_a_cell(make_cell, monkeypatch, command):
    words = [word for word in shlex.split(command) if word != "model.weights=hub"]  # which is not here either
    model = next((word for word in words if word.startswith("model=")), "model=ddim_cifar_small")
    random = [] if model == "model=ddim_cifar_small" else ["model.random_weights=true"]  # the paper's weights are not here
    cell = make_cell(*words, *random)
    assert cell.card.name == model.removeprefix("model=")
    assert f"-{cell.config.efficiency.name}-" in cell.slug


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("-m ")])
def test_sweeps_make_cells(make_cell, command):
    from iec.sweeps.sweep import sweep_config

    words = [word for word in shlex.split(command)[1:] if not word.startswith(("hydra", "shard"))]
    if any("," in word for word in words):
        assert sweep_config(words)["parameters"]
    else:
        assert make_cell(*words).slug


def test_files_that_are_named_exist():
    for name, text in PAGES.items():
        for path in re.findall(r"(?<![\w/.])((?:iec|experiments|scripts|configs|docs|tests)/[\w./-]+\.(?:py|yaml|md|sh))", text):
            generated = path.endswith(("pooled_keys.yaml", "rounded_eps.yaml", "calm_eps.yaml"))
            assert generated or (ROOT / path).is_file(), (name, path)
    for path in re.findall(r"experiments/\w+\.yaml", "".join(PAGES.values())):
        assert Experiment.read(ROOT / path).rows


def test_what_is_linked_is_in_a_clone():
    """Pictures too, for those who read the pages where the code is."""
    for name, text in PAGES.items():
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
            path = (ROOT / name).parent / target
            moved = {"contributing.md", "changelog.md"}  # of the root folder; they are pages of the site
            assert path.exists() or target in moved, (name, target)


def test_the_diagram_is_of_the_imports_of_now():
    assert architecture.PICTURE.read_text() == architecture.diagram(), "draw it again: python -m scripts.architecture"


@pytest.fixture
def component(tmp_path, monkeypatch, make_cell):
    """From a file and a config of a page: (name, group) -> (overrides) -> cell, with the file on the path."""

    def install(name, group="efficiency"):
        (config,) = {
            found for text in PAGES.values() for found in re.findall(rf"```yaml\n# {name}.yaml\n(.*?)```", text, re.DOTALL)
        }
        (tmp_path / group).mkdir()
        (tmp_path / group / f"{name}.yaml").write_text(config)
        (tmp_path / f"{name}.py").write_text(the_program(f"{name}.py"))
        monkeypatch.syspath_prepend(tmp_path)
        own = [*SMALL, f"paths.output={tmp_path / 'out'}", f"hydra.searchpath=[file://{tmp_path}]", f"{group}={name}"]
        return lambda *overrides: make_cell(*own, *overrides)

    return install


def first_two(cell):
    return run_cell(cell).first_images(2)


def test_the_readmes_technique_changes_images_by_its_grid(component, make_cell, tmp_path):
    cell = component("rounded_eps")
    plain = first_two(make_cell(*SMALL, f"paths.output={tmp_path / 'out'}"))
    fine, coarse = first_two(cell("efficiency.grid=1e-6")), first_two(cell("efficiency.grid=0.5"))
    assert abs(fine.astype(int) - plain).max() <= 1 < abs(coarse.astype(int) - plain).max()


def test_a_technique_of_ones_own(component, tmp_path, make_cell):
    """Pooling by 1 changes no byte, by 2 it does, and another file is another cell."""
    cell = component("pooled_keys")
    images = {factor: first_two(cell(f"efficiency.factor={factor}")) for factor in (1, 2)}
    plain = first_two(make_cell(*SMALL, f"paths.output={tmp_path / 'out'}"))
    assert (images[1] == plain).all() and not (images[2] == plain).all()
    identity = cell().identity
    assert identity["efficiency"]["fields"] == {"factor": 2}
    path = tmp_path / "pooled_keys.py"
    path.write_text(path.read_text() + "\n")
    assert cell().identity != identity
    with pytest.raises(ConfigError, match=r"(?s)pooled_keys.*fctor"):
        cell("+efficiency.fctor=2")


def test_a_corrector_of_ones_own(component, make_cell, tmp_path):
    """A limit that nothing reaches changes no byte, a low one does, with IEC and a technique; another file is another cell."""
    cell = component("calm_eps", "corrector")
    plain = first_two(make_cell(*SMALL, f"paths.output={tmp_path / 'out'}"))
    assert (first_two(cell("corrector.limit=100")) == plain).all()
    cached = cell("corrector.limit=1", "efficiency=deepcache", "efficiency.interval=2")
    assert not (first_two(cached) == plain).all() and "-calm_eps-" in cached.slug
    identity, path = cached.identity, tmp_path / "calm_eps.py"
    path.write_text(path.read_text() + "\n")
    assert cached.identity["corrector"]["source"] != identity["corrector"]["source"]
