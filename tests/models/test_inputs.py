"""What a network is told beside the state: by image, as a tensor would be."""

import pytest
import torch

from iec.errors import ConfigError
from iec.models.inputs import Conditioning

TEXT, SIZES = torch.randn(4, 3, 8), torch.randn(4, 6)


def test_images_are_chosen_in_every_tensor_and_none_stays_none():
    cond = Conditioning({"text": TEXT, "added": {"time_ids": SIZES, "resolution": None}, "residuals": [TEXT, SIZES], "mask": None})
    assert len(cond) == 4 and [id(tensor) for tensor in cond.tensors()] == [id(t) for t in (TEXT, SIZES, TEXT, SIZES)]
    for images in (slice(1, 3), torch.tensor([3, 0])):
        part = cond[images]
        assert len(part) == 2 and part.arguments["mask"] is None and part.arguments["added"]["resolution"] is None
        assert torch.equal(part.arguments["text"], TEXT[images]) and torch.equal(part.arguments["residuals"][1], SIZES[images])
        assert torch.equal(part.arguments["added"]["time_ids"], SIZES[images]) and type(part.arguments["residuals"]) is list


@pytest.mark.parametrize(
    "value",
    [0.5, {"scale": 0.5}, torch.ones(()), torch.ones(3, 2), [TEXT, TEXT[:2]]],
    ids=["number", "mapping", "scalar", "another batch", "batches that differ"],
)
def test_what_is_not_by_image_is_refused_by_name(value):
    with pytest.raises(ConfigError, match="as scale, and caching and calibration pass on what has one entry"):
        Conditioning({"text": TEXT, "scale": value})


def test_what_all_images_share_stays_and_the_images_of_two_calls_follow_each_other():
    ids = torch.arange(4)
    first, second = (
        Conditioning({"text": TEXT + i, "none": None, "more": [SIZES + i]}, {"ids": ids, "options": {}}) for i in (0, 1)
    )
    both = first.followed_by(second)
    assert len(both) == 2 * len(first) and both.shared["ids"] is ids and both[1:2].shared["ids"] is ids
    assert torch.equal(both.arguments["text"], torch.cat([TEXT, TEXT + 1])) and both.arguments["none"] is None
    assert torch.equal(both.arguments["more"][0], torch.cat([SIZES, SIZES + 1])) and len(both.tensors()) == 3
    with pytest.raises(ConfigError, match="negative prompt as long"):
        first.followed_by(Conditioning({"text": TEXT[:, :1], "more": [SIZES]}))
