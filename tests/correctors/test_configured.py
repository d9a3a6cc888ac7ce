"""Correctors from their configuration: what a cell makes of them, what its identity holds, what is refused."""

from dataclasses import dataclass

import pytest

import iec
from iec.correctors.configured import BUILT_IN, corrector_of
from iec.correctors.unic import UniC
from iec.errors import ConfigError
from iec.runs.runner import run_cell
from iec.sampling.corrector import NO_CORRECTOR, Corrector
from tests.conftest import CONFIGS

SMALL = ["sampler.steps=3", "num_images=2", "batch_size=2", "metrics=none"]
OPTIONS = sorted(path.stem for path in (CONFIGS / "corrector").glob("*.yaml"))


def test_none_is_the_cell_as_ever(make_cell):
    cell = make_cell("corrector=none")
    assert cell.sampler.corrector == NO_CORRECTOR and "corrector" not in cell.identity and cell.identity == make_cell().identity


@pytest.mark.parametrize("option", [option for option in OPTIONS if option not in ("none", "es")])
def test_a_corrector_is_a_cell_of_its_own_and_its_name_says_so(make_cell, option):
    """es is tested on its own: its uniform case has another name."""
    cell = make_cell(f"corrector={option}")
    name = "affine-d2" if option == "affine" else option
    assert f"-none-{name}-T20-" in cell.slug and cell.identity != make_cell().identity
    assert type(cell.sampler.corrector).__module__ in BUILT_IN and "class" not in cell.identity["corrector"]
    assert make_cell(f"corrector={option}", "efficiency=cachequant_w4a8", "iec=first_last").slug  # with any technique, and IEC


def test_a_corrector_runs_resumes_and_costs_no_call(make_cell, tmp_path):
    given = [*SMALL, "efficiency=deepcache", "efficiency.interval=2", "iec=all_steps", f"paths.output={tmp_path}"]
    plain, first = run_cell(make_cell(*given)), run_cell(make_cell(*given, "corrector=unic"))
    assert plain.manifest.hash != first.manifest.hash and plain.manifest.calls_per_image == first.manifest.calls_per_image
    (shard,) = (first.cell.folder / "shards").glob("*.npz")
    shard.unlink()
    assert run_cell(make_cell(*given, "corrector=unic")).manifest.hash == first.manifest.hash


def test_the_library_takes_a_corrector():
    model = iec.load_model("ddim_cifar_small", device="cpu")
    plain, corrected = (iec.sample(model, 1, steps=2, corrector=corrector) for corrector in (NO_CORRECTOR, UniC()))
    assert plain.calls == corrected.calls and (plain.images != corrected.images).any()


@dataclass(frozen=True)
class Own(Corrector):
    factor: float = 0.5
    blocks: tuple = (1, 2)


class Undecorated(Own):
    pass


@dataclass(frozen=True)
class Hiding(Corrector):
    eps: float = 0.1


def test_a_corrector_of_ones_own_has_its_file_in_the_identity(make_cell):
    own = [f"corrector._target_={__name__}.Own", "+corrector.factor=0.25"]
    identity = make_cell(*own).identity["corrector"]
    assert identity["fields"] == {"factor": 0.25, "blocks": [1, 2]} and len(identity["source"]) == 64
    for target, message in (
        ("pathlib.Path", "is not a corrector"),
        (f"{__name__}.Undecorated", r"@dataclass\(frozen=True\)"),
        (f"{__name__}.Hiding", "names of hooks: eps. Rename"),
    ):
        with pytest.raises(ConfigError, match=message):
            corrector_of({"name": "x", "_target_": target})
