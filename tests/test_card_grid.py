"""scripts/card_grid.py: the picture of a card."""

import numpy as np

from scripts import card_grid


def test_samples_are_at_the_left_and_real_images_at_the_right(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(card_grid, "save", lambda figure, _: drawn.append(figure))
    black, white = np.zeros((64, 32, 32, 1), np.uint8), np.full((64, 32, 32, 1), 255, np.uint8)
    card_grid.draw(black, white, tmp_path / "samples.png", ("samples", "real"))
    left, right = drawn[0].axes
    assert (left.get_title(), right.get_title()) == ("samples", "real")
    assert left.get_images()[0].get_array()[:64, :64].max() == 0
    assert right.get_images()[0].get_array().min() == 255
