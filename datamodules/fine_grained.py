"""What the fine-grained data sets share: images of 448 x 448 pixels."""

from __future__ import annotations

from typing import Literal

from torchvision.transforms import v2

from datamodules.image_files import ImageFilesModule, pixels

SIZE = 448
"""Pixels; Song et al., ICCV 2021, appendix D."""


class FineGrained(ImageFilesModule):
    """Birds, dogs and cars: images resized to 448 x 448, whatever their shape (Song et al., ICCV 2021, appendix D).

    Training images are flipped at random: the paper does not mention it, its reference implementation does so. (That
    implementation resizes the shorter side to 448 for birds, and dogs to 512 x 512, and takes the centre; the paper
    resizes all to 448 x 448, of which a centre of 448 x 448 is the whole image.)

    Args:
        root: folder of the data set.
        batch_size: images per step over all processes together; each process takes its share.
        num_workers: loader processes per training process.
        check_counts: stop unless the numbers of classes and images are the official ones; false: use an incomplete
            or changed copy as it is, without the listed files that are missing.
        on_unreadable: at an image that cannot be decoded, error stops the run and names it; skip names it, leaves it
            out of its batch, and tells the number of such images at the end.
        predict_folder: folder of images for predict, searched recursively; null: none.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 10,
        num_workers: int = 4,
        check_counts: bool = True,
        on_unreadable: Literal["error", "skip"] = "error",
        predict_folder: str | None = None,
    ) -> None:
        super().__init__(root, batch_size, num_workers, check_counts, on_unreadable, predict_folder)
        resize = [v2.PILToTensor(), v2.Resize((SIZE, SIZE))]
        self.train_transform = v2.Compose([*resize, v2.RandomHorizontalFlip(), *pixels(self.mean, self.std)])
        self.val_transform = v2.Compose([*resize, *pixels(self.mean, self.std)])
