import numpy as np
import pytest

from iec.errors import MetricError
from iec.io.files import canonical_hash
from iec.metrics.extractors.features import extract, extract_each


def test_batches_are_fixed_however_the_images_arrive(tiny, random_images):
    done = []
    whole, pieces = tiny(), tiny()
    a = extract(random_images, whole, done.append)
    b = extract((random_images[k : k + 3] for k in range(0, 40, 3)), pieces)
    assert whole.sizes == pieces.sizes == done == [7] * 5 + [5]
    assert len(a) == 40 and a.resolution == 8 and a.extractor == whole.hash
    for name in ("pooled", "spatial", "logits"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_allclose(a.pooled, random_images.mean(axis=(1, 2)) / 255, rtol=1e-5)


def test_grey_images_have_the_features_of_their_rgb_copies(tiny, random_images):
    grey = random_images[..., :1]
    a, b = extract(grey, tiny()), extract(grey.repeat(3, axis=3), tiny())
    for name in ("pooled", "spatial", "logits"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_extractors_of_different_batches_share_no_pass(tiny, random_images):
    other = tiny(2)
    other.batch = 9
    with pytest.raises(MetricError, match=r"batches of \[7, 9\] cannot share a pass"):
        extract_each(random_images, [tiny(), other])
    other.batch = 7
    one, two = extract_each(random_images, [tiny(), other])
    assert (one.extractor, two.extractor) == (tiny().hash, other.hash) and np.array_equal(one.pooled, two.pooled)


def test_canonical_hash_is_of_content_not_order():
    assert canonical_hash({"a": 1, "b": 2}) == canonical_hash({"b": 2, "a": 1}) != canonical_hash({"a": 1, "b": 3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.astype(np.float32), "uint8"),
        (lambda x: x.tolist(), "uint8"),
        (lambda x: x.transpose(0, 3, 1, 2), "channels come last"),
        (lambda x: x[0], "square"),
        (lambda x: x[:, :4], "square"),
        (lambda x: x[:1], "at least 2"),
        (lambda x: x[:0], "at least 2"),
        (lambda x: [x[:3], x[3:6, :4, :4]], "mixed"),
        (lambda x: [x[:3], x[3:6, ..., :1]], "mixed.*all grey or all RGB"),
        (lambda x: x[..., :2], "1 or 3"),
        (lambda x: np.repeat(x[:1], 9, axis=0), "are the same"),
        (lambda x: np.repeat(np.repeat(x[:, :1, :1], 8, axis=1), 8, axis=2), "one flat colour"),
        (lambda x: np.zeros_like(x), "are the same"),
    ],
)
def test_refusals(tiny, random_images, change, message):
    with pytest.raises(MetricError, match=message):
        extract(change(random_images), tiny())


def test_nan_features_are_refused(tiny, random_images):
    class Broken(tiny):
        def __call__(self, images):
            pooled, spatial, logits = super().__call__(images)
            logits[0, 0] = np.nan
            return pooled, spatial, logits

    with pytest.raises(MetricError, match="NaN"):
        extract(random_images, Broken())
