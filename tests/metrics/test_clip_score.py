import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from iec.errors import MetricError, WeightsError
from iec.metrics import clip_score as module
from iec.metrics.clip_score import CLIPScorer, clip_score

CAPTIONS = ["a cat", "a dog and a cat", "the sky " * 60, "", "a red car"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random CLIP of 2 + 2 small layers with a byte tokenizer without merges."""
    folder = tmp_path_factory.mktemp("clip")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    letters = [chr(c) for c in range(33, 127)]
    vocab = {token: k for k, token in enumerate([*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"])}
    end = len(vocab) - 1
    text = {**small, "vocab_size": len(vocab), "max_position_embeddings": 20, "eos_token_id": end, "bos_token_id": end - 1}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config={**small, "image_size": 16, "patch_size": 4}, projection_dim=24)
    CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(folder):
    return CLIPScorer(folder)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def test_equals_a_direct_computation(folder, scorer, images):
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    mean, deviation = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    expected = []
    for image, caption in zip(images, CAPTIONS, strict=True):
        small = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC)) / 255
        x = torch.tensor((small - mean) / deviation, dtype=torch.float32).permute(2, 0, 1)[None]
        tokens = tokenizer(caption, truncation=True, max_length=20, return_tensors="pt")  # no padding: it must not matter
        with torch.no_grad():
            output = model(pixel_values=x, **tokens)
        expected.append(100 * F.cosine_similarity(output.image_embeds, output.text_embeds).item())
    got = scorer.per_image(images, CAPTIONS)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert min(expected) < 0 < max(expected)  # not clamped
    score = clip_score(images, CAPTIONS, scorer)
    assert score.value == pytest.approx(np.mean(expected), abs=1e-4) and score.low < score.value < score.high
    assert [clip_score(images, CAPTIONS, scorer, resamples=n).interval for n in (10, 0)] == ["bootstrap", "none"]
    assert (score.n, score.higher_is_better, score.label) == (5, True, f"CLIP score ({folder.name})")


def test_blocks_do_not_matter_and_pairs_do(scorer, images, monkeypatch):
    whole = scorer.per_image(images, CAPTIONS)
    np.testing.assert_array_equal(whole, scorer.per_image(iter([images[:1], images[1:4], images[4:]]), CAPTIONS))
    assert np.abs(whole - scorer.per_image(images, CAPTIONS[::-1])).max() > 1
    monkeypatch.setattr(module, "BATCH", 2)
    np.testing.assert_allclose(whole, scorer.per_image(images, CAPTIONS), atol=1e-4)


@pytest.mark.parametrize("captions", [CAPTIONS[:4], [*CAPTIONS, "one more"], []])
def test_every_image_needs_its_caption(scorer, images, captions):
    with pytest.raises(MetricError, match=f"5 images and {len(captions)} captions"):
        scorer.per_image(images, captions)


def test_the_identity_covers_the_weights(folder, scorer, tmp_path):
    other = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        other.logit_scale += 1
    CLIPTokenizer.from_pretrained(folder).save_pretrained(tmp_path / folder.name)
    other.save_pretrained(tmp_path / folder.name)
    assert CLIPScorer(tmp_path / folder.name).hash != scorer.hash == CLIPScorer(folder).hash


def test_missing_and_damaged_models_name_the_command(folder, tmp_path):
    command = r"hf download openai/clip-vit-large-patch14 config.json model.safetensors"
    with pytest.raises(WeightsError, match=r"(?s)no folder here.*hf download openai/clip-vit-large-patch14 .*metrics.clip=DIR"):
        CLIPScorer()
    with pytest.raises(WeightsError, match="holds no model.safetensors.*" + command):
        CLIPScorer(tmp_path)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(WeightsError, match="cannot be read as a CLIP model.*" + command):
        CLIPScorer(tmp_path)
    incomplete = CLIPModel.from_pretrained(folder).text_model
    torch_tensors = {f"text_model.{name}": value.contiguous() for name, value in incomplete.state_dict().items()}
    from safetensors.torch import save_file

    save_file(torch_tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="does not fit its CLIP architecture.*" + command):
        CLIPScorer(tmp_path)
