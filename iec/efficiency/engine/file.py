"""An engine file, read and checked: nothing of it is run before it is known to be one."""

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import helper

from iec.efficiency.engine.description import CACHED, FULL, KEY, Description
from iec.efficiency.engine.graph import OPSET, STEP
from iec.errors import ArtifactError
from iec.io.filetypes import mistaken

LARGEST_FILE, LARGEST_VALUE = 2**31 - 1, 2**28
"""Bytes; and elements of a value inside the network, of one image."""
KINDS = frozenset(
    {
        *("Add", "AveragePool", "Cast", "Clip", "Concat", "Conv", "DequantizeLinear", "Div", "Gather", "Gelu", "Identity"),
        *("InstanceNormalization", "LayerNormalization", "MatMul", "Mul", "Pad", "QuantizeLinear", "ReduceSum", "Reshape"),
        *("Resize", "Round", "Sigmoid", "Slice", "Softmax", "Split", "Sub", "Transpose"),
    }
)
"""Of nodes that an export writes: arithmetic without loops, branches, files or code."""
ATTRIBUTES = frozenset(getattr(onnx.AttributeProto, kind) for kind in ("INT", "INTS", "FLOAT", "STRING"))
WAY_OUT = "Export the network again (iec export)."


@dataclass(frozen=True)
class EngineFile:
    """data: the checked bytes. sha256: of them, and so of those of ``cached``, the file of cached calls, whose hash they hold."""

    path: Path
    data: bytes
    sha256: str
    description: Description
    cached: "EngineFile | None" = None


def cached_path(path: Path) -> Path:
    """NAME.cached.onnx beside NAME.onnx."""
    return path.with_name(f"{path.stem}.cached{path.suffix}")


def read_file(path: Path) -> EngineFile:
    """The file, and the one of cached calls beside it if it has one.

    Raises `ArtifactError` for a file that is missing, damaged, or holds anything that `iec export` does not write.
    """
    if not path.is_file():
        raise ArtifactError(f"There is no engine file at {path}. Write one with iec export, or give efficiency.file its path.")
    status = path.stat()
    return _read(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _read(path: Path, size: int, modified: int) -> EngineFile:
    file = _checked(path, size, FULL)
    expected = file.description.cached_sha256
    if expected is None:
        return file
    beside = cached_path(path)
    if not beside.is_file():
        raise ArtifactError(f"{path} needs {beside.name} beside it, the file of its cached calls. Put it there. {WAY_OUT}")
    cached = _checked(beside, beside.stat().st_size, CACHED)
    if cached.sha256 != expected:
        raise ArtifactError(f"{beside} does not belong to {path.name}: they are of two exports. {WAY_OUT}")
    return EngineFile(path, file.data, file.sha256, file.description, cached)


def _checked(path: Path, size: int, call: str) -> EngineFile:
    if size > LARGEST_FILE:
        raise ArtifactError(f"{path} has {size} bytes, more than an ONNX file can have. {WAY_OUT}")
    if sentence := mistaken(path):
        raise ArtifactError(sentence)
    data = path.read_bytes()
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise ArtifactError(f"{path} is truncated or not an ONNX file ({size} bytes). {WAY_OUT}") from error
    described = [entry.value for entry in model.metadata_props if entry.key == KEY]
    description = Description.read(described[0] if len(described) == 1 else None, path)
    if description.call != call:
        raise ArtifactError(f"{path} is the file of {description.call} calls. Give efficiency.file that of full calls.")
    require_opset(path, model)
    if problems := [*_structure(model), *_signature(model, description)]:
        raise ArtifactError(f"{path} is refused: {'; '.join(problems[:5])}. {WAY_OUT}")
    _require_sizes(path, model)
    return EngineFile(path, data, hashlib.sha256(data).hexdigest(), description)


def require_opset(path: Path, model: onnx.ModelProto) -> None:
    """Raises `ArtifactError` for operators of another set than ONNX's of `OPSET`."""
    sets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if sets != {"ai.onnx": OPSET}:
        found = ", ".join(f"{domain} {number}" for domain, number in sets.items()) or "none"
        raise ArtifactError(f"{path} uses the operator sets {found}, and this version runs ai.onnx {OPSET} alone. {WAY_OUT}")


def _structure(model: onnx.ModelProto) -> list[str]:
    """What an export does not write."""
    graph, problems = model.graph, []
    if model.functions or model.training_info or graph.sparse_initializer or graph.quantization_annotation:
        problems.append("it has functions, training information or sparse tensors")
    for node in graph.node:
        if node.domain or node.op_type not in KINDS:
            problems.append(f"node {node.name!r} is a {node.domain or 'ai.onnx'}.{node.op_type}")
        problems += [f"attribute {a.name!r} of {node.name!r} is no number" for a in node.attribute if a.type not in ATTRIBUTES]
    for tensor in graph.initializer:
        if tensor.data_location != onnx.TensorProto.DEFAULT or tensor.external_data:
            problems.append(f"tensor {tensor.name!r} lies in another file")
        elif not _is_whole(tensor):
            problems.append(f"tensor {tensor.name!r} does not hold what its shape says")
    return problems


def _is_whole(tensor: onnx.TensorProto) -> bool:
    try:
        width = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError:
        return False
    return all(n >= 0 for n in tensor.dims) and len(tensor.raw_data) == math.prod(tensor.dims) * width


def _signature(model: onnx.ModelProto, description: Description) -> list[str]:
    """Inputs and outputs that are not those of the description."""
    real, whole = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    inputs = {**{name: (real, (None, *shape)) for name, shape in description.inputs.items()}, STEP: (whole, ())}
    outputs = {name: (real, (None, *shape)) for name, shape in description.outputs.items()}
    pairs = (("inputs", model.graph.input, inputs), ("outputs", model.graph.output, outputs))
    return [f"its {name} are not those it describes" for name, given, said in pairs if {v.name: _type(v) for v in given} != said]


def _type(value: onnx.ValueInfoProto) -> tuple[int, tuple[int | None, ...]]:
    tensor = value.type.tensor_type
    return tensor.elem_type, tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)


def _require_sizes(path: Path, model: onnx.ModelProto) -> None:
    """Raises `ArtifactError` for a graph that is not sound, or a value that is larger than any network's, or of unknown size.

    Sizes are those of one image, which is what the batch of ``model`` is set to.
    """
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim[:1]:
            dimension.dim_value = 1
    try:
        onnx.checker.check_model(model)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError(f"{path} is no sound graph: {str(error).strip()[:300]}. {WAY_OUT}") from error
    shapes = {value.name: _type(value)[1] for value in (*inferred.value_info, *inferred.output)}
    for name in (name for node in model.graph.node for name in node.output):
        known = [n for n in shapes.get(name, (None,)) if n is not None]
        if len(known) < len(shapes.get(name, (None,))):
            raise ArtifactError(f"{path} makes a value of a size that cannot be told ({name}). {WAY_OUT}")
        if math.prod(known) > LARGEST_VALUE:
            raise ArtifactError(f"{path} makes a value of {math.prod(known)} numbers for each image ({name}). {WAY_OUT}")
