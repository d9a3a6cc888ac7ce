import json
from collections import Counter
from itertools import pairwise

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from iec.errors import ConfigError, DatasetError, WeightsError
from iec.models.conditioning import ClassLabels, Prompts, label
from iec.models.prompts import OWN, PromptList, prompts_of
from iec.models.source import Source
from iec.models.text import TextEncoder, load_tokenizer, save_tokenizer
from tests.models.tiny import stable_diffusion, tiny

CPU = torch.device("cpu")
TEXTS = [
    "a photo of a cat", "Hello,   World!  It's we're I'll don't", "naïve café Ünïcödé 東京 🎉🎉", "1234567 3.14 $5 50%", "",
    "  leading and trailing ", "a" * 300, "under_score-hyphen (paren) [x]", "new\nline\ttab", "ALL CAPS and MiXeD",
    *prompts_of().texts,
]  # fmt: skip


def test_labels_are_balanced_in_every_block_and_spread_in_every_few():
    labels = [label(n) for n in range(50_000)]
    assert set(Counter(labels).values()) == {50} and set(labels) == set(range(1000))
    for start in range(0, 50_000, 5000):
        assert set(Counter(labels[start : start + 5000]).values()) == {5}
    for count, gap in [(8, 150), (32, 60)]:  # 1000 / count at best; classes in order leave one gap of 1001 - count
        few = sorted(labels[777 : 777 + count])
        assert max(b - a for a, b in pairwise([*few, few[0] + 1000])) < gap


def test_rows_of_labels_are_the_table_with_the_unconditional_class_first():
    table = nn.Embedding(1001, 6)
    rows = ClassLabels(table).branches((3, 0), CPU, torch.float32)
    assert rows.shape == (2, 2, 1, 6)
    assert torch.equal(rows[:, 0, 0], table.weight[1000].expand(2, 6))
    assert torch.equal(rows[:, 1, 0], table.weight[[label(3), 0]])


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    config = CLIPTextConfig(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=2)
    return TextEncoder(CLIPTextModel(config).eval(), load_tokenizer())


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_of_the_original_tokenizer(encoder, text):
    original = [49406, *SimpleTokenizer().encode(text), 49407]
    expected = [*original[:76], 49407] if len(original) > 77 else original + [49407] * (77 - len(original))
    assert encoder.tokens([text])[0].tolist() == expected


def test_a_written_tokenizer_is_read_by_us_and_by_transformers(tmp_path):
    save_tokenizer(tmp_path)
    own = load_tokenizer()
    for again in (load_tokenizer(tmp_path), CLIPTokenizer.from_pretrained(tmp_path)):
        assert all(again(text)["input_ids"] == own(text)["input_ids"] for text in TEXTS)
        assert again.model_max_length == 77 and again.pad_token_id == 49407
    lines = (tmp_path / "merges.txt").read_text().splitlines()
    (tmp_path / "merges.txt").write_text("\n".join(lines[:-1]))
    with pytest.raises(WeightsError, match="not CLIP's tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(WeightsError, match=r"no merges\.txt"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("text", ["It’s “quoted”", "ﬁsh &amp; chips", "Ｆｕｌｌ width"])
def test_text_is_not_repaired_as_the_original_tokenizer_does(encoder, text):
    """The one difference: without its ftfy and HTML step the original gives our tokens."""
    original = SimpleTokenizer()
    repaired = original.encode(text)
    original.clean_fn = lambda text: " ".join(text.split()).lower()
    ids = encoder.tokenizer(text)["input_ids"][1:-1]
    assert ids == original.encode(text) and ids != repaired


def test_embeddings_equal_those_of_the_pipeline():
    model = Source.of(tiny("sd_coco"), random_weights=True).load("cpu")
    texts, encoder = ["a photo of a cat", "word " * 100, "naïve café 🎉"], model.conditioner.encoder
    conditional, unconditional = stable_diffusion(model).encode_prompt(texts, "cpu", 1, True)
    assert torch.equal(conditional, encoder(texts)) and torch.equal(unconditional, encoder([""]).expand_as(conditional))


def test_embeddings_do_not_depend_on_the_batch_and_cutting_is_logged(encoder, caplog):
    one, many = encoder(TEXTS, batch_size=1), encoder(TEXTS, batch_size=7)
    assert one.shape == (len(TEXTS), 77, 32)
    torch.testing.assert_close(one, many, atol=1e-5, rtol=1e-5)
    caplog.clear()
    encoder(["word " * 100])
    assert "102 tokens is cut to 77" in caplog.text


def test_the_prompt_of_an_image_is_a_function_of_its_number(encoder):
    prompts = PromptList(("a cat", "a dog", "a house"), "test")
    conditioner = Prompts(encoder, prompts)
    rows = conditioner.branches((1, 3, 4), CPU, torch.float32)
    torch.testing.assert_close(rows[:, 1], encoder(["a dog", "a cat", "a dog"]))
    torch.testing.assert_close(rows[:, 0], encoder([""]).expand(3, -1, -1))


def test_the_prompts_of_a_json_file_are_cocos_captions(tmp_path):
    images = [{"id": k, "file_name": f"{k}.jpg"} for k in range(5001, 0, -1)]
    captions = [{"id": 2 * k + j, "image_id": k, "caption": f" {j} of\n{k} "} for k in range(5001, 0, -1) for j in (1, 0)]
    path = tmp_path / "captions_val2014.json"
    path.write_text(json.dumps({"images": images, "annotations": captions}))
    assert prompts_of(path).texts == tuple(f"0 of {k}" for k in range(1, 5001))
    path.write_text("{")
    with pytest.raises(DatasetError, match="annotations_trainval2014"):
        prompts_of(str(path))


def test_prompt_n_of_a_text_file_is_line_n(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n a dog \n\n\n")
    assert prompts_of(path).texts == ("a cat", "a dog") and prompts_of(path).of(3) == "a dog"
    for content, message in [("a cat\n\na dog\n", "line 2 is blank"), ("\n", "it is empty")]:
        path.write_text(content)
        with pytest.raises(ConfigError, match=message):
            prompts_of(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        prompts_of(tmp_path / "nowhere.txt")


@pytest.mark.parametrize(
    ("name", "data", "texts"),
    [
        ("x.txt", b"\xef\xbb\xbfa cat\na dog\n", ("a cat", "a dog")),
        ("x.txt", "a cat\u2028on a mat\r\na\vdog\x85too\rlast\n\r\n \n".encode(), ("a cat\u2028on a mat", "a\vdog\x85too", "last")),
        ("x.json", b'\xef\xbb\xbf["a cat", " a\\ndog "]', ("a cat", "a\ndog")),
        ("X.JSON", b'["a cat"]', ("a cat",)),
    ],
)
def test_prompts_are_the_lines_or_entries_of_a_file(name, data, texts, tmp_path):
    (tmp_path / name).write_bytes(data)
    assert prompts_of(tmp_path / name).texts == texts


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.txt", "a cat".encode("utf-16"), "it is UTF-16"),
        ("x.txt", b"a cat\n\r\na dog", "line 2 is blank"),
        ("x.txt", "a cat\n\u2028\na dog".encode(), "line 2 is blank"),
        ("x.txt", b"", "it is empty"),
        ("x.json", b"[]", "it is empty"),
        ("x.json", b'["a cat", ""]', "entry 2 is blank"),
        ("x.json", b'["a cat", {"caption": "a dog"}]', "entry 2 of its list is no text"),
        ("x.json", b'{"prompts": ["a cat"]}', 'no list of texts, and no annotations of COCO: it is no object with "images"'),
        ("x.json", b'{"images": [1], "annotations": []}', "its entries are not COCO's"),
        ("x.json", b'"a cat"', "no list of texts"),
        ("x.json", b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
    ],
)
def test_other_prompts_are_refused_in_words(name, data, message, tmp_path):
    """Without the repr of a Python error."""
    (tmp_path / name).write_bytes(data)
    with pytest.raises((ConfigError, DatasetError), match=message) as caught:
        prompts_of(tmp_path / name)
    assert "Prompt n is line n of a text file (UTF-8), entry n of a JSON list" in str(caught.value)
    assert "Error(" not in str(caught.value)


def test_our_own_prompts_fit_a_screen():
    own = prompts_of()
    assert own.texts == tuple(OWN.read_text().splitlines()) and 20 <= len(set(own.texts)) <= 30
