import numpy as np
import torch
from PIL import Image

from iec.io.images import grid, save_png, to_uint8


def test_conversion_rounds_and_clamps():
    values = [-9.0, -1.0, 0.0, 1.0, 9.0, -1 + 1.49 / 127.5, -1 + 1.51 / 127.5]
    x = torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1).expand(1, 3, 1, -1)
    assert to_uint8(x)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 1, 2]


def test_every_byte_survives_the_round_trip():
    pixels = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert np.array_equal(to_uint8(pixels / 127.5 - 1), pixels.permute(0, 2, 3, 1).numpy())


def test_grid_places_images_row_by_row(tmp_path):
    images = np.stack([np.full((2, 2, 3), v, np.uint8) for v in range(5)])
    canvas = grid(images, columns=3, gap=1)
    assert canvas.shape == (5, 8, 3)
    assert [canvas[0, 0, 0], canvas[0, 3, 0], canvas[3, 3, 0], canvas[3, 6, 0], canvas[0, 2, 0]] == [0, 1, 4, 255, 255]
    save_png(tmp_path / "g.png", canvas)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "g.png")), canvas)


def test_grey_images_have_grey_files_and_rgb_grids(tmp_path):
    images = np.arange(8, dtype=np.uint8).reshape(2, 2, 2, 1)
    save_png(tmp_path / "g.png", images[1])
    with Image.open(tmp_path / "g.png") as image:
        assert image.mode == "L" and np.asarray(image).tolist() == [[4, 5], [6, 7]]
    assert np.array_equal(grid(images, columns=2), grid(images.repeat(3, axis=3), columns=2))
