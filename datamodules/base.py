"""What all data modules share: global batch size, loaders, and prediction on a folder."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.resumable_sampler import Augmented, EpochOrder

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for a file that it cannot decode."""


class ImageDataModule(pl.LightningDataModule):
    """Base of the data modules.

    A subclass sets `class_names`, `train_set`, `val_set` and `test_set` in `setup`, and defines `evaluate_transform`.

    Order and augmentation of the training images depend on ``seed_everything`` and the epoch only (`EpochOrder`). A
    checkpoint says how far into its epoch the run was: resumed, the run goes on with the next image, repeats none and
    leaves none out, also on another number of processes.

    Args:
        batch_size: images per step over all processes together; each process takes its share.
        num_workers: loader processes per training process.
        predict_folder: folder of images for `predict`, searched recursively.

    Attributes:
        resumes_inside_epochs: whether a checkpoint from the middle of an epoch can be gone on with.
    """

    resumes_inside_epochs = True

    class_names: list[str]
    train_set: Dataset[Any]
    val_set: Dataset[Any]
    test_set: Dataset[Any]

    def __init__(self, batch_size: int, num_workers: int, predict_folder: str | None) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"data.batch_size must be at least 1, got {batch_size}")
        if num_workers < 0:
            raise ValueError(f"data.num_workers must not be negative, got {num_workers}")
        self.batch_size, self.num_workers, self.predict_folder = batch_size, num_workers, predict_folder
        self._resumed: dict[str, int] = {}

    def evaluate_transform(self, image: Image.Image) -> Tensor:
        """An image as the network sees it in validation, ``(3, H, W)``."""
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader[Any]:
        images = len(self.train_set)  # type: ignore[arg-type]
        if images < self.batch_size:
            raise ValueError(f"the training set has {images} images, fewer than data.batch_size {self.batch_size}")
        order = EpochOrder(self.train_set, self._processes, self._rank, _seed())
        if self.trainer is not None:  # loader processes begin before Lightning tells the epoch
            order.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)
        if self._resumed:
            order.skipped_epoch = self._resumed["epoch"]
            order.skipped = self._resumed["batches"] * self.batch_size // self._processes
        return self._loader(self.train_set, sampler=order, drop_last=True)

    def state_dict(self) -> dict[str, int]:
        """How far into which epoch the training is."""
        loop = self.trainer.fit_loop  # type: ignore[union-attr]
        batches = loop.epoch_loop.batch_progress.current.processed
        return {
            "seed": _seed(),
            "epoch": self.trainer.current_epoch,  # type: ignore[union-attr]
            "batches": batches,
            "batch_size": self.batch_size,
            "epoch_is_complete": int(batches >= loop.max_batches),
        }

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on where a checkpoint was written.

        Raises:
            ValueError: if that is inside an epoch, and the batch size is another one.
        """
        if not self.trainer.training:  # type: ignore[union-attr]
            return
        size = state_dict["batch_size"]
        if not state_dict["epoch_is_complete"] and size != self.batch_size:
            raise ValueError(
                f"data.batch_size is {self.batch_size}, and {size} in the checkpoint, which is from the middle of an "
                f"epoch: go on with {size}, or from a checkpoint of the end of an epoch"
            )
        os.environ["PL_GLOBAL_SEED"] = str(state_dict["seed"])  # of the order, and of whatever else draws numbers
        self._resumed = state_dict

    def val_dataloader(self) -> DataLoader[Any]:
        return self._evaluation_loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._evaluation_loader(self.test_set)

    def predict_dataloader(self) -> DataLoader[Any]:
        if self.predict_folder is None:
            raise ValueError("predict needs a folder of images: --data.predict_folder FOLDER")
        return self._loader(FolderOfImages(self.predict_folder, self.evaluate_transform), collate_fn=collate_images)

    def _evaluation_loader(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        """Every image once over all processes: the sampler that Lightning would add repeats some to even them out."""
        processes, images = self._processes, len(dataset)  # type: ignore[arg-type]
        if processes == 1:
            return self._loader(dataset)
        if images < processes:
            # a process without a batch would leave the others waiting
            raise ValueError(f"the evaluation set has {images} images, fewer than the {processes} processes")
        sampler = UnrepeatedDistributedSampler(dataset, num_replicas=processes, rank=self._rank, shuffle=False)
        return self._loader(dataset, sampler=sampler)

    def _loader(self, dataset: Dataset[Any], **options: Any) -> DataLoader[Any]:
        if self.batch_size % self._processes:
            raise ValueError(f"data.batch_size {self.batch_size} does not divide among {self._processes} processes")
        return DataLoader(
            Augmented(dataset) if isinstance(options.get("sampler"), EpochOrder) else dataset,
            batch_size=self.batch_size // self._processes,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_obey_the_main_process_only,
            **options,
        )

    @property
    def _processes(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0


class FolderOfImages(Dataset[tuple[Tensor | None, str, str | None]]):
    """All files below a folder whose ending Pillow can read; an unreadable one is an item without image.

    Raises:
        FileNotFoundError: if the folder is missing or holds no such file.
    """

    def __init__(self, folder: str, transform: Any) -> None:
        Image.init()
        endings = {ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN}
        root = Path(folder)
        if not root.is_dir():
            raise FileNotFoundError(f"data.predict_folder {folder} is no folder")
        self.files = sorted(path for path in root.rglob("*") if path.suffix.lower() in endings and path.is_file())
        if not self.files:
            raise FileNotFoundError(f"data.predict_folder {folder} holds no images")
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor | None, str, str | None]:
        """The image, its file, and ``None``; or ``None``, the file, and what is wrong with it."""
        path = self.files[index]
        try:
            return self.transform(read_image(path)), str(path), None
        except UNREADABLE as error:
            return None, str(path), reason(error)


def _obey_the_main_process_only(_: int) -> None:
    """A signal to all processes of a run is for the main one to answer: it needs its loader to finish and save."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS does not say who sent a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _seed() -> int:
    """That of ``seed_everything``, which Lightning leaves in the environment."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def read_image(path: str | Path) -> Image.Image:
    """Decode an image file completely; grey levels of 16 bits become 8 bits.

    Raises:
        OSError: or another of `UNREADABLE`, if the file is missing, truncated or no image.
    """
    with Image.open(path) as image:
        if image.mode.startswith("I"):  # Pillow clips 16-bit grey levels instead of scaling them
            return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
        return image.copy()


def reason(error: BaseException) -> str:
    """What is wrong with a file, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def collate_images(items: list[tuple[Tensor | None, str, str | None]]) -> dict[str, Any]:
    """A batch: ``images`` (B, 3, H, W), their ``files``, and ``errors``, pairs of a file and what is wrong with it."""
    images = [image for image, _, _ in items if image is not None]
    return {
        "images": torch.stack(images) if images else torch.zeros(0, 3, 1, 1),
        "files": [file for image, file, _ in items if image is not None],
        "errors": [(file, error) for _, file, error in items if error is not None],
    }
