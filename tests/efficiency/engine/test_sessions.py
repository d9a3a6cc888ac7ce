import numpy as np
import pytest

from iec.efficiency.engine import sessions
from iec.efficiency.engine.file import read_file
from iec.efficiency.engine.graph import Graph, Value
from iec.efficiency.engine.network import EngineNetwork
from iec.efficiency.engine.sessions import RUNTIMES, open_session, require_exact_sums
from iec.errors import ArtifactError, DeviceError


@pytest.fixture(params=RUNTIMES)
def runtime(request):
    pytest.importorskip(request.param)
    return request.param


def test_a_cpu_without_vnni_is_refused_for_integers_only(monkeypatch, float_bytes, write):
    cut_off = np.full((4, 8), 32 * 32767.0)
    monkeypatch.setattr(sessions, "open_session", lambda *args: lambda inputs: {"y": cut_off})
    with pytest.raises(DeviceError, match=r"in 16 bits.*Export efficiency=none"):
        require_exact_sums.__wrapped__("onnxruntime")
    monkeypatch.setattr("iec.efficiency.engine.network.require_exact_sums", require_exact_sums.__wrapped__)
    assert EngineNetwork.of(read_file(write(float_bytes)), "onnxruntime", 1)


def test_this_cpu_sums_the_largest_numbers_exactly(runtime):
    """Or it is told so: then the quantized files' tests cannot run here."""
    try:
        require_exact_sums(runtime)
    except DeviceError as error:
        pytest.skip(str(error))


def test_what_an_engine_does_not_take_is_named(runtime):
    graph, x = Graph(), np.ones((2, 6), np.float32)
    product = graph.op("MatMul", "x", graph.constant(np.ones((7, 3))))
    data = graph.model({"x": Value("x", (6,))}, {"y": Value(product, (3,))}, {})
    for wrong in (data, data[:50]):
        with pytest.raises(ArtifactError, match="does not take the file"):
            open_session(wrong, ["y"], runtime, 1)({"x": x, "step": np.array(0)})


def test_a_call_that_fails_inside_the_engine_is_named():
    graph, x = Graph(), np.ones((2, 6), np.float32)
    rows = graph.op("Reshape", "x", graph.constant([0, 7], np.int64))
    data = graph.model({"x": Value("x", (6,))}, {"y": Value(rows, (7,))}, {})
    with pytest.raises(ArtifactError, match="does not take the file"):
        open_session(data, ["y"], "onnxruntime", 1)({"x": x, "step": np.array(0)})
