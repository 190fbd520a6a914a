import io

import numpy as np
import pytest
from PIL import Image, features

from datamodules.image_reading import UnreadableImageError, read_image


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_every_mode_is_read_as_rgb(tmp_path, mode):
    path = tmp_path / "image.tif"
    Image.new(mode, (9, 6)).save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (9, 6))


def damaged_avif():
    """Its decoder raises a RuntimeError, which is none of the errors that Pillow documents."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 100, np.uint8)).save(buffer, "AVIF")
    content = bytearray(buffer.getvalue())
    content[-30:] = bytes(30)
    return bytes(content)


def cut_jpeg():
    buffer = io.BytesIO()
    Image.effect_noise((32, 32), 50).save(buffer, "JPEG")
    return buffer.getvalue()[:-100]


DAMAGED = {"empty": lambda: b"", "text": lambda: b"no image", "cut": cut_jpeg, "avif": damaged_avif}


@pytest.mark.parametrize("kind", DAMAGED)
def test_whatever_is_wrong_is_one_error_of_one_line(tmp_path, kind):
    if kind == "avif" and not features.check("avif"):
        pytest.skip("Pillow is built without AVIF")
    path = tmp_path / "image.jpg"  # the content counts, not the ending
    path.write_bytes(DAMAGED[kind]())
    with pytest.raises(UnreadableImageError, match=r"^[^\n]+$"):
        read_image(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(UnreadableImageError, match="No such file"):
        read_image(tmp_path / "missing.jpg")


def test_the_error_of_a_loader_process_is_its_last_line():
    handed_on = (
        "Caught UnreadableImageError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        "datamodules.image_reading.UnreadableImageError: cannot identify image file\n\nDuring handling ...\n"
        "datamodules.image_reading.UnreadableImageError: unreadable image a.jpg: cannot identify image file\n"
    )
    assert str(UnreadableImageError(handed_on)) == "unreadable image a.jpg: cannot identify image file"
