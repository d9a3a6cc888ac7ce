import numpy as np
import pytest

from iec.metrics.protocol import protocol
from iec.metrics.references.catalog import PACKAGED, PROTOCOLS
from iec.metrics.references.floors import floor, real_images
from iec.metrics.references.reference import load_reference, reference_path

SIZES = (64, 100, 256, 300, 1000, 2048, 5000, 10000)
PACKAGED_ONES = sorted(path.name.split(".")[:2] for path in PACKAGED.glob("*.safetensors"))


@pytest.mark.parametrize(("dataset", "extractor"), PACKAGED_ONES)
def test_every_packaged_reference_has_floors_that_fall_with_n(dataset, extractor):
    name = PROTOCOLS[extractor]
    scores = [score for score in ("fid", "sfid") if score in protocol(name).default]
    for score in scores:
        values = [floor(dataset, name, score, n) for n in SIZES]
        assert None not in values and np.all(np.diff(values) < 0)
        assert values[2] == pytest.approx(values[4] * 1000 / 256, rel=0.5)  # about 1 / N
    assert real_images(dataset).endswith(" test")


def test_there_is_no_floor_where_nothing_was_measured():
    name = "efficientnet_lite0"
    for dataset, protocol_, score, n in [
        ("cifar10_train", name, "fid", 63), ("cifar10_train", name, "fid", 10001), ("cifar10_train", name, "is", 256),
        ("cifar10_train", "inception", "fid", 256), ("imagenet_256", name, "fid", 256),
    ]:  # fmt: skip
        assert floor(dataset, protocol_, score, n) is None
    assert real_images("imagenet_256") is None


def test_the_packaged_references_of_both_protocols_are_of_the_same_images():
    for dataset in {dataset for dataset, _ in PACKAGED_ONES}:
        shallow, deep = (protocol(name).extractor() for name in ("efficientnet_lite0", "efficientnet_lite0_deep"))
        one, two = (load_reference(reference_path(dataset, e), e, 32).provenance for e in (shallow, deep))
        assert one["n"] == two["n"] and one["dataset"] == two["dataset"]
