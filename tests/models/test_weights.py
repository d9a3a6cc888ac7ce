import json
import re
import weakref
from contextlib import contextmanager

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from iec.errors import ConfigError, WeightsError
from iec.models import card, card_names
from iec.models.architecture import build, differences
from iec.models.source import Source
from iec.models.weights import CONFIG, WEIGHTS, fill, find, models_folder
from tests.models.tiny import PAPER, tiny, write


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("IEC_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.mark.parametrize("name", [name for name in card_names() if card(name).packaged is None])
def test_the_real_architectures_have_the_parameters_that_the_cards_say(name):
    for component in card(name).components.values():
        module = build(component, device="meta")
        assert sum(p.numel() for p in module.parameters()) == component.parameters, component.name


@pytest.mark.parametrize("name", PAPER)
def test_a_folder_in_pipeline_layout_is_loaded_bit_for_bit(name, home):
    facts = tiny(name)
    write(facts, home / name)
    source = Source.of(facts)
    model = source.load("cpu")
    assert model.weights_hash == source.weights_hash != "random"
    for key, component in facts.components.items():
        expected = build(component).state_dict()
        loaded = {
            "unet": model.unet,
            "vae": getattr(model.decoder, "module", None),
            "vqvae": getattr(model.decoder, "module", None),
            "class_embedding": getattr(model.conditioner, "table", None),
            "text_encoder": getattr(getattr(model.conditioner, "encoder", None), "model", None),
        }[key]
        assert not any(value.is_meta for value in [*loaded.parameters(), *loaded.buffers()])
        assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    if name == "ldm_lsun_church":
        assert model.decoder.scaling_factor == 0.5  # the folder's: it belongs to the weights


def test_the_identity_is_of_what_a_configuration_means(home):
    facts = tiny("ldm_lsun_church")
    write(facts, home / facts.name)
    before, config = Source.of(facts).weights_hash, home / facts.name / "vae" / CONFIG
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "_diffusers_version": "0.0", "_name_or_path": "elsewhere"}))
    assert Source.of(facts).weights_hash == before
    config.write_text(json.dumps({**values, "scaling_factor": 0.25}))
    assert Source.of(facts).weights_hash != before


def test_names_of_earlier_releases_are_understood(tmp_path):
    component = tiny("ldm_lsun_church").components["vae"]
    expected = build(component).state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, value in expected.items():
        for new, was in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{was}.")
        renamed[name] = value
    assert renamed.keys() != expected.keys()
    save_file(renamed, tmp_path / WEIGHTS)
    empty = build(component, device="meta")
    fill(empty, [tmp_path / WEIGHTS], torch.float32, torch.device("cpu"))
    assert all(torch.equal(value, expected[name]) for name, value in empty.state_dict().items())


def test_a_text_encoder_with_a_prefix_and_a_stored_buffer_is_understood(tmp_path):
    component = tiny("sd_coco").components["text_encoder"]
    expected = build(component).state_dict()
    stored = {f"text_model.{name}": value for name, value in expected.items()}
    save_file(stored | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, tmp_path / WEIGHTS)
    empty = build(component)
    fill(empty, [tmp_path / WEIGHTS], torch.float32, torch.device("cpu"))
    assert all(torch.equal(value, expected[name]) for name, value in empty.state_dict().items())


@pytest.mark.parametrize("name", PAPER)
def test_missing_weights_say_which_file_from_where_and_what_to_do(name, home):
    with pytest.raises(WeightsError) as caught:
        find(card(name))
    message = str(caught.value)
    original = card(name).original
    for part in (
        original.file,
        original.url,
        original.sha256 or original.md5 or "not known",
        str(home / name),
        "model=ddim_cifar_small runs now",
    ):
        assert part in message, part
    assert f"python -m iec convert {name}" in message and "model.random_weights=true" in message
    assert ("model.weights=hub" in message) == (card(name).hub is not None)


def test_a_pickled_checkpoint_is_not_opened_here(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"anything")
    with pytest.raises(WeightsError, match=r"iec convert ldm_imagenet --checkpoint .*model\.ckpt"):
        find(card("ldm_imagenet"), tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    "given", ["google/ddpm-cifar10-32", "somewhere/google/ddpm-cifar10-32/", "hub/models--google--ddpm-cifar10-32/snapshots/1"]
)
def test_what_is_known_to_be_the_wrong_weights_is_refused(given):
    with pytest.raises(WeightsError, match="before averaging"):
        find(card("ddim_cifar"), given)


def test_a_folder_of_another_architecture_is_refused(tmp_path):
    facts = tiny("ddim_cifar")
    write(facts, tmp_path)
    config = json.loads((tmp_path / "unet" / CONFIG).read_text())
    (tmp_path / "unet" / CONFIG).write_text(json.dumps({**config, "norm_eps": 1e-5}))
    with pytest.raises(WeightsError, match=r"norm_eps: 1e-05 in the folder, 1e-06 in the card"):
        find(facts, tmp_path)


def real_text_encoder(**changes):
    """The configuration of a text encoder as releases before ``projection_dim`` wrote it."""
    config = dict(card("sd_coco").components["text_encoder"].config)
    del config["projection_dim"]
    return {**config, "model_type": "clip_text_model", "eos_token_id": 2, "torch_dtype": "float32", **changes}


@pytest.mark.parametrize(
    ("name", "component", "changes", "found"),
    [
        ("ldm_imagenet", "unet", {"act_fn": "gelu", "dropout": 0.1}, ["act_fn: 'gelu' in the folder, 'silu' in the card"]),
        ("sd_coco", "unet", {"center_input_sample": True}, ["center_input_sample: True in the folder, False in the card"]),
        ("ldm_imagenet", "vqvae", {"scaling_factor": 0.18215}, ["scaling_factor: 0.18215 in the folder, 1.0 in the card"]),
        ("ldm_imagenet", "vqvae", {"scaling_factor": None}, []),
        ("ldm_lsun_church", "vae", {"scaling_factor": 0.7}, []),
        ("sd_coco", "text_encoder", {"projection_dim": 512}, []),
    ],
)
def test_a_configuration_may_differ_only_where_nothing_changes(name, component, changes, found):
    """Also where the card leaves a setting to the class: a UNet that centres its input is another one."""
    made = card(name).components[component]
    assert differences(made, {**made.config, **changes}) == found


def test_configurations_of_early_releases_are_complete_enough():
    assert differences(card("sd_coco").components["text_encoder"], real_text_encoder()) == []
    assert differences(card("sd_coco").components["text_encoder"], real_text_encoder(hidden_act="gelu")) != []
    vae = card("sd_coco").components["vae"]
    assert differences(vae, {key: value for key, value in vae.config.items() if key != "scaling_factor"}) == []
    vq = card("ldm_imagenet").components["vqvae"]  # whose class would say 0.18215
    assert differences(vq, {key: value for key, value in vq.config.items() if key != "scaling_factor"}) == []


@pytest.mark.parametrize("given", ["./nothing", "../nothing", "a/b/c", "a--b/c"])
def test_a_folder_that_does_not_exist_is_a_typed_error(given, monkeypatch):
    monkeypatch.setenv("IEC_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"does not exist|is no folder here"):
        find(card("ldm_imagenet"), given)


def test_a_folder_with_pickles_alone_says_so(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"There is diffusion_pytorch_model\.bin, a pickle"):
        find(card("ddim_cifar"), tmp_path)


def test_the_way_out_of_a_pickle_works(tmp_path):
    """The command that the message names, as it is written there."""
    model = tiny("ddim_cifar")
    write(model, tmp_path)
    home = tmp_path / "unet"
    torch.save(load_file(home / WEIGHTS), home / "diffusion_pytorch_model.bin")
    (home / WEIGHTS).unlink()
    with pytest.raises(WeightsError, match="a pickle, which is not opened. If you trust") as caught:
        find(model, tmp_path)
    command = re.search(r'python -c "(.*)"', str(caught.value))
    exec(command[1], {})
    assert Source.of(model, tmp_path).load("cpu").unet is not None


def half(home, name):
    save_file({key: value.half() for key, value in load_file(home / WEIGHTS).items()}, home / name)
    (home / WEIGHTS).unlink()


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_a_folder_with_one_variant_in_half_precision_is_loaded_and_is_another_model(variant, tmp_path):
    model = tiny("ddim_cifar")
    write(model, tmp_path)
    whole = Source.of(model, tmp_path).weights_hash
    values = load_file(tmp_path / "unet" / WEIGHTS)
    half(tmp_path / "unet", f"diffusion_pytorch_model.{variant}.safetensors")
    source = Source.of(model, tmp_path)
    assert source.weights_hash != whole
    unet = source.load("cpu").unet
    assert torch.equal(unet.conv_in.weight, values["conv_in.weight"].half().float())


def test_a_folder_with_other_weights_says_which_and_the_way_out_works(tmp_path):
    model = tiny("ddim_cifar")
    write(model, tmp_path)
    home = tmp_path / "unet"
    half(home, "diffusion_pytorch_model.non_ema.safetensors")
    with pytest.raises(WeightsError, match=rf"There is diffusion_pytorch_model\.non_ema\.safetensors: rename .* to {WEIGHTS}"):
        find(model, tmp_path)
    (home / "diffusion_pytorch_model.non_ema.safetensors").rename(home / WEIGHTS)
    assert find(model, tmp_path) == tmp_path


def shard(home):
    """As save_pretrained does it, in two files."""
    values = load_file(home / WEIGHTS)
    names = [f"diffusion_pytorch_model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    parts = [dict(list(values.items())[k::2]) for k in (0, 1)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, home / name)
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    (home / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (home / WEIGHTS).unlink()
    return names, weight_map


def test_shards_are_loaded_bit_for_bit(tmp_path):
    model = tiny("ddim_cifar")
    write(model, tmp_path)
    whole = Source.of(model, tmp_path).load("cpu")
    shard(tmp_path / "unet")
    sharded = Source.of(model, tmp_path).load("cpu")
    assert sharded.weights_hash != whole.weights_hash
    assert all(torch.equal(a, b) for a, b in zip(whole.unet.parameters(), sharded.unet.parameters(), strict=True))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("lost", "00002-of-00002.safetensors, not in its folder"),
        ("outside", "outside its folder"),
        ("page", "web page"),
        ("shape", "is no index of shards"),
        ("twice", "twice"),
    ],
)
def test_shards_that_are_not_whole_are_refused(case, message, tmp_path):
    model = tiny("ddim_cifar")
    write(model, tmp_path)
    home = tmp_path / "unet"
    names, weight_map = shard(home)
    index = home / f"{WEIGHTS}.index.json"
    if case == "lost":
        (home / names[1]).unlink()
    elif case == "twice":
        save_file(load_file(home / names[0]) | load_file(home / names[1]), home / names[1])
    else:
        outside = json.dumps({"weight_map": weight_map | {"x": "../../x.safetensors"}})
        index.write_text({"outside": outside, "page": "<html>", "shape": "[]"}[case])
    with pytest.raises(WeightsError, match=message):
        Source.of(model, tmp_path).load("cpu")


@pytest.mark.parametrize("file", [WEIGHTS, CONFIG])
def test_a_pointer_of_git_lfs_in_place_of_a_file_is_named(file, tmp_path):
    model = tiny("ddim_cifar")
    write(model, tmp_path)
    (tmp_path / "unet" / file).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(WeightsError, match=r"Git LFS pointer.*git lfs pull"):
        find(model, tmp_path)


@pytest.mark.parametrize("given", [torch.bfloat16, "bfloat16", "torch.bfloat16"])
def test_a_dtype_of_torch_is_its_name(given):
    source = Source.of("ddim_cifar_small", random_weights=True, dtype=given)
    assert source == Source.of("ddim_cifar_small", random_weights=True, dtype="bfloat16")
    assert source.identity["dtype"] == "bfloat16"


def test_a_repository_without_safetensors_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("iec.models.weights.hub_folder", lambda *_: tmp_path)
    with pytest.raises(WeightsError, match="The repository has none: where it has pickles alone, they are not opened"):
        find(card("ddim_lsun_church"), "hub")


def test_a_folder_may_be_called_like_a_file(tmp_path):
    facts = tiny("ddim_cifar")
    write(facts, tmp_path / "model.ckpt")
    assert find(facts, tmp_path / "model.ckpt") == tmp_path / "model.ckpt"


def test_a_model_of_one_component_may_lie_in_the_folder_itself(tmp_path):
    facts = tiny("ddim_cifar")
    write(facts, tmp_path)
    model = Source.of(facts, tmp_path / "unet").load("cpu")
    assert model.weights_hash == Source.of(facts, tmp_path).weights_hash


@pytest.mark.parametrize(
    ("change", "message"), [("drop", "no conv_in.bias"), ("add", "unknown extra"), ("shape", r"conv_in.bias \[7\], not \[64\]")]
)
def test_every_tensor_has_its_place(tmp_path, change, message):
    facts = tiny("ddim_cifar")
    write(facts, tmp_path)
    file = tmp_path / "unet" / WEIGHTS
    state = load_file(file)
    if change == "drop":
        del state["conv_in.bias"]
    else:
        state["extra" if change == "add" else "conv_in.bias"] = torch.zeros(7)
    save_file(state, file)
    with pytest.raises(WeightsError, match=message):
        Source.of(facts, tmp_path).load("cpu")


def test_a_latent_model_without_its_scaling_factor_is_refused(tmp_path):
    facts = tiny("ldm_lsun_church")
    write(facts, tmp_path)
    config = json.loads((tmp_path / "vae" / CONFIG).read_text())
    (tmp_path / "vae" / CONFIG).write_text(json.dumps({**config, "scaling_factor": None}))
    with pytest.raises(ConfigError, match="scaling_factor.*iec convert"):
        Source.of(facts, tmp_path).load("cpu")


def test_loading_holds_one_tensor_beside_the_weights(tmp_path, monkeypatch):
    """Tensors are read one by one: of those handed out before, only the last may still be alive."""
    layers = torch.nn.ModuleList(torch.nn.Linear(10, 10, device="meta") for _ in range(20))
    shapes = {name: value.shape for name, value in layers.state_dict().items()}
    save_file({name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}, tmp_path / WEIGHTS)
    handed, most = [], 0

    class Watched:
        def __init__(self, file):
            self.file = file

        def get_tensor(self, name):
            nonlocal most
            most = max(most, sum(reference() is not None for reference in handed))
            tensor = self.file.get_tensor(name)
            handed.append(weakref.ref(tensor))
            return tensor

        def __getattr__(self, name):
            return getattr(self.file, name)

    @contextmanager
    def watched(*args, **kwargs):
        with safe_open(*args, **kwargs) as file:
            yield Watched(file)

    monkeypatch.setattr("iec.models.weights.safe_open", watched)
    fill(layers, [tmp_path / WEIGHTS], torch.float32, torch.device("cpu"))
    assert len(handed) == 40 and most <= 1
    assert all(value.dtype == torch.float32 for value in layers.parameters())


def test_settings_that_a_model_does_not_have_are_refused():
    for options, message in [
        ({"guidance": 2.0}, "unconditional"),
        ({"prompts": "p.txt"}, "takes no text"),
        ({"dtype": "int8"}, "float32, float16, bfloat16"),
        ({"dtype": torch.float64}, "model.dtype=float64; choose float32"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Source.of("ddim_cifar_small", **options)
    with pytest.raises(ConfigError, match=r"outside \[1, 100\]"):
        Source.of(tiny("ldm_imagenet"), random_weights=True, guidance=0.5)


def test_converted_models_are_kept_where_the_environment_says(home):
    assert models_folder() == home
    facts = tiny("ddim_cifar")
    write(facts, home / "ddim_cifar")
    assert find(facts) == home / "ddim_cifar"
