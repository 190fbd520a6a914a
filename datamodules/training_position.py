"""The position of a run in its training, as its checkpoints keep it, and whether the run can be resumed there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from pytorch_lightning.utilities import rank_zero_warn


@dataclass(frozen=True)
class TrainingList:
    """A summary of the list of training images: adding or removing images changes the order of all of them.

    Attributes:
        images: their number.
        fingerprint: a hash of the class names and of what the data set lists.
    """

    images: int
    fingerprint: str

    @classmethod
    def of(cls, images: int, class_names: Iterable[str], listed: bytes) -> TrainingList:
        """The list of `images` images; `listed` stands for their files and labels."""
        digest = hashlib.blake2b(listed, digest_size=16)
        for name in class_names:
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
        return cls(images, digest.hexdigest())


@dataclass(frozen=True)
class TrainingPosition:
    """The epoch of a run and its position in it. Checkpoints hold only plain types, so the flag is 0 or 1.

    Attributes:
        seed: seed of the run.
        epoch: number of the epoch, from 0.
        batches: batches of the epoch that are done.
        batch_size: images per step over all processes together.
        epoch_is_complete: 1 at the end of an epoch, 0 mid-epoch.
        images: number of training images; ``None`` in checkpoints of earlier versions.
        fingerprint: that of the list of training images; ``None`` in checkpoints of earlier versions.
    """

    seed: int
    epoch: int
    batches: int
    batch_size: int
    epoch_is_complete: int
    images: int | None = None
    fingerprint: str | None = None

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> TrainingPosition:
        """The position in the state of a data module, which holds other entries too.

        Raises:
            ValueError: if one is missing.
        """
        known: dict[str, Any] = {}
        for field in fields(cls):
            if field.name in state:
                known[field.name] = state[field.name]
            elif field.default is MISSING:
                raise ValueError(f"the checkpoint does not say {field.name} of its training data: it is damaged")
        return cls(**known)

    @property
    def is_mid_epoch(self) -> bool:
        """Whether a part of the epoch is done; none is before its first batch, where tools of Lightning save too."""
        return self.batches > 0 and not self.epoch_is_complete

    def check(self, batch_size: int, training_list: TrainingList | None) -> None:
        """Check that a run can be resumed here.

        At the end of an epoch, a training set that has changed is only worth a warning.

        Raises:
            ValueError: mid-epoch, if the batch size or the list of training images has changed.
        """
        if self.is_mid_epoch and batch_size != self.batch_size:
            raise ValueError(
                f"data.batch_size is {batch_size}, and {self.batch_size} in the checkpoint, which is from the middle "
                f"of an epoch: resume with {self.batch_size}, or from a checkpoint of the end of an epoch"
            )
        difference = self._difference(training_list)
        if difference is None:
            return
        if self.is_mid_epoch:
            raise ValueError(
                f"{difference}; the checkpoint is from the middle of an epoch, and the rest of that epoch would be "
                "others: restore the training set, or resume from a checkpoint of the end of an epoch"
            )
        rank_zero_warn(f"{difference}: the run is resumed with the changed training set")

    def _difference(self, now: TrainingList | None) -> str | None:
        if now is None or self.images is None:
            return None
        if now.images != self.images:
            return f"the training set has {now.images} images, and {self.images} in the checkpoint"
        if now.fingerprint != self.fingerprint:
            return f"the training set has {now.images} images as in the checkpoint, but other files, labels or classes"
        return None
