"""Decode image files: the one place that decides that an image cannot be read.

Every image becomes 8-bit RGB, by one rule for training, evaluation and prediction:

- 8 bits or less a channel (RGB, grey, palettes, CMYK, YCbCr, HSV, LAB): Pillow's conversion.
- 16 bits a channel: all 65,536 levels are scaled to 256, so that equal levels stay equal between images.
- Integers of 32 bits and floating-point numbers: no level of theirs means white by itself. The smallest level of the
  image becomes black, its largest white; an image of a single level becomes mid-grey. It is refused if a level is not
  finite, or if a few extreme levels would leave the rest without a picture.
- Transparency is ignored, and the stored colours are used. If they are all the same, so that the picture lies in the
  transparency alone, it is put on white, or on black if its colour is bright.
- Of an animation or a file of several pages, the first.
- The orientation tag of cameras is applied where the caller asks for it, except that Pillow always applies it to TIFF.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

from app.console.text import printable, shortened

NOT_DECODED = {
    "EPS": "a PostScript program, which would be run to draw it",
    "IPTC": "a container of other files, programs included",
    "WMF": "a list of drawing commands",
}
"""Formats that Pillow opens, and that are refused: decoding them would run what is in the file, with the reason."""

SIXTEEN_BITS = ("PNG", "PPM")
"""Formats whose levels are scaled to 16 bits where Pillow gives 32-bit integers."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transpositions that turn an image upright, by its orientation tag (EXIF 2.3, section 4.6.4)."""

BITS_PER_SAMPLE, SAMPLE_FORMAT, UNSIGNED = 258, 339, 1
"""Two tags of TIFF, and the value of the second for integers without a sign."""

LONGEST_REASON = 300
"""Characters of a reason: some decoders quote the file."""


class UnreadableImageError(ValueError):
    """An image file that cannot be decoded.

    A loader process passes its error on as the text of a traceback, of which only the last line is kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rstrip().rsplit(f"{type(self).__name__}: ", 1)[-1])


def read_image(path: str | Path, apply_orientation: bool = False) -> Image.Image:
    """Decode an image file completely, as 8-bit RGB.

    Args:
        path: the file.
        apply_orientation: turn the image upright if its camera has noted in which direction that is.

    Raises:
        UnreadableImageError: with the reason in one line, if the file is missing, truncated or not an image.
    """
    try:
        # Opening a pipe would wait for ever, and a device may have no end.
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise ValueError("not a regular file")
        with Image.open(path) as image:
            if image.format in NOT_DECODED:
                raise ValueError(f"{image.format} is not decoded: {NOT_DECODED[image.format]}")
            orientation = _orientation(image) if apply_orientation else 1
            picture = _as_rgb(image)
    # A damaged file makes Pillow's decoders raise nearly anything: RuntimeError, KeyError, struct.error. A size that is
    # too large for the memory is a MemoryError, and most likely comes from a damaged header too.
    except Exception as error:
        raise UnreadableImageError(reason(error)) from error
    if orientation in TURNS:
        return picture.transpose(TURNS[orientation])
    return picture


def reason(error: BaseException) -> str:
    """The message of an error in one line, or its kind if it has none."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # the caller names the file
    text = " ".join(str(error).split()) or type(error).__name__
    return shortened(printable(text), LONGEST_REASON)


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged notes of a camera do not make its picture unreadable
        return 1


def _as_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I;16"):
        return _scaled(np.asarray(image), _largest_level(image))
    if image.mode == "I" and image.format in SIXTEEN_BITS:
        return _scaled(np.asarray(image), 65535)
    if image.mode in ("I", "F"):
        return _stretched(_levels(image))
    if image.mode == "LAB":
        # Pillow's own conversion would have to be told which white LAB refers to; D50 is the usual one.
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")  # type: ignore[return-value]
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or (image.mode == "P" and "transparency" in image.info):
        return _without_transparency(image.convert("RGBA"))
    return image.convert("RGB")


def _scaled(levels: NDArray[Any], largest: int) -> Image.Image:
    """Levels of a format with a white of its own, `largest`; Pillow's conversion would clip them at 255."""
    eight_bits = levels.clip(0, largest).astype(np.uint32) * 255 // largest
    return Image.fromarray(eight_bits.astype(np.uint8)).convert("RGB")


def _largest_level(image: Image.Image) -> int:
    """That of a 16-bit mode; TIFF also has 12 bits, which Pillow does not scale to 16."""
    bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))
    return 4095 if tuple(bits) == (12,) else 65535


def _levels(image: Image.Image) -> NDArray[Any]:
    levels = np.asarray(image)
    sample_format = getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT, (UNSIGNED,))
    if image.format == "TIFF" and image.mode == "I" and sample_format[0] == UNSIGNED:
        # Pillow has no unsigned integers of 32 bits: those of a TIFF have wrapped around.
        return levels.view(np.uint32)
    return levels


def _stretched(levels: NDArray[Any]) -> Image.Image:
    """Levels of a format without a white of its own: from black, the smallest, to white, the largest."""
    levels = levels.astype(np.float64)
    if not np.isfinite(levels).all():
        raise ValueError("it has levels that are not finite")
    smallest, largest = levels.min(), levels.max()
    if smallest == largest:
        return Image.new("RGB", levels.shape[::-1], (128, 128, 128))
    eight_bits = ((levels - smallest) * (255 / (largest - smallest))).round().astype(np.uint8)
    darker, brighter = np.percentile(levels, (1, 99))
    if darker < brighter and len(np.unique(eight_bits[(levels >= darker) & (levels <= brighter)])) == 1:
        raise ValueError(f"a few extreme levels hide the picture: {smallest:g} to {largest:g}")
    return Image.fromarray(eight_bits).convert("RGB")


def _without_transparency(image: Image.Image) -> Image.Image:
    colours, alpha = image.convert("RGB"), image.getchannel("A")
    same_colour = all(lowest == highest for lowest, highest in colours.getextrema())
    if not same_colour or alpha.getextrema()[0] == alpha.getextrema()[1]:
        return colours
    colour = np.asarray(colours)[0, 0]
    background = Image.new("RGB", image.size, "white" if colour.mean() < 128 else "black")
    background.paste(colours, mask=alpha)
    return background
