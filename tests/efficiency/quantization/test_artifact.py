import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from iec.efficiency.quantization import PTQConfig, QuantizedNetwork, load_calibration, quantize_unet, save_calibration
from iec.errors import ArtifactError, StoreError
from iec.sampling.network import Step

FINGERPRINT = {"model": "abc", "timetable": ((900, 500), (500, 100), (100, -1))}


@pytest.fixture
def stored(tmp_path, make_quantized):
    quantized = make_quantized(weight_bits=4)
    path = tmp_path / "folder" / "ptq.safetensors"
    save_calibration(path, quantized, FINGERPRINT)
    return path, quantized


def fresh(unet, num_steps=3, **settings):
    return quantize_unet(unet, PTQConfig(**{"weight_bits": 4, "calibration_images": 4, **settings}), num_steps)


def rewrite(path, change):
    """Apply change(tensors) to the file, keeping its header."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=header)


def test_round_trip_is_exact(stored, unet, images):
    path, quantized = stored
    loaded = fresh(unet)
    load_calibration(path, loaded, FINGERPRINT)
    for i in range(3):
        step = Step(i, FINGERPRINT["timetable"][i][0])
        assert torch.equal(QuantizedNetwork(loaded)(images[i], step).eps, QuantizedNetwork(quantized)(images[i], step).eps)


def test_weights_are_quantized_with_the_stored_scales(stored, unet):
    path, quantized = stored
    layer = quantized.layers()["conv_out"]
    layer.set_weight_scales(layer.weight_delta * 1.5, layer.weight_zero_point + 1)
    save_calibration(path, quantized, FINGERPRINT)
    loaded = fresh(unet)
    found = loaded.layers()["conv_out"].quantized_weight
    load_calibration(path, loaded, FINGERPRINT)
    assert torch.equal(loaded.layers()["conv_out"].quantized_weight, layer.quantized_weight)
    assert not torch.equal(found, layer.quantized_weight)


def test_the_header_says_what_it_was_made_from(stored):
    path, _ = stored
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["iec"])
    assert header["kind"] == "ptq" and header["format"] == 2 and header["model"] == "abc"
    assert header["timetable"] == [[900, 500], [500, 100], [100, -1]]
    assert header["config"]["weight_bits"] == 4 and header["made_with"]["torch"] == torch.__version__


def test_the_same_calibration_is_the_same_file(stored, make_quantized, tmp_path):
    save_calibration(tmp_path / "again", make_quantized(weight_bits=4), FINGERPRINT)
    assert (tmp_path / "again").read_bytes() == stored[0].read_bytes()


def test_partly_calibrated_rows_stay_partly_calibrated(stored, unet, images):
    path, quantized = stored
    quantized.quantizers()["conv_out.input"].clear_step(1)
    save_calibration(path, quantized, FINGERPRINT)
    loaded = fresh(unet)
    load_calibration(path, loaded, FINGERPRINT)
    with pytest.raises(ArtifactError, match=r"conv_out\.input has no calibration for sampling step 1"):
        QuantizedNetwork(loaded)(images[1], Step(1, 500))


@pytest.mark.parametrize(
    ("fingerprint", "settings", "message"),
    [
        ({**FINGERPRINT, "model": "xyz"}, {}, "model: stored 'abc', expected 'xyz'"),
        ({**FINGERPRINT, "timetable": [[900, 400], [400, 100], [100, -1]]}, {}, r"timetable\[0\]\[1\]: stored 500, expected 400"),
        ({**FINGERPRINT, "timetable": [[900, -1]]}, {}, "timetable: stored 3 entries, expected 1 entries"),
        ({"timetable": FINGERPRINT["timetable"]}, {}, "model: stored 'abc', expected 'nothing'"),
        ({**FINGERPRINT, "seed": 5}, {}, "seed: stored 'nothing', expected 5"),
        (FINGERPRINT, {"weight_bits": 8}, "config.weight_bits: stored 4, expected 8"),
        (
            FINGERPRINT,
            {"split_skips": False, "softmax_bits": 16},
            "softmax_bits: stored 8, .*split_skips: stored True",
        ),
        (FINGERPRINT, {"num_steps": 2}, "num_steps: stored 3, expected 2"),
    ],
)
def test_another_origin_is_refused(stored, unet, fingerprint, settings, message):
    path, _ = stored
    quantized = fresh(unet, **settings)
    with pytest.raises(ArtifactError, match=message) as caught:
        load_calibration(path, quantized, fingerprint)
    assert str(path) in str(caught.value) and "Delete the file, or calibrate again" in str(caught.value)
    assert not any(quantizer.calibrated.any() for quantizer in quantized.quantizers().values())


def test_a_missing_file_is_named(tmp_path, unet):
    with pytest.raises(ArtifactError, match=r"no calibration at .*nowhere\.safetensors.*Calibrate first"):
        load_calibration(tmp_path / "nowhere.safetensors", fresh(unet), FINGERPRINT)


@pytest.mark.parametrize("damage", ["empty", "header cut", "data cut", "text", "no metadata", "metadata not ours"])
def test_damaged_files_are_refused(stored, unet, damage):
    path, _ = stored
    data = path.read_bytes()
    if damage == "no metadata":
        save_file({"a": torch.zeros(1)}, path)
    elif damage == "metadata not ours":
        save_file({"a": torch.zeros(1)}, path, metadata={"iec": "3"})
    else:
        path.write_bytes({"empty": b"", "header cut": data[:100], "data cut": data[:-10], "text": b"hello" * 100}[damage])
    message = "no calibration of this package" if damage == "no metadata" else "is not a complete calibration file"
    with pytest.raises(ArtifactError, match=message) as caught:
        load_calibration(path, fresh(unet), FINGERPRINT)
    assert str(path) in str(caught.value) and "Delete the file" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("conv_out.input.delta"), r"conv_out\.input\.delta is missing from the file"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra is in the file only"),
        (lambda t: t.update({"conv_in.weight_delta": torch.ones(1, 7)}), r"conv_in\.weight_delta is .*\[1, 7\] in the file"),
        (lambda t: t["conv_in.input.delta"].fill_(float("nan")), r"conv_in\.input\.delta holds NaN"),
        (lambda t: t["conv_in.weight_delta"].neg_(), r"conv_in\.weight_delta holds a scale that is not positive"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(stored, unet, change, message):
    path, _ = stored
    rewrite(path, change)
    with pytest.raises(ArtifactError, match=message):
        load_calibration(path, fresh(unet), FINGERPRINT)


def test_a_folder_that_cannot_be_written(tmp_path, make_quantized):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Cannot write"):
        save_calibration(tmp_path / "file" / "ptq.safetensors", make_quantized(), FINGERPRINT)


@pytest.mark.parametrize("technique", ["w8a8", "cachequant_w8a8"])
def test_a_missing_file_is_refused_with_the_cell(make_cell, technique):
    with pytest.raises(ArtifactError, match="no calibration at"):
        make_cell(f"efficiency={technique}", "efficiency.artifact=/nowhere.safetensors")
