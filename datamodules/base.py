"""The base class of all data modules: global batch size, loaders, and resuming mid-epoch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from datamodules.class_names import describe_renamed_classes
from datamodules.loader_workers import check_room_for_queues, obey_the_main_process_only
from datamodules.prediction_folder import PredictionFolder, collate_predictions
from datamodules.resumable_sampler import ResumableSampler, SeededDataset
from datamodules.training_position import TrainingList, TrainingPosition


class ImageDataModule(pl.LightningDataModule):
    """The base class of all data modules.

    A subclass sets `class_names` in its constructor or as a property, `train_set`, `val_set` and `test_set` in `setup`,
    and defines `evaluate_transform`.

    The order and augmentation of the training images depend only on `seed` and the epoch (`ResumableSampler`). A
    checkpoint says how far into its epoch the run was: a resumed run continues with the next image, repeats none and
    leaves none out, even on another number of processes.

    Args:
        batch_size: images per step over all processes together; each process takes its share.
        num_workers: loader processes per training process.
        predict_folder: folder of images for `predict`, searched recursively.

    Attributes:
        class_names: one name per label; known before `setup`, because the model may take its number of classes from it.
        resumes_inside_epochs: whether a run can be resumed from a mid-epoch checkpoint.
        collate: makes a batch of training or evaluation from its items.
        apply_orientation: whether image files are turned upright that their camera has marked otherwise.
    """

    resumes_inside_epochs = True
    apply_orientation = False
    collate: Callable[[list[Any]], Any] = staticmethod(default_collate)

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
        self._position: TrainingPosition | None = None
        self._resuming_trainer: pl.Trainer | None = None
        self._training_list: TrainingList | None = None

    @property
    def seed(self) -> int:
        """The seed of the run: that of the checkpoint it is resumed from, else that of ``seed_everything``.

        Whatever draws random numbers in training takes its seed here, the model for its dropout too
        (``trainer.datamodule.seed``), so that a resumed run draws what the interrupted one would have drawn.
        """
        if self._resumed is not None:
            return self._resumed.seed
        # Lightning's seed_everything leaves the seed there. It is only read here: nobody else writes it.
        return int(os.environ.get("PL_GLOBAL_SEED", "0"))

    def evaluate_transform(self, image: Image.Image) -> Tensor:
        """An image as the network sees it in validation, ``(3, H, W)``."""
        raise NotImplementedError

    def training_list(self) -> bytes:
        """Files and labels of the training images, to recognise a list that has changed; here only their number is."""
        return b""

    def train_dataloader(self) -> DataLoader[Any]:
        images = len(self.train_set)  # type: ignore[arg-type]
        if images < self.batch_size:
            raise ValueError(f"the training set has {images} images, fewer than data.batch_size {self.batch_size}")
        # Kept for `state_dict`: hashing a million names takes too long to be done at every save.
        self._training_list = self._list_training_images()
        sampler = ResumableSampler(self.train_set, self._processes, self._rank, self.seed)
        if self.trainer is not None:  # loader processes start before Lightning sets the epoch
            sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)
        if self._resumed is not None:
            # Batches are counted over all processes: their number may have changed since.
            sampler.resume(self._resumed.epoch, self._resumed.batches * self.batch_size // self._processes)
        # A smaller last batch would have noisier statistics, and other shapes on several processes.
        return self._loader(SeededDataset(self.train_set), sampler=sampler, drop_last=True)

    def state_dict(self) -> dict[str, Any]:
        """The `TrainingPosition` and the names of the classes, for a checkpoint."""
        loop = self.trainer.fit_loop  # type: ignore[union-attr]
        batches = loop.epoch_loop.batch_progress.current.processed
        position = TrainingPosition(
            seed=self.seed,
            epoch=self.trainer.current_epoch,  # type: ignore[union-attr]
            batches=batches,
            batch_size=self.batch_size,
            epoch_is_complete=int(batches >= loop.max_batches),
        )
        state = asdict(position)
        if self._training_list is not None:
            state.update(asdict(self._training_list))
        state["class_names"] = list(self.class_names)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume where a checkpoint was written; in evaluation and prediction, compare the names of the classes.

        Raises:
            ValueError: if that is mid-epoch, and batch size or training images are not those of the checkpoint.
        """
        if not self.trainer.training:  # type: ignore[union-attr]
            # Evaluation and prediction draw nothing, and may use other images, but of the same classes.
            difference = describe_renamed_classes(state_dict.get("class_names"), self.class_names)
            if difference is not None:
                rank_zero_warn(f"the checkpoint's classes are not those of the data: {difference}")
            return
        position = TrainingPosition.from_state(state_dict)
        position.check(self.batch_size, self._list_training_images())
        if position.seed != self.seed:
            rank_zero_info(f"seed_everything: the seed of the checkpoint is used, {position.seed}, not {self.seed}")
        self._position, self._resuming_trainer = position, self.trainer

    def val_dataloader(self) -> DataLoader[Any]:
        return self._evaluation_loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._evaluation_loader(self.test_set)

    def predict_dataloader(self) -> DataLoader[Any]:
        if self.predict_folder is None:
            raise ValueError("predict needs a folder of images: --data.predict_folder FOLDER")
        images = PredictionFolder(self.predict_folder, self.evaluate_transform, self.apply_orientation)
        return self._loader(images, collate_fn=collate_predictions)

    def _list_training_images(self) -> TrainingList:
        images = len(self.train_set)  # type: ignore[arg-type]
        return TrainingList.of(images, self.class_names, self.training_list())

    def _evaluation_loader(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        """A loader of every image once over all processes; the sampler that Lightning would add repeats some."""
        processes, images = self._processes, len(dataset)  # type: ignore[arg-type]
        if processes == 1:
            return self._loader(dataset)
        if images < processes:
            # A process without a batch would leave the others waiting.
            raise ValueError(f"the evaluation set has {images} images, fewer than the {processes} processes")
        sampler = UnrepeatedDistributedSampler(dataset, num_replicas=processes, rank=self._rank, shuffle=False)
        return self._loader(dataset, sampler=sampler)

    def _loader(
        self, dataset: Dataset[Any], collate_fn: Callable[[list[Any]], Any] | None = None, **options: Any
    ) -> DataLoader[Any]:
        if self.batch_size % self._processes:
            raise ValueError(f"data.batch_size {self.batch_size} does not divide among {self._processes} processes")
        if self.num_workers:
            check_room_for_queues(self.num_workers)
        return DataLoader(
            dataset,
            batch_size=self.batch_size // self._processes,
            num_workers=self.num_workers,
            collate_fn=collate_fn or self.collate,
            # Starting new processes for every epoch would take seconds each time.
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=obey_the_main_process_only,
            **options,
        )

    @property
    def _resumed(self) -> TrainingPosition | None:
        """Where this training was resumed; another trainer may begin anew with the same object."""
        return self._position if self._resuming_trainer is self.trainer else None

    @property
    def _processes(self) -> int:
        if self.trainer is None:  # in a notebook, loaders can be created without one
            return 1
        return self.trainer.world_size

    @property
    def _rank(self) -> int:
        if self.trainer is None:
            return 0
        return self.trainer.global_rank
