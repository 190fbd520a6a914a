import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import Textures
from datamodules.prediction_folder import PredictionFolder, collate_predictions


def test_every_format_is_found_and_files_that_are_none_are_not(tmp_path):
    (tmp_path / "below").mkdir()
    image = Image.effect_noise((60, 60), 50)
    for name in ("a.png", "b.jpg", "c.JPEG", "d.webp", "e.gif", "f.tiff", "below/g.bmp"):
        image.save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    folder = PredictionFolder(str(tmp_path), Textures().evaluate_transform)
    assert len(folder) == 7
    for index in range(7):
        assert folder[index].error is None


def test_unreadable_files_are_named_and_the_others_kept(tmp_path):
    Image.effect_noise((90, 90), 50).save(tmp_path / "good.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:900])
    (tmp_path / "empty.png").touch()
    folder = PredictionFolder(str(tmp_path), Textures().evaluate_transform)
    batch = collate_predictions([folder[i] for i in range(3)])
    assert batch["images"].shape == (1, 3, 48, 48)
    assert [file.rsplit("/", 1)[1] for file in batch["files"]] == ["good.jpg"]
    assert [file.rsplit("/", 1)[1] for file, _ in batch["errors"]] == ["cut.jpg", "empty.png"]
    assert all(reason and "\n" not in reason for _, reason in batch["errors"])


def test_a_batch_of_unreadable_files_only():
    batch = collate_predictions([(None, "a.png", "broken")])
    assert batch["images"].shape[:2] == (0, 3)


def test_16_bit_grey_levels_are_scaled_not_clipped(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 60))
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "a8.png")
    Image.fromarray((pixels * 257).astype(np.uint16)).save(tmp_path / "b16.png")
    folder = PredictionFolder(str(tmp_path), Textures().evaluate_transform)
    torch.testing.assert_close(folder[0][0], folder[1][0])


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_images(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=f"{name} (is not a folder|holds no images)"):
        PredictionFolder(str(tmp_path / name), None)
