"""From the bytes of an image file to an array, with nothing converted in silence."""

import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from iec.errors import ConfigError, MetricError
from iec.metrics.images.formats import PNG, open_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
PNG_BIT_DEPTH = 24
MOST_PIXELS = 2**29
"""Of an image: 1.5 GiB in memory."""
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
"""What Pillow raises for the bytes of a damaged file."""
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "adm": Image.Resampling.BICUBIC,
}
"""Pillow's, all antialiased when shrinking but ``nearest``. ``adm``: halved by box averages while both sides stay at least twice
the target, then bicubic (guided-diffusion, guided_diffusion/image_datasets.py, center_crop_arr)."""
CONVERTED = ("L", "P", "CMYK", "YCbCr")


class DamagedImageError(MetricError):
    """A file that cannot be decoded: truncated, or no image at all."""


@dataclass(frozen=True)
class Preprocess:
    """How real images of any size become R x R: shorter side to R, centre crop.

    resolution: R; None leaves images as they are. filter: one of `FILTERS`. crop_first: crop to a square, then resize
    (latent-diffusion's LSUN loader, and the COCO script of the released code), instead of resizing first (guided-diffusion,
    torchvision); the results differ only by the rounding of the long side and at the cropped edges. to_rgb: convert grey, palette
    and CMYK images as Pillow does, instead of leaving grey ones grey and refusing the others. Orientation tags are not looked at,
    as in the usual loaders.
    """

    resolution: int | None = None
    filter: str = "bicubic"
    crop_first: bool = False
    to_rgb: bool = False

    def __post_init__(self) -> None:
        if self.filter not in FILTERS:
            raise ConfigError(f"Unknown filter {self.filter!r}; choose one of {', '.join(FILTERS)}.")
        if self.resolution is not None and self.resolution < 2:
            raise ConfigError(f"resolution={self.resolution} is not a size in pixels; give at least 2.")

    def __str__(self) -> str:
        return self.describe(channels=3)

    def describe(self, channels: int) -> str:
        """As it stands in the record of a reference; channels: of the images that come out, 1 or 3."""
        as_stored = "RGB as stored" if channels == 3 else "grey as stored, repeated to RGB for the extractor"
        colour = "grey, palette and CMYK converted to RGB" if self.to_rgb else as_stored
        if self.resolution is None:
            return f"as stored; {colour}"
        side, antialias = self.resolution, "no antialias" if self.filter == "nearest" else "antialias"
        resize, crop = f"shorter side to {side}, Pillow {self.filter} ({antialias})", "centre crop"
        return f"{f'{crop}, {resize}' if self.crop_first else f'{resize}, {crop}'}; {colour}"

    def __call__(self, image: Image.Image) -> Image.Image:
        """An R x R image of an RGB or grey image."""
        if self.resolution is None:
            return image
        if self.crop_first:
            image = _centre_crop(image, min(image.size))
        return _centre_crop(self._shrink(image, self.resolution), self.resolution)

    def _shrink(self, image: Image.Image, side: int) -> Image.Image:
        if self.filter == "adm":
            while min(image.size) >= 2 * side:
                image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = side / min(image.size)
        size = round(image.width * scale), round(image.height * scale)
        return image if size == image.size else image.resize(size, FILTERS[self.filter])


def _centre_crop(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def decode(data: bytes, name: str, preprocess: Preprocess) -> np.ndarray:
    """uint8 [R, R, 3], or [R, R, 1] of a grey image, of the bytes of a PNG, JPEG or WebP file.

    Raises `DamagedImageError` when they cannot be decoded, `MetricError` for an image that is not 8-bit RGB or grey (or cannot be
    made so), has more than `MOST_PIXELS`, or, without a resolution to crop to, is not square; each names the file.
    """
    try:
        with open_image(data) as image:
            if image.width * image.height > MOST_PIXELS:
                raise MetricError(f"{name} has too many pixels ({image.width} x {image.height}); make it smaller first.")
            image.load()
    except Image.DecompressionBombError as error:  # WebP has this limit of Pillow's own, of 179 million pixels
        raise MetricError(f"{name} has too many pixels ({error}); make it smaller first.") from error
    except DAMAGE as error:
        raise DamagedImageError(
            f"{name} is damaged or no PNG, JPEG or WebP ({error}). Make it again, or pass --skip-damaged."
        ) from error
    pixels = np.atleast_3d(np.asarray(preprocess(_checked(image, data, name, preprocess.to_rgb))))
    if pixels.shape[0] != pixels.shape[1]:
        raise MetricError(
            f"{name} is {pixels.shape[1]} x {pixels.shape[0]} pixels, not square. Generated images are scored as they are; real "
            "ones are cropped by  python -m iec.metrics.references --resolution R --filter FILTER."
        )
    return pixels


def _checked(image: Image.Image, data: bytes, name: str, convert: bool) -> Image.Image:
    """RGB or, unless it is to be converted, grey (mode L). Raises `MetricError` for another kind."""
    if data.startswith(PNG) and data[PNG_BIT_DEPTH] == 16:  # Pillow would cut 16-bit RGB to 8 bits without a word
        raise MetricError(f"{name} has 16 bits a channel; save it with 8.")
    opaque = "transparency" not in image.info
    if convert and image.mode in CONVERTED and opaque:
        return image.convert("RGB")
    if image.mode in ("RGB", "L") and opaque:
        return image
    kinds = {"1": "black and white", "P": "a palette image", "CMYK": "CMYK"}
    kind = (
        "has transparency"
        if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa")
        else f"is {kinds.get(image.mode, image.mode)}"
    )
    way = (
        "convert a folder of real images with  python -m iec.metrics.references --to-rgb"
        if image.mode in CONVERTED
        else "save it as RGB or grey"
    )
    raise MetricError(f"{name} {kind}, not 8-bit RGB or grey; {way}.")
