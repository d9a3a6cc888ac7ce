"""torch-fidelity's DINOv2 and CLIP at a small size, with random weights in the layout of the real files."""

import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from iec.errors import ConfigError, WeightsError
from iec.metrics.extractors.features import extract
from iec.metrics.extractors.local_weights import VARIABLE, WeightsFile
from iec.metrics.extractors.registered import CLIP_BASE, CLIP_LARGE, DINOV2_LARGE, DINOV2_SMALL, Registered, positions
from iec.metrics.images.sources import ArraySource
from iec.metrics.protocol import PROTOCOLS, Protocol, protocol
from iec.metrics.references.prepare import make_reference
from iec.metrics.references.reference import load_reference
from iec.metrics.scores import available
from iec.runs.runner import run_cell

WIDTH, HEADS = 16, 2
FILE = WeightsFile(("weights.pth",), "https://example.org/weights.pth")
DINOV2 = replace(DINOV2_SMALL, weights=FILE, size={"embed_dim": WIDTH, "depth": 1, "num_heads": HEADS})
CLIP = replace(CLIP_BASE, weights=FILE)
draw = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of weights, and a web that fails the test."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "weights"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for name in ("load", "load_state_dict_from_url", "download_url_to_file"):
        monkeypatch.setattr(torch.hub, name, lambda *_, **__: pytest.fail("tried to download"))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def dinov2_tensors():
    """As in dinov2_vits14_pretrain.pth, of one block of another width."""
    d = WIDTH
    shapes = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, 1 + 37 * 37, d),
        "mask_token": (1, d),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    shapes |= {"patch_embed.proj.weight": (d, 3, 14, 14), "patch_embed.proj.bias": (d,)}
    block = {"norm1.weight": (d,), "norm1.bias": (d,), "attn.qkv.weight": (3 * d, d), "attn.qkv.bias": (3 * d,)}
    block |= {"attn.proj.weight": (d, d), "attn.proj.bias": (d,), "ls1.gamma": (d,), "norm2.weight": (d,), "norm2.bias": (d,)}
    block |= {"mlp.fc1.weight": (4 * d, d), "mlp.fc1.bias": (4 * d,), "mlp.fc2.weight": (d, 4 * d), "mlp.fc2.bias": (d,)}
    block["ls2.gamma"] = (d,)
    shapes |= {f"blocks.0.{name}": shape for name, shape in block.items()}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}


def dinov2(x, w):
    """The class token of one image [3, 224, 224], from the definition."""
    x = F.conv2d(x[None], w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=14).flatten(2).transpose(1, 2)
    x = torch.cat([w["cls_token"], x], 1)[0] + positions(w["pos_embed"], 16)[0]
    w = w | {name.removeprefix("blocks.0."): value for name, value in w.items() if name.startswith("blocks.0.")}

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    q, k, v = (
        (norm(x, "norm1") @ w["attn.qkv.weight"].T + w["attn.qkv.bias"]).view(-1, 3, HEADS, WIDTH // HEADS).permute(1, 2, 0, 3)
    )
    attended = (q @ k.transpose(1, 2) / (WIDTH // HEADS) ** 0.5).softmax(2) @ v
    x = x + w["ls1.gamma"] * (attended.transpose(0, 1).flatten(1) @ w["attn.proj.weight"].T + w["attn.proj.bias"])
    hidden = F.gelu(norm(x, "norm2") @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"])
    x = x + w["ls2.gamma"] * (hidden @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"])
    return norm(x[0], "norm")


class Archive(nn.Module):
    """Stands for OpenAI's model: a visual tower for images of 28 x 28, and what tells the width of its embeddings."""

    def __init__(self):
        super().__init__()
        from torch_fidelity.feature_extractor_clip import VisionTransformer

        self.visual = VisionTransformer(28, 14, 64, 1, 1, 8)
        self.text_projection = nn.Parameter(torch.zeros(4, 8))

    def forward(self, x):
        return self.visual(x) + 0 * self.text_projection[0]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """(its network, whose weights are those of float16 as OpenAI's are, its file)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Archive().eval()
    network.load_state_dict({name: value.half().float() for name, value in network.state_dict().items()})
    path = tmp_path_factory.mktemp("clip") / "weights.pth"
    with warnings.catch_warnings():  # TorchScript is of the past, as OpenAI's file is
        warnings.simplefilter("ignore")
        torch.jit.trace(network, torch.zeros(1, 3, 28, 28)).save(path)
    return network, path


@pytest.fixture
def clip(folder, archive):
    (folder / "weights.pth").write_bytes(archive[1].read_bytes())
    return Registered(CLIP)


def test_dinov2_is_its_definition_with_every_tensor_of_its_file(folder):
    torch.save(dinov2_tensors(), folder / "weights.pth")
    extractor, images = Registered(DINOV2), draw.integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    state = torch.get_rng_state()
    pooled, spatial, logits = extractor(images)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = torch.tensor((images / 255 - mean) / deviation, dtype=torch.float32).permute(0, 3, 1, 2)
    expected = torch.stack([dinov2(image, dinov2_tensors()) for image in x])
    np.testing.assert_allclose(pooled, expected, rtol=1e-4, atol=1e-4)
    assert pooled.shape == (2, WIDTH) and spatial.shape == logits.shape == (2, 0) and pooled.dtype == np.float32
    np.testing.assert_array_equal(extractor(images[1:])[0], pooled[1:])  # an image depends on no other
    assert torch.equal(state, torch.get_rng_state())
    assert extractor.name == "dinov2_vit_s_14" and extractor.identity["weights_sha256"] == extractor.weights_sha256


def test_position_embeddings_are_interpolated_with_the_offset_of_dinov2s_code():
    """Bicubic with A = -0.75 at (i + 0.5) 37 / 16.1 - 0.5, here of a grid that has one value a row."""
    grid = torch.randn(37, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stored = torch.cat([torch.full((1,), 9.0, dtype=torch.float64), grid.repeat_interleave(37)])[None, :, None]
    found = positions(stored, 16)
    assert found[0, 0, 0] == 9 and found.shape == (1, 257, 1) and positions(stored, 37) is stored

    def cubic(t):
        near, far = (1.25 * t - 2.25) * t * t + 1, ((-0.75 * t + 3.75) * t - 6) * t + 3
        return np.where(t <= 1, near, np.where(t < 2, far, 0))

    at = (np.arange(16) + 0.5) * 37 / 16.1 - 0.5
    places = np.floor(at)[:, None] + np.arange(-1, 3)
    expected = (cubic(np.abs(at[:, None] - places)) * grid.numpy()[places.clip(0, 36).astype(int)]).sum(1)
    np.testing.assert_allclose(found[0, 1:, 0].view(16, 16), np.tile(expected[:, None], 16), rtol=1e-6, atol=1e-7)


def test_clip_is_torch_fidelitys_with_the_tower_of_the_archive(clip, archive):
    images = draw.integers(0, 256, (3, 28, 28, 3), dtype=np.uint8)
    pooled, spatial, _ = clip(images)
    mean, deviation = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    x = torch.tensor((images / 255 - mean) / deviation, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        np.testing.assert_allclose(pooled, archive[0].visual(x), rtol=1e-4, atol=1e-5)
    assert pooled.shape == (3, 8) and spatial.shape == (3, 0)


def test_cmmd_and_fid_of_a_reference_that_has_pooled_features_alone(clip, tmp_path):
    real, images = (draw.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8) for count in (40, 30))
    path = tmp_path / "real.safetensors"
    make_reference(ArraySource(real, "noise"), partial(Registered, CLIP), path, "made", torch.device("cpu"), workers=0)
    reference = load_reference(path, clip, 8)
    assert reference.spatial is None and reference.kid.shape == (40, 8)
    rules = replace(protocol("clip_vit_b_32"), make=lambda device: clip)
    assert available((*rules.default, "sfid", "is"), reference) == ("cmmd", "fid", "is")
    scores = rules.score(extract(images, clip), reference, bootstrap=20)
    assert list(scores) == ["cmmd", "fid"] and scores["cmmd"].label == "CMMD (CLIP ViT-B/32)"
    assert all(score.low < score.value < score.high for score in scores.values())
    assert scores["cmmd"].interval == "bootstrap" and scores["fid"].interval == "linear"


@pytest.mark.parametrize("card", [DINOV2, CLIP])
def test_a_file_of_something_else_is_refused(folder, card):
    def refused(match):
        with pytest.raises(WeightsError, match=match):
            Registered(card)(np.zeros((2, 8, 8, 3), np.uint8))

    tensors = dinov2_tensors()
    for content in ({**tensors, "blocks.1.ls1.gamma": torch.zeros(1)}, {n: v for n, v in tensors.items() if n != "norm.bias"}):
        torch.save(content, folder / "weights.pth")
        refused(f"does not hold the tensors of {card.label}: (.|\n)*Delete it and get it again from https://example.org")
    (folder / "weights.pth").write_bytes(b"nothing")
    refused(f"does not hold the tensors of {card.label}")


def test_a_cell_that_is_to_be_scored_by_it_fails_before_an_image_is_made(folder, make_cell, tmp_path):
    for name, scores in {"dinov2_vit_l_14": "fid", "clip_vit_l_14_336px": "cmmd"}.items():
        cell = make_cell(f"metrics={name}", f"metrics.scores=[{scores}]", f"paths.output={tmp_path / 'out'}", "num_images=2")
        with pytest.raises(WeightsError, match="It is not fetched without being asked for"):
            run_cell(cell)
        assert not list(cell.folder.glob("shards/*"))
    with pytest.raises(ConfigError, match="dinov2_vit_l_14 has no score 'cmmd'; choose from fid, kid"):
        make_cell("metrics=dinov2_vit_l_14", "metrics.scores=[cmmd]")


@pytest.mark.parametrize("card", [DINOV2_SMALL, DINOV2_LARGE, CLIP_BASE, CLIP_LARGE])
def test_a_protocol_names_the_file_that_it_lacks_before_anything_is_done(folder, card):
    name = card.name.replace("-", "_")
    rules = protocol(name)
    assert isinstance(rules, Protocol) and name in PROTOCOLS and rules.label == card.label
    with pytest.raises(
        WeightsError, match=f"{card.weights.names[0]} is neither in(.|\n)*curl -L --create-dirs -o .* {card.weights.url}"
    ):
        rules.extractor("cpu")
    if card.layer == "clip":  # OpenAI's file by its hash, as torch-fidelity knows it
        from torch_fidelity.feature_extractor_clip import MODEL_METADATA, MODEL_URLS

        assert card.weights.digest == MODEL_METADATA[card.name]["hash"] and card.weights.url == MODEL_URLS[card.name]
        (folder / card.weights.names[1]).write_bytes(b"an archive that nobody should open")
        with pytest.raises(WeightsError, match="is damaged or another file"):
            rules.extractor("cpu")
