"""Writing safetensors one tensor at a time: ``safetensors.torch.save_file`` wants all of them in memory."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from iec.io.files import write_atomic

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def save_tensors(
    path: Path,
    tensors: Mapping[str, tuple[torch.dtype, torch.Size]],
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> None:
    """A safetensors file of ``tensors`` (dtype, shape). ``read(name)`` is called once for each; one result is held at a time.

    Layout (github.com/huggingface/safetensors): length of the header (uint64), header (JSON, padded with spaces to 8 bytes), data;
    wider dtypes first, so that each tensor is aligned.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        dtype, shape = tensors[name]
        begin, end = end, end + shape.numel() * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = read(name)
            assert (tensor.dtype, tensor.shape) == tensors[name]
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    write_atomic(path, write)
