"""Decode image files: the one place that decides that an image cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


class UnreadableImageError(ValueError):
    """An image file that cannot be decoded.

    A loader process hands its error on as the text of a traceback; of that, only the last line is kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rstrip().rsplit(f"{type(self).__name__}: ", 1)[-1])


def read_image(path: str | Path) -> Image.Image:
    """Decode an image file completely, as 8-bit RGB; grey levels of 16 bits are scaled to 8 bits.

    Raises:
        UnreadableImageError: with the reason in one line, if the file is missing, truncated or not an image.
    """
    try:
        with Image.open(path) as image:
            return _eight_bits(image).convert("RGB")
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything: RuntimeError, KeyError
        raise UnreadableImageError(reason(error)) from error


def reason(error: BaseException) -> str:
    """The message of an error in one line, or its kind if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _eight_bits(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I"):
        return image
    # Pillow's own conversion clips 16-bit grey levels at 255 instead of scaling them
    levels = np.asarray(image).clip(0, 65535) // 257
    return Image.fromarray(levels.astype(np.uint8))
