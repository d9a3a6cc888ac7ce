"""Files that are not what they should be: each is refused by name, and nothing of it reaches an engine."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from iec.efficiency.engine.file import cached_path, read_file
from iec.errors import ArtifactError


@pytest.fixture(autouse=True)
def no_engine(monkeypatch):
    """Reading a file must not run it."""
    monkeypatch.setattr("onnxruntime.InferenceSession", None)


@pytest.fixture
def changed(float_bytes, write):
    """The path of the float file after ``change(model)``."""

    def make(change):
        model = onnx.ModelProto.FromString(float_bytes)
        change(model)
        return write(model.SerializeToString())

    return make


def described(model):
    (entry,) = model.metadata_props
    return entry, json.loads(entry.value)


def describe(**values):
    def change(model):
        entry, found = described(model)
        entry.value = json.dumps({**found, **values})

    return change


def without(key):
    def change(model):
        entry, found = described(model)
        del found[key]
        entry.value = json.dumps(found)

    return change


def test_an_exported_file_is_read(float_bytes, write):
    file = read_file(write(float_bytes))
    assert file.data == float_bytes and file.cached is None and file.description.shape == (3, 8, 8)
    assert file.description.outputs == {"eps": (3, 8, 8)}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_a_truncated_file_is_refused(float_bytes, write, share):
    with pytest.raises(ArtifactError):
        read_file(write(float_bytes[: int(share * len(float_bytes))]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<!doctype html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"\xff" * 100, "truncated or not an ONNX file"),
        (b"", "none that iec export wrote"),
    ],
)
def test_another_kind_of_file_is_refused(write, data, message):
    with pytest.raises(ArtifactError, match=message):
        read_file(write(data))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="Write one with iec export"):
        read_file(tmp_path / "none.onnx")


def custom(model):
    model.graph.node[3].domain = "evil"


def branch(model):
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("If", ["step"], ["y"], then_branch=body, else_branch=body))


def graph_inside(model):
    model.graph.node[0].attribute.append(helper.make_attribute("body", helper.make_graph([], "body", [], [])))


def external(model):
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def short(model):
    model.graph.initializer[0].dims[0] *= 1000


def function(model):
    model.functions.add(name="f", domain="", opset_import=[helper.make_opsetid("", 21)])


def huge(model):
    scales = onnx.numpy_helper.from_array(np.array([1, 1, 1e5, 1e5], np.float32), "scales")
    model.graph.initializer.append(scales)
    model.graph.node.append(helper.make_node("Resize", ["x", "", "scales"], ["large"], name="large", mode="nearest"))


def many_images(model):
    model.graph.node.append(helper.make_node("Concat", ["x"] * 1_500_000, ["large"], name="large", axis=0))


def computed_size(model):
    name = model.graph.initializer[0].name
    for node in (
        helper.make_node("Gather", [name, "step"], ["number"], name="number"),
        helper.make_node("Cast", ["number"], ["whole"], name="whole", to=TensorProto.INT64),
        helper.make_node("Reshape", ["whole", "minus"], ["sizes"], name="sizes"),
        helper.make_node("Reshape", ["x", "sizes"], ["large"], name="large"),
    ):
        model.graph.node.append(node)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), "minus"))


def loose(model):
    model.graph.node[0].input[0] = "nothing"


def extra_input(model):
    model.graph.input.append(helper.make_tensor_value_info("secret", TensorProto.FLOAT, [1]))


def wider(model):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (custom, r"is a evil\."),
        (branch, r"ai\.onnx\.If"),
        (graph_inside, "'body' of .* is no number"),
        (external, "lies in another file"),
        (short, "does not hold what its shape says"),
        (function, "has functions"),
        (huge, "makes a value of 1920000000000 numbers"),
        (many_images, "makes a value of 288000000 numbers"),
        (computed_size, "of a size that cannot be told|no sound graph"),
        (loose, "no sound graph"),
        (extra_input, "its inputs are not those it describes"),
        (wider, "its inputs are not those it describes"),
        (lambda model: model.graph.output.pop(), "its outputs are not those it describes"),
        (lambda model: setattr(model.opset_import[0], "version", 17), "operator sets ai.onnx 17, and this version runs ai.onnx 21"),
        (lambda model: model.opset_import.append(helper.make_opsetid("com.microsoft", 1)), "com.microsoft 1"),
        (lambda model: model.metadata_props.pop(), "none that iec export wrote"),
        (lambda model: setattr(model.metadata_props[0], "value", "{"), "damaged description"),
        (lambda model: setattr(model.metadata_props[0], "value", "[" * 100000), "damaged description"),
        (without("pairs"), "damaged description"),
        (describe(format=99), "has the format 99, and this version reads 1"),
        (describe(pairs=[[5]]), "damaged description"),
        (describe(pairs=3), "damaged description"),
        (describe(shape=["a"]), "damaged description"),
        (describe(refresh=["a"]), "damaged description"),
        (describe(refresh=[0, 4]), "damaged description"),
        (describe(shape=[3, 8, 16]), "its inputs are not those it describes"),
        (describe(model={}), "damaged description"),
        (describe(cost={"macs": 1}), "damaged description"),
        (describe(call="cached"), "is the file of cached calls"),
    ],
)  # fmt: skip
def test_what_no_export_writes_is_refused(changed, change, message):
    with pytest.raises(ArtifactError, match=message):
        read_file(changed(change))


def test_the_file_of_cached_calls_belongs_to_its_file(caching, write):
    path = write(caching.full, caching.cached)
    assert read_file(path).cached.description.inputs == {"x": (3, 8, 8), "feature": read_file(path).description.feature}
    path = write(caching.full, caching.cached + b"\x08\x0a").rename(path.with_name("other.onnx"))  # says its IR version again
    cached_path(path.with_name("network.onnx")).rename(cached_path(path))
    with pytest.raises(ArtifactError, match="of two exports"):
        read_file(path)
    cached_path(path).unlink()
    with pytest.raises(ArtifactError, match=r"needs other.cached.onnx beside it"):
        read_file(path)
