"""Hostile pickles: none runs code, changes the reader, or makes it reach outside its file."""

import builtins
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch

from iec.errors import WeightsError
from iec.models.checkpoints import unpickle
from iec.models.checkpoints.reader import MAGIC, PROTOCOL, open_checkpoint

FORMATS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


@pytest.fixture
def marker(tmp_path):
    """A file that each attack tries to make; it must not exist at the end."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


class Call:
    """Unpickles to the result of function(*arguments)."""

    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


def attacks(marker):
    touch = f"open({str(marker)!r}, 'w').close()"
    inner = io.BytesIO()
    torch.save(Call(os.system, f"touch {marker}"), inner)
    return {
        "os.system": Call(os.system, f"touch {marker}"),
        "eval": Call(eval, touch),
        "exec": Call(exec, touch),
        "getattr": Call(getattr, "text", "join"),
        "import": Call(__import__, "os"),
        "open": Call(open, str(marker), "w"),
        "torch.load in a storage": Call(torch.storage._load_from_bytes, inner.getvalue()),
        "torch.load": Call(torch.load, str(marker)),
        "pickle.loads": Call(pickle.loads, pickle.dumps(Call(os.system, f"touch {marker}"))),
        "partial": Call(__import__("functools").partial, os.system, f"touch {marker}"),
        "map": Call(list, Call(map, os.system, [f"touch {marker}"])),
        "type": Call(type, "X", (), {}),
    }


@FORMATS
@pytest.mark.parametrize("name", attacks("x"))
def test_calls_do_not_happen(name, legacy, marker, tmp_path, monkeypatch):
    """Beside the weights the file is read, and what it names is reported; among them it is refused."""
    attack = attacks(marker)[name]
    torch.save({"state_dict": {"a": torch.ones(2)}, "callbacks": attack}, tmp_path / "x", _use_new_zipfile_serialization=not legacy)
    torch.save({"a": attack}, tmp_path / "y", _use_new_zipfile_serialization=not legacy)
    with monkeypatch.context() as context:
        context.setattr(builtins, "__import__", None)  # nothing may be imported either
        checkpoint = open_checkpoint(tmp_path / "x")
        with pytest.raises(WeightsError, match="no tensor"):
            open_checkpoint(tmp_path / "y")
    assert checkpoint.stubs
    assert torch.equal(checkpoint.read("a"), torch.ones(2))


def zipped(path, data, numbers=b"\0" * 8):
    """A file of torch's zip format around a pickle, with one storage "0" of two float32."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/data/0", numbers)
    return path


PRELUDE = {  # pickle code that leaves one object on the stack
    "function": b"ctorch._utils\n_rebuild_tensor_v2\n",
    "parameter": b"ctorch._utils\n_rebuild_parameter\n",
    "dtype": b"ctorch\nFloatStorage\n",
    "dictionary class": b"ccollections\nOrderedDict\n",
    "dictionary": b"ccollections\nOrderedDict\n)R",
    "stub class": b"cos\nsystem\n",
    "stub": b"cos\nsystem\n)R",
    "storage": b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI2\ntQ",
}
STATES = {  # what BUILD would set
    "attributes": b"}S'function'\ncos\nsystem\ns",
    "slots": b"N}S'__call__'\ncos\nsystem\ns\x86",
    "dunder": b"}S'__setstate__'\ncos\nsystem\ns",
    "numel": b"}S'numel'\nI99999999\ns",
}


def snapshot():
    classes = (unpickle.Inert, unpickle.Dictionary, unpickle.StorageType, unpickle.Storage, unpickle.StoredTensor, unpickle.Recipe)
    return [dict(vars(kind)) for kind in classes] + [dict(vars(v)) for v in unpickle.KNOWN.values() if not isinstance(v, type)]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("target", PRELUDE)
def test_build_changes_nothing(target, state, tmp_path):
    before = snapshot()
    data = b"\x80\x02" + PRELUDE[target] + STATES[state] + b"b."
    unpickler = unpickle.TensorUnpickler(io.BytesIO(data))
    value = unpickler.read("it")
    assert snapshot() == before
    if target == "storage":
        assert value == unpickle.Storage(torch.float32, "0", 2)
    if target == "dictionary":
        assert vars(value) == {}


RAW = {
    "global and reduce": b"cos\nsystem\n(S'touch MARKER'\ntR.",
    "inst": b"(S'touch MARKER'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'touch MARKER'\no.",
    "stack global": b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x0bopen('M','w')\x85R.",
    "dotted name": b"\x80\x04\x8c\x0btorch._utils\x8c\x15_rebuild_tensor_v2.__globals__\x93.",
    "new object": b"\x80\x02cos\nsystem\n(S'touch MARKER'\nt\x81.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent name": b"Pos.system\n.",
    "buffer": b"\x80\x05\x97.",
    "huge string": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "deep": b"(" * 100_000 + b"t" * 100_000 + b".",
}


@FORMATS
@pytest.mark.parametrize("name", RAW)
def test_raw_pickle_code_is_refused(name, legacy, marker, tmp_path):
    code = RAW[name].replace(b"MARKER", str(marker).encode())
    if legacy:
        head = [pickle.dumps(value, 2) for value in (MAGIC, PROTOCOL, {"little_endian": True})]
        (tmp_path / "x").write_bytes(b"".join([*head, code, pickle.dumps([], 2)]))
    else:
        zipped(tmp_path / "x", code)
    with pytest.raises(WeightsError):
        open_checkpoint(tmp_path / "x")


def tensor_pickle(numel=2, offset=0, shape=(2,), stride=(1,), identity=None, storage=torch.FloatStorage):
    """{"a": tensor} whose parts may be wrong."""
    placeholder = object()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return (identity or ("storage", storage, "0", "cpu", numel)) if value is placeholder else None

    buffer = io.BytesIO()
    arguments = (placeholder, offset, shape, stride, False, OrderedDict())
    Pickler(buffer, 2).dump({"a": Call(torch._utils._rebuild_tensor_v2, *arguments)})
    return buffer.getvalue()


def test_the_well_formed_one_is_read(tmp_path):
    path = zipped(tmp_path / "x", tensor_pickle(), struct.pack("<ff", 1, 2))
    assert torch.equal(open_checkpoint(path).read("a"), torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"numel": 2**40},
        {"numel": 3},
        {"numel": -1},
        {"shape": (3,)},
        {"shape": (2**62, 4), "stride": (0, 1)},
        {"shape": (1000,), "stride": (0,)},
        {"offset": 1},
        {"offset": -1},
        {"shape": (-2,)},
        {"stride": (-1,)},
        {"stride": (2,)},
        {"stride": (1, 1)},
        {"shape": ("2",)},
        {"shape": [2]},
        {"offset": None},
        {"identity": ("storage", torch.FloatStorage, "../../../etc/passwd", "cpu", 2)},
        {"identity": ("storage", os.system, "0", "cpu", 2)},
        {"identity": ("module", torch.nn.Linear, "x.py", "code")},
        {"identity": ("storage", torch.FloatStorage, "0", "cpu", 2, ("view", 0, 2))},
        {"identity": ("storage", torch.FloatStorage, "0", "cpu", "2")},
        {"storage": torch.DoubleStorage},
    ],
    ids=str,
)
def test_tensors_that_do_not_lie_in_the_file_are_refused(wrong, tmp_path):
    with pytest.raises(WeightsError):
        open_checkpoint(zipped(tmp_path / "x", tensor_pickle(**wrong)))


def test_a_storage_larger_than_a_legacy_file_is_refused(tmp_path):
    path = tmp_path / "x"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    path.write_bytes(data[:-16] + struct.pack("<q", 2**40) + data[-8:])
    with pytest.raises(WeightsError, match=f"has {2**40} numbers, not 2"):
        open_checkpoint(path)


def test_two_storages_of_one_name_are_refused(tmp_path):
    one = tensor_pickle()
    two = one.replace(b"FloatStorage", b"IntStorage")
    unpickler = unpickle.TensorUnpickler(io.BytesIO(one))
    unpickler.read("it")
    other = unpickle.TensorUnpickler(io.BytesIO(two))
    other.storages = unpickler.storages
    with pytest.raises(WeightsError, match="two storages are called 0"):
        other.read("it")
