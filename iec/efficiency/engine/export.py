"""The network of a cell as ONNX files: one for full calls, and beside it one for cached calls where the cell caches a feature."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from iec.efficiency.cachequant import CorrectedCacheNetwork
from iec.efficiency.caching import CachedUNetNetwork
from iec.efficiency.caching.forecast import REUSE
from iec.efficiency.engine.description import ANY, CACHED, FLOAT, FULL, INT8, Description, ExportedModel
from iec.efficiency.engine.graph import Graph, Value
from iec.efficiency.engine.integers import ConvLayers, MatMulLayers
from iec.efficiency.engine.layers import Layers
from iec.efficiency.engine.supported import require_exportable
from iec.efficiency.engine.unet import UNetWriter
from iec.efficiency.integer import IntegerLayer, require_integers
from iec.efficiency.quantization import QuantizedNetwork, QuantizedUNet
from iec.efficiency.technique import Prepared
from iec.errors import ConfigError
from iec.models import Model
from iec.models.unet import UNetNetwork
from iec.sampling.network import Network
from iec.sampling.timetable import Timetable

FORMS: Mapping[str, type[Layers]] = {"onnxruntime": MatMulLayers, "openvino": ConvLayers}
"""Engine -> how quantized layers are written, so that it runs them on integers."""


@dataclass(frozen=True)
class Export:
    """The files' bytes. cached: None where the network does not cache."""

    full: bytes
    cached: bytes | None


@dataclass(frozen=True)
class _Parts:
    """What a network is made of. quantized: None in float. cut: None without a cache. tables: CacheQuant's a and b, [T, C]."""

    unet: nn.Module
    quantized: QuantizedUNet | None = None
    cut: int | None = None
    tables: tuple[Tensor, Tensor] | None = None


def export(
    model: Model,
    prepared: Prepared,
    table: Timetable,
    refresh: frozenset[int] | None,
    technique: dict[str, Any],
    cell: str,
    engine: str,
) -> Export:
    """Files of the network ``prepared`` for the steps of ``table``.

    refresh: the steps of full calls. technique, cell: provenance, see `Description`. engine: of `FORMS`, for a quantized network.
    Raises `ConfigError` for a network that has no form in a file.
    """
    parts = _parts(prepared.network)
    require_exportable(parts.unet)
    if parts.quantized is not None:
        require_integers(parts.quantized.config, "export efficiency=none")
    if next(parts.unet.parameters()).dtype != torch.float32:
        raise ConfigError("A network in half precision cannot be exported. Export it with model.dtype=float32.")
    description = _description(model, parts, table, refresh, prepared, engine)
    description = replace(description, technique=technique, cell=cell)
    cached = None
    if parts.cut is not None:
        cached = _written(parts, table, replace(description, call=CACHED))
        description = replace(description, cached_sha256=hashlib.sha256(cached).hexdigest())
    return Export(_written(parts, table, description), cached)


def _parts(network: Network) -> _Parts:
    quantized = None
    if isinstance(network, QuantizedNetwork):
        quantized, network = network.quantized, network.network
        if any(isinstance(module, IntegerLayer) for module in quantized.modules()):
            raise ConfigError(
                "An engine has integer kernels of its own. Export the cell with efficiency.kernels=simulated: it has the same "
                "calibration, and the file runs on integers."
            )
    tables = None
    if isinstance(network, CorrectedCacheNetwork):
        tables, network = (network.tables.a, network.tables.b), network.network
    if isinstance(network, CachedUNetNetwork):
        if network.forecast != REUSE:
            raise ConfigError(
                "A file has cached calls that take the last feature, not a forecast from several. Export the cell with "
                "efficiency.forecast=none."
            )
        return _Parts(network.module, quantized, network.cut.index, tables)
    if isinstance(network, UNetNetwork):
        return _Parts(network.module, quantized)
    raise ConfigError(
        f"A {type(network).__name__} cannot be exported: only a UNet can. Use efficiency=none, a quantization, deepcache or "
        "CacheQuant of a model with a UNet."
    )


def _description(
    model: Model, parts: _Parts, table: Timetable, refresh: frozenset[int] | None, prepared: Prepared, engine: str
) -> Description:
    feature = None
    if parts.cut is not None:
        at = CachedUNetNetwork(parts.unet, parts.cut).cut
        feature = (at.channels, *(-(-n // at.factor) for n in model.card.shape[1:]))
    return Description(
        call=FULL,
        model=ExportedModel(model.card.name, model.weights_hash),
        technique={},
        shape=model.card.shape,
        tokens=model.card.tokens,
        feature=feature,
        pairs=table.pairs,
        A=tuple(table.A.tolist()),
        B=tuple(table.B.tolist()),
        refresh=None if refresh is None else tuple(sorted(refresh)),
        arithmetic=FLOAT if parts.quantized is None else INT8,
        engine=ANY if parts.quantized is None else engine,
        cached_sha256=None,
        cost=prepared.cost,
        calibration_calls=prepared.calibration_calls,
        cell="",
        versions={name: version(name) for name in ("torch", "diffusers", "onnx")},
    )


@torch.no_grad()
def _written(parts: _Parts, table: Timetable, description: Description) -> bytes:
    """The file of the calls that ``description`` is about."""
    graph = Graph()
    form = Layers if parts.quantized is None else FORMS[description.engine]
    values = {name: Value(name, shape) for name, shape in description.inputs.items()}
    valid = frozenset(range(len(table)))
    if parts.quantized is not None and description.refresh is not None:  # other steps have no scales
        valid = frozenset(i for i in valid if (i in description.refresh) == (description.call == FULL))
    steps = _Steps(parts, table, valid)
    writer = UNetWriter(graph, form(graph), parts.unet, steps.results, values.get("cond"))
    if description.call == FULL:
        eps, feature = writer.full(values["x"], parts.cut)
    else:
        given, feature = values["feature"], None
        if parts.tables is not None:
            a, b = (graph.at_step(t[..., None, None]) for t in parts.tables)
            given = Value(graph.op("Add", graph.op("Mul", given.name, a), b), given.shape)
        assert parts.cut is not None
        eps = writer.cached(values["x"], given, parts.cut)
    made = {"eps": eps} if feature is None else {"eps": eps, "feature": feature}
    assert {name: value.shape for name, value in made.items()} == description.outputs
    return graph.model(values, made, description.metadata())


class _Steps:
    """Evaluates what depends on the step alone; NaN at the steps that are not ``valid``."""

    def __init__(self, parts: _Parts, table: Timetable, valid: frozenset[int]) -> None:
        self.parts, self.valid, self.count = parts, valid, len(table)
        unet: Any = parts.unet
        times = [torch.tensor([t]) for t, _ in table.pairs]
        self._embeddings = self._each(lambda i: unet.time_embedding(unet.time_proj(times[i]).to(unet.dtype)))

    def results(self, of: Callable[[Tensor], Tensor]) -> Tensor:
        """[T, ..] of a function of the time embedding [1, width]."""
        found = self._each(lambda i: of(self._embeddings[i]))
        missing = torch.full_like(next(iter(found.values())), torch.nan)
        return torch.stack([found.get(i, missing) for i in range(self.count)])

    def _each(self, of: Callable[[int], Tensor]) -> dict[int, Tensor]:
        found = {}
        for i in sorted(self.valid):
            with nullcontext() if self.parts.quantized is None else self.parts.quantized.context.reading(i):
                found[i] = of(i)
        return found
