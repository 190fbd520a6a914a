"""Decoding image files: every mode keeps its picture, and whatever cannot be read is one error of one line."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, features

from datamodules.image_reading import NOT_DECODED, TURNS, UnreadableImageError, read_image
from tests.conftest import ROOT

SIDE = 64


def wave():
    """A picture with structure, of levels from 0 to 1."""
    x = np.linspace(0, 1, SIDE)
    levels = np.add.outer(np.sin(6 * x), np.cos(5 * x))
    return (levels - levels.min()) / np.ptp(levels)


def grey():
    return Image.fromarray((wave() * 255).astype(np.uint8))


def similarity(image, expected=None):
    """The correlation of an image with the wave."""
    assert image.mode == "RGB"
    levels = np.asarray(image.convert("L"), dtype=float)
    return np.corrcoef(levels.ravel(), (wave() if expected is None else expected).ravel())[0, 1]


def lab():
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(grey().convert("RGB"), *profiles, outputMode="LAB")


def palette_with_transparency():
    image = grey().convert("P")
    image.info["transparency"] = bytes(range(256))
    return image


EIGHT_BITS = {
    "L.png": grey,
    "LA.png": lambda: grey().convert("LA"),
    "PA.tif": lambda: grey().convert("LA").convert("PA"),
    "P.gif": lambda: grey().convert("P"),
    "P.png": palette_with_transparency,
    "RGB.png": lambda: grey().convert("RGB"),
    "RGBA.png": lambda: grey().convert("RGBA"),
    "RGBX.tif": lambda: grey().convert("RGBX"),
    "RGBX.jpg": lambda: grey().convert("RGBX"),
    "CMYK.tif": lambda: grey().convert("RGB").convert("CMYK"),
    "CMYK.jpg": lambda: grey().convert("RGB").convert("CMYK"),
    "YCbCr.tif": lambda: grey().convert("RGB").convert("YCbCr"),
    "LAB.tif": lab,
    "webp.webp": lambda: grey().convert("RGBA"),
    "jp2.jp2": grey,
}


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_eight_bits_a_channel(tmp_path, name):
    EIGHT_BITS[name]().save(tmp_path / name)
    image = read_image(tmp_path / name)
    assert similarity(image) > 0.99
    assert abs(np.asarray(image, dtype=float).mean() - 255 * wave().mean()) < 3  # as bright as the source


def test_one_bit_a_pixel(tmp_path):
    grey().convert("1").save(tmp_path / "1.png")
    expected = np.asarray(grey().convert("1"), dtype=float)
    assert similarity(read_image(tmp_path / "1.png"), expected) > 0.99


def write_tiff(levels, **options):
    def write(path):
        tifffile.imwrite(path, levels, **options)

    return write


def write_pillow(levels):
    return lambda path: Image.fromarray(levels).save(path)


LEVELS = {
    "16 bits.png": write_pillow((wave() * 65535).astype(np.uint16)),
    "16 bits.pgm": write_pillow((wave() * 65535).astype(np.uint16)),
    "16 bits, little.tif": write_tiff((wave() * 65535).astype("<u2"), byteorder="<"),
    "16 bits, big.tif": write_tiff((wave() * 65535).astype(">u2"), byteorder=">"),
    "16 bits, colour.tif": write_tiff(np.repeat((wave() * 65535).astype(np.uint16)[..., None], 3, -1)),
    "16 bits with a sign.tif": write_tiff((wave() * 65535 - 32768).astype(np.int16)),
    "32 bits, small.tif": write_tiff((wave() * 255).astype(np.uint32)),
    "32 bits, 16 used.tif": write_tiff((wave() * 65535).astype(np.uint32)),
    "32 bits, all.tif": write_tiff((wave() * (2**32 - 1)).astype(np.uint32)),
    "32 bits, offset.tif": write_tiff((wave() * 200 + 10**9).astype(np.int32)),
    "32 bits with a sign.tif": write_tiff(((wave() - 0.5) * 2**31).astype(np.int32)),
    "floats to 1.tif": write_tiff(wave().astype(np.float32)),
    "floats to 255.tif": write_tiff((wave() * 255).astype(np.float32)),
    "tiny floats.tif": write_tiff((wave() * 1e-6).astype(np.float32)),
    "negative floats.tif": write_tiff((wave() * 30 - 1000).astype(np.float32)),
    "large floats.tif": write_tiff(((wave() - 0.5) * 6e38).astype(np.float32)),
    "floats of 16 bits.tif": write_tiff(wave().astype(np.float16)),
    "floats of 64 bits.tif": write_tiff(wave().astype(np.float64)),
    "floats.pfm": write_pillow(wave().astype(np.float32)),
    "floats.im": write_pillow(wave().astype(np.float32)),
}


@pytest.mark.parametrize("name", LEVELS)
def test_more_than_eight_bits_keep_the_picture_or_are_refused(tmp_path, name):
    LEVELS[name](tmp_path / name)
    try:
        image = read_image(tmp_path / name)
    except UnreadableImageError:
        assert name in ("floats of 16 bits.tif", "floats of 64 bits.tif")  # Pillow opens them in newer versions only
        return
    assert similarity(image) > 0.99
    assert np.ptp(np.asarray(image)) > 200


def test_12_bits_of_a_tiff_are_scaled(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff_of_12_bits((wave() * 4095).astype(np.uint16)))
    image = read_image(tmp_path / "a.tif")
    assert similarity(image) > 0.99
    assert np.ptp(np.asarray(image)) > 200


def tiff_of_12_bits(levels):
    """Two pixels in three bytes, without compression."""
    pairs = levels.reshape(-1, 2).astype(np.uint32)
    whole = (pairs[:, 0] << 12) | pairs[:, 1]
    data = np.stack([whole >> 16, whole >> 8 & 255, whole & 255], -1).astype(np.uint8).tobytes()
    tags = {256: SIDE, 257: SIDE, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: SIDE, 279: len(data)}
    head = b"II*\0" + (8 + len(data)).to_bytes(4, "little")
    entries = b""
    for tag, value in tags.items():
        entries += tag.to_bytes(2, "little") + (4).to_bytes(2, "little") + (1).to_bytes(4, "little")
        entries += value.to_bytes(4, "little")
    return head + data + len(tags).to_bytes(2, "little") + entries + bytes(4)


def test_equal_levels_of_16_bits_stay_equal_between_images(tmp_path):
    for value in (200 * 257 + 30, 10):
        Image.new("I;16", (4, 4), value).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (value // 257,) * 3


def test_a_single_level_without_a_white_of_its_own_is_grey(tmp_path):
    for levels in (np.full((4, 6), 0.3, np.float32), np.full((4, 6), 7, np.int32)):
        tifffile.imwrite(tmp_path / "a.tif", levels)
        image = read_image(tmp_path / "a.tif")
        assert image.size == (6, 4)
        assert image.getextrema() == ((128, 128),) * 3


@pytest.mark.parametrize(
    ("extreme", "message"),
    [(np.nan, "levels that are not finite"), (np.inf, "not finite"), (1e30, "a few extreme levels hide the picture")],
)
def test_levels_that_would_hide_the_picture_are_refused(tmp_path, extreme, message):
    levels = wave().astype(np.float32)
    levels[0, 0] = extreme
    tifffile.imwrite(tmp_path / "a.tif", levels)
    with pytest.raises(UnreadableImageError, match=message):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("colour", [0, 255])
def test_a_picture_in_the_transparency_alone(tmp_path, colour):
    image = Image.new("RGBA", (SIDE, SIDE), (colour,) * 3)
    image.putalpha(grey())
    image.save(tmp_path / "a.png")
    assert abs(similarity(read_image(tmp_path / "a.png"))) > 0.99


def test_transparency_is_ignored_where_there_are_colours(tmp_path):
    image = grey().convert("RGBA")
    image.putalpha(Image.effect_noise((SIDE, SIDE), 90))
    image.save(tmp_path / "a.png")
    assert similarity(read_image(tmp_path / "a.png")) > 0.999


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_the_first_of_several_frames(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    grey().convert("RGB").save(path, save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE))])
    assert similarity(read_image(path)) > 0.9


@pytest.mark.parametrize("tag", [*TURNS, 1, 9])
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_orientation_tags_are_applied_where_asked_for(tmp_path, tag, ending):
    """Written as a camera that is held sideways does: the stored picture is turned, and the tag says how."""
    upright = grey().convert("RGB").crop((0, 0, SIDE, 40))
    back = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(tag, TURNS.get(tag))
    stored = upright if back is None else upright.transpose(back)
    exif = Image.Exif()
    exif[0x0112] = tag
    stored.save(tmp_path / f"a.{ending}", exif=exif, quality=98)
    seen = read_image(tmp_path / f"a.{ending}", apply_orientation=True)
    assert seen.size == upright.size
    assert similarity(seen, wave()[:40]) > 0.99
    untouched = np.asarray(read_image(tmp_path / f"a.{ending}"), dtype=float)
    assert np.abs(untouched - np.asarray(stored, dtype=float)).mean() < 3


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


DAMAGED = {
    "empty": lambda: b"",
    "text": lambda: b"no image",
    "cut": cut_jpeg,
    "avif": damaged_avif,
    "no pixels": lambda: b"P5 0 0 255\n",
    "size beyond all memory": lambda: b"P5 2000000000 2000000000 255\n",
    "control characters": lambda: b"P5 \x1b[2J 4 255\n",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_whatever_is_wrong_is_one_printable_line(tmp_path, kind):
    if kind == "avif" and not features.check("avif"):
        pytest.skip("Pillow is built without AVIF")
    path = tmp_path / "image.jpg"  # the content counts, not the ending
    path.write_bytes(DAMAGED[kind]())
    with pytest.raises(UnreadableImageError) as caught:
        read_image(path)
    assert str(caught.value).isprintable()
    assert 0 < len(str(caught.value)) <= 300


def loop(path):
    path.symlink_to(path)


SPECIAL = {
    "folder": (lambda path: path.mkdir(), "not a regular file"),
    "pipe": (os.mkfifo, "not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "loop": (loop, "symbolic links"),
    "missing": (lambda path: None, "No such file"),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_not_a_file_is_not_waited_for(tmp_path, kind):
    path = tmp_path / "image.jpg"
    make, message = SPECIAL[kind]
    make(path)
    with pytest.raises(UnreadableImageError, match=message):
        read_image(path)


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(UnreadableImageError, match="File name too long"):
        read_image(tmp_path / ("a" * 300))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_a_file_that_may_not_be_read(tmp_path):
    grey().save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    code = (
        f"import os; from datamodules.image_reading import read_image; os.chdir({str(tmp_path)!r}); os.setuid(65534)\n"
        "try: read_image('a.png')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert run.stdout.strip() == "UnreadableImageError Permission denied", run.stderr


def test_formats_that_are_programs_are_refused(tmp_path):
    grey().convert("RGB").save(tmp_path / "image.jpg", "EPS")
    assert set(NOT_DECODED) == {"EPS", "IPTC", "WMF"}
    with pytest.raises(UnreadableImageError, match="EPS is not decoded: a PostScript program"):
        read_image(tmp_path / "image.jpg")


def test_the_error_of_a_loader_process_is_its_last_line():
    handed_on = (
        "Caught UnreadableImageError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        "datamodules.image_reading.UnreadableImageError: cannot identify image file\n\nDuring handling ...\n"
        "datamodules.image_reading.UnreadableImageError: unreadable image a.jpg: cannot identify image file\n"
    )
    assert str(UnreadableImageError(handed_on)) == "unreadable image a.jpg: cannot identify image file"
