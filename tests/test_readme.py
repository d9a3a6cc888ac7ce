"""What the README tells a person to type works."""

import re
import shlex

import pytest
from diffusers import StableDiffusionPipeline

from iec.errors import ConfigError
from iec.models.model import Source
from iec.runs.runner import run_cell
from iec.tables.experiment import Experiment
from tests.conftest import CONFIGS
from tests.models.tiny import stable_diffusion, tiny

README = (CONFIGS.parent / "README.md").read_text()


PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
FEWER = {
    "num_inference_steps=50": "num_inference_steps=5",
    "calibration_images=8": "calibration_images=2",
    "range(8)": "range(3)",
    "images=4": "images=2",
}
"""So that the programs take seconds; what the README says -> what is run."""


@pytest.mark.parametrize("program", [program for program in PROGRAMS if not program.startswith("# ")])
@pytest.mark.filterwarnings("ignore::iec.metrics.frechet.FewSamplesWarning")
def test_programs_run(program, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # one of them draws a picture
    model = Source.of(tiny("sd_coco"), random_weights=True).load("cpu")
    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", lambda name: stable_diffusion(model))
    for said, run in FEWER.items():
        program = program.replace(said, run)
    exec(compile(program, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_commands_compose(make_cell, monkeypatch):
    made = Source.of
    monkeypatch.setattr(Source, "of", lambda name, *_, **__: made(name, random_weights=True))  # the paper's weights are not here
    commands = re.findall(r"^ +python run\.py (?!-m|efficiency=pooled_keys)(.*?)(?:  +#.*)?$", README, re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        assert make_cell(*shlex.split(command)).slug
    for path in re.findall(r"experiments/\w+\.yaml", README):
        assert Experiment.read(CONFIGS.parent / path).rows


def test_a_technique_of_ones_own(tmp_path, monkeypatch, make_cell):
    """The README's file and config: pooling by 1 changes no byte, by 2 it does, and another file is another cell."""
    (source,) = [program for program in PROGRAMS if program.startswith("# pooled_keys.py\n")]
    (config,) = re.findall(r"```yaml\n# pooled_keys.yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "efficiency").mkdir()
    (tmp_path / "efficiency" / "pooled_keys.yaml").write_text(config)
    (tmp_path / "pooled_keys.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    small = ["iec=all_steps", "sampler.steps=3", "num_images=2", "batch_size=2", "metrics=none", f"paths.output={tmp_path / 'out'}"]
    own = [*small, f"hydra.searchpath=[file://{tmp_path}]", "efficiency=pooled_keys"]
    images = {factor: run_cell(make_cell(*own, f"efficiency.factor={factor}")).first_images(2) for factor in (1, 2)}
    plain = run_cell(make_cell(*small)).first_images(2)
    assert (images[1] == plain).all() and not (images[2] == plain).all()
    identity = make_cell(*own).identity
    assert identity["efficiency"]["fields"] == {"factor": 2}
    (tmp_path / "pooled_keys.py").write_text(source + "\n")
    assert make_cell(*own).identity != identity
    with pytest.raises(ConfigError, match=r"(?s)pooled_keys.*fctor"):
        make_cell(*own, "+efficiency.fctor=2")
