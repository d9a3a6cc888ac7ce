"""Both formats of torch.save against torch.load; damaged files; memory."""

import io
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from iec.errors import WeightsError
from iec.models.checkpoints.reader import MAGIC, PROTOCOL, open_checkpoint
from iec.models.checkpoints.writer import save_tensors

FORMATS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


class Callback:
    """Something of a training framework, with attributes and tensors of its own."""

    def __init__(self):
        self.best = torch.ones(3)


def save(value, path, legacy):
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def varied():
    """Every dtype, views, a transposed, an empty and a 0-d tensor, a parameter, a tensor with gradient."""
    base = torch.randn(6, 4)
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    return OrderedDict(
        {str(kind): (torch.randn(3, 2) * 9).to(kind) for kind in kinds},
        whole=base,
        rows=base[2:4],
        column=base[:, 1],
        transposed=base.T,
        scalar=torch.tensor(0.25),
        empty=torch.empty(0, 3),
        flags=torch.tensor([True, False]),
        parameter=nn.Parameter(torch.randn(2, 2)),
        gradient=torch.randn(2, requires_grad=True),
    )


def assert_same(checkpoint, state):
    assert checkpoint.tensors.keys() == state.keys()
    for name, tensor in state.items():
        read = checkpoint.read(name)
        assert (read.dtype, read.shape, read.requires_grad) == (tensor.dtype, tensor.shape, False), name
        assert torch.equal(read, tensor.detach()), name
        assert read.is_contiguous()


@FORMATS
def test_every_kind_of_tensor_is_read(legacy, tmp_path):
    state = varied()
    assert_same(open_checkpoint(save(state, tmp_path / "x", legacy)), state)


@FORMATS
def test_a_state_dict_of_a_module_with_its_metadata(legacy, tmp_path):
    state = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).state_dict()
    assert hasattr(state, "_metadata")
    assert_same(open_checkpoint(save(state, tmp_path / "x", legacy)), state)


@FORMATS
def test_what_lightning_adds_becomes_stubs(legacy, tmp_path):
    state = {"a": torch.randn(2)}
    whole = {"epoch": 1, "loss": np.float64(3), "callbacks": {Callback: Callback()}, "state_dict": state, "args": [torch.Size([1])]}
    checkpoint = open_checkpoint(save(whole, tmp_path / "x", legacy))
    assert_same(checkpoint, state)
    assert f"{Callback.__module__}.Callback" in checkpoint.stubs


@FORMATS
@pytest.mark.parametrize("value", [[torch.ones(2)], torch.ones(2), {}, {"a": {"b": torch.ones(2)}}, {1: torch.ones(2)}, {"a": 3}])
def test_what_is_no_state_dict_is_refused(value, legacy, tmp_path):
    with pytest.raises(WeightsError, match="no state dict|no tensor"):
        open_checkpoint(save(value, tmp_path / "x", legacy))


@FORMATS
@pytest.mark.parametrize("module", [torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))])
def test_modules_beside_the_state_dict_become_stubs(module, legacy, tmp_path):
    """The legacy format stores their source code with them."""
    state = {"a": torch.randn(5)}
    path = tmp_path / "x.ckpt"
    torch.save({"hyper_parameters": {"loss": module}, "state_dict": state}, path, _use_new_zipfile_serialization=not legacy)
    checkpoint = open_checkpoint(path)
    assert torch.equal(checkpoint.read("a"), state["a"]) and checkpoint.tensors.keys() == {"a"}
    assert f"torch.nn.modules.{'linear.Linear' if isinstance(module, torch.nn.Linear) else 'conv.Conv2d'}" in checkpoint.stubs


@FORMATS
def test_a_whole_module_is_no_state_dict(legacy, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match="holds no state dict"):
        open_checkpoint(tmp_path / "x.pt")


@FORMATS
def test_a_file_cut_anywhere_is_refused(legacy, tmp_path):
    data = save({"a": torch.randn(200), "b": torch.randn(30)}, tmp_path / "x", legacy).read_bytes()
    for size in (*range(0, 400, 7), *range(400, len(data), 97), len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:size])
        with pytest.raises(WeightsError, match=rf"cut \({size} bytes\)"):
            open_checkpoint(tmp_path / "cut")


@FORMATS
def test_a_file_with_wrong_bytes_is_refused_or_has_tensors(legacy, tmp_path):
    """Whatever is changed: no other error, no tensor outside the file."""
    state = {"a": torch.randn(20), "b": torch.randn(3, 4)}
    data = save(state, tmp_path / "x", legacy).read_bytes()
    random = np.random.default_rng(0)
    for _ in range(400):
        changed = bytearray(data)
        for at in random.integers(len(data), size=random.integers(1, 4)):
            changed[at] = random.integers(256)
        (tmp_path / "y").write_bytes(changed)
        try:
            checkpoint = open_checkpoint(tmp_path / "y")
        except WeightsError:
            continue
        for name, tensor in checkpoint.tensors.items():
            assert checkpoint.read(name).shape == tensor.shape


def test_a_changed_bit_of_a_zip_is_noticed(tmp_path):
    path = save({"a": torch.zeros(5000)}, tmp_path / "x", False)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"checksum of x/data/0"):
        open_checkpoint(path)


def test_bytes_behind_a_legacy_file_are_refused(tmp_path):
    path = save({"a": torch.zeros(5)}, tmp_path / "x", True)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(WeightsError, match="it should have"):
        open_checkpoint(path)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04nothing", pickle.dumps({"a": 1}), b"\x80" * 99])
def test_other_files_are_refused(data, tmp_path):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(WeightsError, match=rf"x \({len(data)} bytes\) is truncated, damaged or no checkpoint"):
        open_checkpoint(tmp_path / "x")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="cannot be opened"):
        open_checkpoint(tmp_path / "x")


def rezip(path, target, change=lambda name, data: data, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            if (data := change(name, old.read(name))) is not None:
                new.writestr(name, data)
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, data: None if name.endswith("data/0") else data, "no record data/0"),
        (lambda name, data: data[:-4] if name.endswith("data/0") else data, "has 16 bytes, not 20"),
        (lambda name, data: None if name.endswith("data.pkl") else data, "with 0 data.pkl"),
        (lambda name, data: b"big" if name.endswith("byteorder") else data, "big-endian"),
    ],
)
def test_zips_that_contradict_themselves_are_refused(change, message, tmp_path):
    path = save({"a": torch.randn(5)}, tmp_path / "x", False)
    with pytest.raises(WeightsError, match=message):
        open_checkpoint(rezip(path, tmp_path / "y", change))
    assert_same(open_checkpoint(rezip(path, tmp_path / "z")), torch.load(path))


def test_a_compressed_zip_is_refused(tmp_path):
    path = save({"a": torch.zeros(5000)}, tmp_path / "x", False)
    with pytest.raises(WeightsError, match="is compressed"):
        open_checkpoint(rezip(path, tmp_path / "y", compression=zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ((1, PROTOCOL, {"little_endian": True}), "magic number"),
        ((MAGIC, 1002, {"little_endian": True}), "protocol version"),
        ((MAGIC, PROTOCOL, {"little_endian": False}), "not little-endian"),
        ((MAGIC, PROTOCOL, {"little_endian": True}, {"a": 1}, ["0"]), "not that of its tensors"),
    ],
)
def test_legacy_heads_that_are_wrong_are_refused(head, message, tmp_path):
    (tmp_path / "x").write_bytes(b"".join(pickle.dumps(value, 2) for value in head) + struct.pack("<q", 0))
    with pytest.raises(WeightsError, match=message):
        open_checkpoint(tmp_path / "x")


@FORMATS
def test_one_tensor_at_a_time_is_in_memory(legacy, tmp_path):
    state = {f"t{n}": torch.full((2**18,), float(n)) for n in range(40)}
    path = save(state, tmp_path / "x", legacy)
    tracemalloc.start()
    checkpoint = open_checkpoint(path)
    kinds = {name: (tensor.dtype, torch.Size(tensor.shape)) for name, tensor in checkpoint.tensors.items()}
    save_tensors(tmp_path / "y", kinds, checkpoint.read, {"source": "x"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 2**20  # bytes; a tensor has 2^20, all have 40 x 2^20
    with safe_open(tmp_path / "y", "pt") as file:
        assert file.metadata() == {"source": "x"}
        assert all(torch.equal(file.get_tensor(name), state[name]) for name in state)


def test_written_tensors_of_mixed_widths_are_read_back(tmp_path):
    state = {name: value.detach() for name, value in varied().items() if value.is_floating_point()}
    kinds = {name: (value.dtype, value.shape) for name, value in state.items()}
    save_tensors(tmp_path / "y", kinds, state.__getitem__, {})
    with safe_open(tmp_path / "y", "pt") as file:
        assert set(file.keys()) == state.keys()
        for name, value in state.items():
            assert torch.equal(file.get_tensor(name), value)
            assert file.get_tensor(name).dtype == value.dtype


def test_a_pickle_written_by_python_2_is_read(tmp_path):
    """Protocol 2, as torch writes it, with byte strings as names."""
    buffer = io.BytesIO()
    torch.save({"weight": torch.ones(2)}, buffer, pickle_protocol=2, _use_new_zipfile_serialization=False)
    data = buffer.getvalue().replace(b"X\x06\x00\x00\x00weight", b"U\x06weight")
    assert data != buffer.getvalue()
    (tmp_path / "x").write_bytes(data)
    assert_same(open_checkpoint(tmp_path / "x"), {"weight": torch.ones(2)})
