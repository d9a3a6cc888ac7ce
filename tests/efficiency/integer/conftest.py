import pytest

from iec.efficiency.integer.passes import Passes, fused_passes
from iec.efficiency.integer.products import OneDNN, PatchMatmul, require_exact_sums
from iec.errors import DeviceError


def exact_sums() -> bool:
    try:
        require_exact_sums(OneDNN)
    except DeviceError:
        return False
    return True


def pytest_collection_modifyitems(items):
    """On a CPU without VNNI the kernels refuse to work, which is tested by itself."""
    if not exact_sums():
        for item in items:
            if "tests/efficiency/integer" in str(item.path) and "without_vnni" not in item.name:
                item.add_marker(pytest.mark.skip(reason="this CPU does not sum 8-bit products exactly"))


@pytest.fixture(params=[OneDNN, PatchMatmul], ids=lambda kind: kind.__name__)
def product(request):
    return request.param


@pytest.fixture(scope="session")
def fused(tmp_path_factory):
    return fused_passes(tmp_path_factory.mktemp("passes"))


@pytest.fixture(params=["fused", "unfused"])
def passes(request):
    return request.getfixturevalue("fused") if request.param == "fused" else Passes()
