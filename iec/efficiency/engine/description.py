"""What a file says of itself: JSON in the metadata of the ONNX model, under the key ``iec``."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from iec.efficiency.cost import Cost
from iec.errors import ArtifactError
from iec.io.records import ShapeError, parse

KEY, FORMAT = "iec", 1
FLOAT, INT8 = "float32", "int8"
ANY = "any"
"""The engine of a file in float."""
FULL, CACHED = "full", "cached"


@dataclass(frozen=True)
class ExportedModel:
    """name: of the card. weights: their hash."""

    name: str
    weights: str


@dataclass(frozen=True)
class Description:
    """What a program has to know of a file, and where it is from.

    call: ``full``, or ``cached`` of a file for calls that start from a feature. technique: its identity in the cell. shape: (C,
    H, W) of x. tokens: (N, width) of cond, None without. feature: (C, h, w) of the feature, None without. pairs, A, B: the steps
    (t, s) and their coefficients, x_s = A x_t + B eps. refresh: the steps of full calls, None: all. arithmetic: ``float32`` or
    ``int8``. engine: the one whose integer kernels the file is written for, or ``any``. cached_sha256: of the file of cached
    calls beside this one, None without. cost: of a call. calibration_calls: see `iec.efficiency.technique.Prepared`. cell: hash
    of the exported cell's identity. versions: of the libraries that wrote it.
    """

    call: str
    model: ExportedModel
    technique: dict[str, Any]
    shape: tuple[int, ...]
    tokens: tuple[int, ...] | None
    feature: tuple[int, ...] | None
    pairs: tuple[tuple[int, ...], ...]
    A: tuple[float, ...]
    B: tuple[float, ...]
    refresh: tuple[int, ...] | None
    arithmetic: str
    engine: str
    cached_sha256: str | None
    cost: Cost | None
    calibration_calls: int | None
    cell: str
    versions: dict[str, str]
    format: int = FORMAT

    def metadata(self) -> dict[str, str]:
        """Of the ONNX model."""
        return {KEY: json.dumps(asdict(self), sort_keys=True)}

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape without the batch, beside ``step``."""
        named = {"x": self.shape, "cond": self.tokens, "feature": self.feature if self.call == CACHED else None}
        return {name: shape for name, shape in named.items() if shape is not None}

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape without the batch."""
        made = {"feature": self.feature} if self.call == FULL and self.feature is not None else {}
        return {"eps": self.shape, **made}

    @classmethod
    def read(cls, text: str | None, path: object) -> "Description":
        """From the metadata. Raises `ArtifactError` for what no export wrote."""
        if text is None:
            raise ArtifactError(f"{path} is an ONNX file, but none that iec export wrote. Export the network again.")
        try:
            values = json.loads(text)
            number = values.get("format") if isinstance(values, dict) else None
            if number != FORMAT:
                raise ArtifactError(f"{path} has the format {number!r}, and this version reads {FORMAT}. Export the network again.")
            description = parse(cls, values)
            description._require_sound()
        except (ValueError, RecursionError) as error:  # a ShapeError is a ValueError
            raise ArtifactError(f"{path} has a damaged description ({error}). Export the network again.") from error
        return description

    def _require_sound(self) -> None:
        """Raises `ShapeError` for values that contradict each other."""
        count = len(self.pairs)
        shapes = [shape for shape in (self.shape, self.tokens, self.feature) if shape is not None]
        sound = {
            "pairs": count > 0 and all(len(pair) == 2 for pair in self.pairs) and len(self.A) == len(self.B) == count,
            "refresh": self.refresh is None or (0 in self.refresh and all(0 <= i < count for i in self.refresh)),
            "feature": (self.feature is None) == (self.refresh is None),
            "shape": all(n > 0 for shape in shapes for n in shape),
            "arithmetic": self.arithmetic in (FLOAT, INT8),
        }
        if wrong := [name for name, holds in sound.items() if not holds]:
            raise ShapeError(f"{', '.join(wrong)} cannot be")
