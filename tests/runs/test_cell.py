"""Configurations: what is composed, what is refused before anything is loaded, and what a cell's identity depends on."""

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException

from iec.errors import ConfigError, DeviceError, WeightsError
from iec.runs.config import register
from iec.runs.paths import Paths
from tests.conftest import CONFIGS

OPTIONS = [(group.name, option.stem) for group in CONFIGS.iterdir() if group.name != "hydra" for option in group.glob("*.yaml")]
NEEDS_A_FILE = ("efficiency", "engine")
"""See tests/efficiency/engine."""


@pytest.mark.parametrize(("group", "option"), sorted(set(OPTIONS) - {NEEDS_A_FILE}))
def test_every_option_of_every_group_makes_a_cell(make_cell, group, option):
    weights = [] if group != "model" else ["model.random_weights=true"]  # the paper's are not here
    ideal = ["model=ideal_fashion"] if option == "error_smooth" else []  # of no other model
    assert make_cell(f"{group}={option}", *weights, *ideal).slug


def test_the_commands_of_the_readme_mean_what_they_say(make_cell):
    made = make_cell("model=ddim_cifar_small", "efficiency=w4a8", "iec=all_steps")
    assert made.technique.weight_bits == 4 and made.technique.activation_bits == 8
    assert made.sampler.corrected == frozenset(range(20)) and made.sampler.correction.lambdas == (0.5,)
    assert make_cell("iec=first_last", "iec.fraction=0.2", "sampler.steps=10").sampler.corrected == {0, 1, 8, 9}
    assert make_cell("iec=first_last", "iec.fraction=null", "iec.count=1").sampler.corrected == {0, 19}
    assert make_cell("iec=first_step").sampler.corrected == {0}
    assert make_cell("iec=all_steps", "iec.placement=explicit", "iec.steps=[2,4]").sampler.corrected == {2, 4}
    assert make_cell("iec=heun").sampler.corrected == frozenset(range(19))
    assert make_cell("iec=all_steps", "iec.lambda=0.3", "iec.iterations=2").sampler.correction.lambdas == (0.3,)
    assert make_cell("iec=all_steps", "iec.lambda=[1.0,0.5]", "iec.iterations=2").sampler.correction.lambdas == (1.0, 0.5)
    latent = make_cell("iec=all_steps", "iec.preset=official_latent").sampler.correction
    assert (latent.iterations, latent.lambdas, latent.tolerance, latent.norm) == (2, (1.0, 0.5), 1e-6, "batch")
    assert make_cell("sampler.timesteps=[900,500,100]").sampler.timetable.pairs == ((900, 500), (500, 100), (100, -1))


def test_deepcache_corrects_the_full_steps_only(make_cell):
    sampler = make_cell("efficiency=deepcache", "iec=all_steps", "efficiency.interval=10").sampler
    assert sampler.refresh == sampler.corrected == {0, 10}
    identities = [
        make_cell("efficiency=deepcache", override).identity for override in ["seed=0", "efficiency.cut=1", "efficiency.interval=2"]
    ]
    assert identities[0] != identities[1] != identities[2]


def test_only_leaving_out_the_last_correction_enters_the_identity(make_cell):
    """``correct`` is what cells from before the choice did; where the last step is not corrected the choice makes no difference."""
    found = ["efficiency=cachequant_w8a8", "efficiency.schedule=dps"]
    for overrides in ([], ["efficiency=deepcache", "efficiency.interval=19"], found):
        literal, skipping = (
            make_cell("iec=all_steps", *overrides, f"iec.last_step={how}").identity["iec"] for how in ("correct", "skip")
        )
        assert literal != skipping and "last_step" not in str(literal)
    assert make_cell("iec=first_step", "iec.last_step=skip").identity == make_cell("iec=first_step").identity


def test_the_head_stands_beside_unless_told_otherwise(make_cell):
    protocols = ("efficientnet_lite0", "efficientnet_lite0_deep")
    for overrides, expected in [
        ([], protocols), (["metrics.beside=[]"], protocols[:1]), (["metrics=efficientnet_lite0_deep"], protocols[1:]),
        (["metrics=inception"], ("inception",)), (["metrics.beside=[inception]"], (protocols[0], "inception")),
    ]:  # fmt: skip
        assert make_cell(*overrides).metrics.protocols == expected


def test_the_identity_is_what_the_bytes_depend_on(make_cell, tmp_path):
    base = make_cell("iec=all_steps")
    same = ["num_images=512", "metrics=none", "logger=wandb", f"paths.output={tmp_path}", "trace_images=1", "metrics.bootstrap=7"]
    same.append("metrics.beside=[]")
    assert all(make_cell("iec=all_steps", override).identity == base.identity for override in same)
    other = ["seed=1", "batch_size=8", "iec.lambda=0.4", "sampler.steps=10", "efficiency=w8a8", "sampler.eta=0.5", "iec=none"]
    identities = [
        make_cell("iec=all_steps", override).identity for override in [*other, "sampler.dtype=float32", "model.random_weights=true"]
    ]
    assert all(identity != base.identity for identity in identities)
    assert make_cell("iec=all_steps", "iec.iterations=0").identity == make_cell("iec=none").identity  # the same images


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sampler.steps=0"], "sampler.steps=0"),
        (["sampler.steps=1001"], "1 .. 1000"),
        (["sampler.spacing=cosine"], "spacing"),
        (["sampler.timesteps=[5,3]", "sampler.steps=2"], "unset"),
        (["sampler.eta=2"], "eta"),
        (["sampler.dtype=float16"], "float64"),
        (["iec.lambda=-0.5"], "lambda"),
        (["iec.lambda=abc"], "lambda"),
        (["iec.iterations=-1"], "iterations"),
        (["iec.tolerance=-1"], "tolerance"),
        (["iec.preset=mine"], "preset"),
        (["iec=first_last", "iec.fraction=0"], "fraction"),
        (["iec=first_last", "iec.fraction=1.5"], "fraction"),
        (["iec.placement=nowhere"], "placement"),
        (["iec.placement=explicit", "iec.steps=[99]"], "0 .. 19"),
        (["iec.epsilon_scale=0"], "epsilon_scale"),
        (["num_images=0"], "num_images=0"),
        (["batch_size=0"], "batch_size=0"),
        (["seed=-1"], "seed"),
        (["metrics.name=vibes"], "metrics"),
        (["metrics.beside=[vibes]"], "Unknown metrics 'vibes'"),
        (["metrics.beside=[efficientnet_lite0]"], "names a protocol twice, or efficientnet_lite0 itself"),
        (["metrics.beside=[pytorch_fid,pytorch_fid]"], "names a protocol twice"),
        (["efficiency=w8a8", "efficiency.weight_bits=1"], "bits"),
        (["efficiency=w8a8", "efficiency.scale_rule=guess"], "scale"),
        (["efficiency=deepcache", "efficiency.interval=0"], "interval"),
        (["model.name=ddim_mars"], "ddim_mars"),
    ],
)
def test_bad_values_are_refused(make_cell, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_cell(*overrides)


@pytest.mark.parametrize(
    "override",
    [
        "iec.lamda=0.5",
        "iec.iterations=x",
        "logger.projekt=x",
        "metrics.bootstrap=many",
        "nmu_images=4",
        "iec=everywhere",
        "sampler.steps=ten",
        "efficiency=w3a3",
        "seed=x",
    ],
)
def test_unknown_keys_options_and_types_are_refused(make_cell, override):
    with pytest.raises(HydraException):
        make_cell(override)


def test_schemas_are_no_options_of_the_groups():
    register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        groups = [group for group in loader.list_groups("") if group != "hydra"]
        options = {(group, option) for group in groups for option in loader.get_group_options(group)}
    assert options == set(OPTIONS)


def test_paths_may_begin_with_the_home_folder(make_cell, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.safetensors").touch()
    cell = make_cell("paths.output='~/out'", "efficiency=w8a8", "efficiency.artifact='~/a.safetensors'")
    assert cell.paths == Paths(tmp_path / "out", tmp_path / "out" / "artifacts", None)
    assert cell.technique.artifact == str(tmp_path / "a.safetensors")
    assert cell.config.paths.output == str(tmp_path / "out")  # as it is written, logged and handed to workers
    assert make_cell("paths.cell='~'", "paths.artifacts='~/a'").folder == tmp_path
    text = make_cell("model=sd_coco", "model.random_weights=true", "metrics=inception", "metrics.clip='~/c'", "model.prompts='~/p'")
    assert text.metrics.clip == str(tmp_path / "c") and text.model.prompts == str(tmp_path / "p")
    with pytest.raises(WeightsError, match=str(tmp_path / "nowhere")):
        make_cell("model.weights='~/nowhere'")
    with pytest.raises(ConfigError, match=r"paths\.output=~nobody-here/out"):
        make_cell("paths.output='~nobody-here/out'")


def test_missing_device_and_weights(make_cell):
    with pytest.raises(DeviceError, match="Use auto or cpu in its place"):
        make_cell("device=warp")
    with pytest.raises(WeightsError, match="nowhere"):
        make_cell("model.weights=/nowhere")
