"""The image classifier: backbone, pooling head, linear classifier, and how they are trained.

Shapes: B batch, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import OptimizerCallable, ReduceLROnPlateau
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR
from torchmetrics.classification import MulticlassAccuracy

from app.layers import build_pooling, remove_weight_treatment, treat_weight
from app.layers.weight_treatments import Treatment, convert_state, original_weight, treated_layers, treatment_of
from app.models.backbones import Downsampling, Stem, build_backbone
from app.models.pretrained import initialise, weights_for


class Classifier(pl.LightningModule):
    """Image classification with global covariance pooling (Song et al., ICCV 2021, appendix D).

    Args:
        num_classes: number of classes of the data set.
        backbone: alexnet, alexnet_bn, resnet18, resnet34, resnet50, resnet101, resnet152, mobilenet_v2 or compact.
        meta_layer: how features are pooled: gap (global average pooling) or the square root of their covariance by
            isqrt-cov, ns-minimax, mpn-cov, svd-exact, svd-pade, svd-taylor, svd-trunc, svd-topn, svd-newton or svd-pi.
        dim: channels that the covariance is taken of, after a 1x1 convolution with batch norm and ReLU; several
            numbers: as many of those, one after the other (Wang et al., CVPR 2020, has 256 and 128); null: none. The
            classifier then has dim (dim + 1) / 2 inputs. Not used by gap.
        meta_options: options of the meta-layer, such as {taylor_degree: 50} or {iterations: 7}.
        spectral_dtype: precision of the covariance and its square root.
        downsampling: of the backbone's last stage: removed, kept, or max-pool; null: removed with covariance pooling,
            kept with gap.
        stem: imagenet, or cifar (3x3, stride 1, no max-pooling; ResNets) for 32x32 images.
        decorrelation: method of a decorrelated batch norm in place of the backbone's first batch norm, one of those of
            meta_layer but gap and svd-topn (Song et al., ECCV 2022); null: none. It usually goes with meta_layer gap.
        decorrelation_options: options of that layer, such as {groups: 4, eps: 1e-3, synchronised: true}.
        weight_treatment: of the weight of the pre-SVD layer, the convolution before the decorrelated batch norm, or
            without one before the covariance pooling: spectral (W over its largest singular value) or orthogonal
            (exp(W - W^T)); null: none.
        weights: weights of the backbone: a file of torchvision's, or a name such as IMAGENET1K_V1; null: random.
        init_from: start from the weights in this file: a checkpoint of this program, of fast-MPN-COV or
            DifferentiableSVD, or torchvision's weights. What does not fit, such as a classifier of other classes, is
            left as initialised and named, and validate and test refuse to run with it. Of a checkpoint of this
            program, the command line also takes backbone and pooling, but for what stands on the command line itself.
            Null: random weights.
        init_from_required: nothing of that file fits is an error; false: a warning.
        optimizer: any optimizer of torch; the default is the papers' SGD.
        classifier_learning_rate: learning rate of the linear classifier; null: that of the optimizer.
        lr_scheduler: any schedule of torch, stepped once an epoch; null: the papers' decay by 10 at epochs 30 and 45.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        meta_layer: str = "isqrt-cov",
        dim: int | list[int] | None = 256,
        meta_options: dict[str, Any] | None = None,
        spectral_dtype: Literal["float32", "float64"] = "float64",
        downsampling: Downsampling | None = None,
        stem: Stem = "imagenet",
        decorrelation: str | None = None,
        decorrelation_options: dict[str, Any] | None = None,
        weight_treatment: Treatment | None = None,
        weights: str | None = None,
        init_from: str | None = None,
        init_from_required: bool = True,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-4),
        classifier_learning_rate: float | None = None,
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        # what checkpoints keep must be plain; optimizer and schedule are kept by `_training_setup`
        # where the weights came from is no property of the network: it has them
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler", "weights", "init_from", "init_from_required"])
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        if weights is not None and init_from is not None:
            raise ValueError("model.weights and model.init_from are two sources of weights: give one")
        self.num_classes = num_classes
        self._training_setup: dict[str, str] = {}
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.classifier_learning_rate = classifier_learning_rate
        if downsampling is None:
            downsampling = "kept" if meta_layer == "gap" else "removed"
        self.backbone = build_backbone(backbone, downsampling, stem, weights)
        self.pooling = build_pooling(meta_layer, self.backbone.out_channels, dim, meta_options, spectral_dtype)
        self.classifier = nn.Linear(self.pooling.out_features, num_classes)
        if decorrelation is not None:
            self.backbone.decorrelate(decorrelation, decorrelation_options)
        elif decorrelation_options:
            raise ValueError(
                "decorrelation_options are given without decorrelation: name a method, such as svd-exact, or set them "
                "to null, --model.decorrelation_options null"
            )
        self.separate_pre_svd_layer = False
        if weight_treatment is not None:
            self._treat_weight(weight_treatment)
        self.register_load_state_dict_pre_hook(_convert_weight_treatment)
        self.metrics = nn.ModuleDict(
            {
                stage: nn.ModuleDict(
                    {f"top{k}": MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro") for k in ks}
                )
                # "train" is the name of a method of every module
                for stage, ks in (("train_", (1,)), ("val_", (1, 5)), ("test_", (1, 5)))
            }
        )
        self._random_layers: list[str] = []
        if init_from is not None:
            self._initialise(init_from, init_from_required)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` to logits ``(B, K)``."""
        return self.classifier(self.pooling(self.backbone(images)))

    @property
    def pre_svd_layer(self) -> nn.Conv2d | None:
        """The convolution whose output the covariance is taken of; ``None`` for networks without a covariance.

        Where a network has both a decorrelated batch norm and covariance pooling, it is that of the former.
        """
        if (convolution := self.backbone.decorrelated_convolution) is not None:
            return convolution
        if self.pooling.meta_layer == "gap":
            return None
        return self.pooling.pre_svd_layer or self.backbone.last_convolution

    def _treat_weight(self, weight_treatment: Treatment) -> None:
        if self.pre_svd_layer is None:
            raise ValueError(
                f"weight_treatment {weight_treatment} has no layer to act on: this model takes no covariance "
                "(meta_layer gap without decorrelation)"
            )
        treat_weight(self.pre_svd_layer, weight_treatment)

    def _initialise(self, path: str, required: bool) -> None:
        state = weights_for(self, path, resnet=self.hparams["backbone"].startswith("resnet"))
        _convert_weight_treatment(self, state, "")
        found = initialise(self, state, path, required=required)
        self._random_layers = found.misfits + found.missing

    def remove_weight_treatment(self) -> None:
        """Make the treated weight an ordinary one, for inference; checkpoints then name no treatment."""
        if self.pre_svd_layer is not None:
            remove_weight_treatment(self.pre_svd_layer)
        self.hparams["weight_treatment"] = None

    def use_meta_layer(self, meta_layer: str, meta_options: dict[str, Any] | None = None) -> None:
        """Pool by another meta-layer from now on; checkpoints written from now on name it."""
        self.pooling.use_meta_layer(meta_layer, meta_options)
        self.hparams["meta_layer"], self.hparams["meta_options"] = meta_layer, meta_options

    def setup(self, stage: str) -> None:
        """Check that data and model agree on the classes, and that there is something to evaluate."""
        if stage != "fit" and self._random_layers:
            raise ValueError(
                f"model.init_from: the network would be evaluated with random weights: {self._random_layers[0]} "
                f"and {len(self._random_layers) - 1} more are not in the file, or of another shape"
            )
        names = getattr(self.trainer.datamodule, "class_names", None)  # type: ignore[attr-defined]
        if names is not None and len(names) != self.num_classes:
            raise ValueError(f"the data has {len(names)} classes, model.num_classes is {self.num_classes}")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        return self._step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        return self._step(batch, "test")

    def predict_step(self, batch: dict[str, Any], batch_index: int) -> dict[str, Any]:
        """Probabilities ``(B, K)`` beside what the loader says of the files."""
        images = batch["images"]
        probabilities = self(images).softmax(-1) if len(images) else images.new_zeros(0, self.num_classes)
        return {"probabilities": probabilities.float().cpu(), "files": batch["files"], "errors": batch["errors"]}

    def loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of a batch, and its logits ``(B, K)``; nothing is logged or counted."""
        images, labels = batch
        logits = self(images)
        return nn.functional.cross_entropy(logits, labels), logits

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        _, labels = batch
        in_training = stage == "train"
        loss, logits = self.loss(batch)
        # the same keys on every rank, or processes wait for each other
        self.log(
            f"{stage}/loss",
            loss,
            on_step=in_training,
            on_epoch=not in_training,
            prog_bar=True,
            sync_dist=True,
            # a float, because Lightning 2.6 averages the counts of the processes and rounds an integer down
            batch_size=float(len(labels)),  # type: ignore[arg-type]
        )
        for name, metric in self.metrics[f"{stage}_"].items():
            metric(logits, labels)
            self.log(f"{stage}/{name}", metric, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(labels))
        return loss

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        self.seed_step(batch_index)

    def seed_step(self, batch_index: int) -> None:
        """Dropout, where a network has it, draws the same numbers in a resumed run as in an uninterrupted one."""
        numbers = [int(os.environ.get("PL_GLOBAL_SEED", 0)), self.trainer.current_epoch, batch_index, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))

    def configure_optimizers(self) -> dict[str, Any]:
        classifier = list(self.classifier.parameters())
        rest = [*self.backbone.parameters(), *self.pooling.parameters()]
        groups: list[dict[str, Any]] = [{"params": rest}, {"params": classifier}]
        if self.classifier_learning_rate is not None:
            groups[1]["lr"] = self.classifier_learning_rate
        if self.separate_pre_svd_layer and self.pre_svd_layer is not None:
            weight = original_weight(self.pre_svd_layer)
            groups[0]["params"] = [parameter for parameter in rest if parameter is not weight]
            groups.append({"params": [weight]})
        optimizer = self.optimizer(groups)
        scheduler = self.lr_scheduler(optimizer) if self.lr_scheduler else MultiStepLR(optimizer, [30, 45], gamma=0.1)
        self._training_setup = self._describe(optimizer, scheduler)
        configuration: dict[str, Any] = {"scheduler": scheduler, "interval": "epoch"}
        if isinstance(scheduler, ReduceLROnPlateau):
            configuration["monitor"] = scheduler.monitor
            configuration["frequency"] = NEVER
        return {"optimizer": optimizer, "lr_scheduler": configuration}

    def on_train_epoch_end(self) -> None:
        """Lightning would step a plateau schedule after the epoch is saved: a resumed run would lack that step."""
        if not self.trainer.is_last_batch:  # the end of the run inside an epoch
            return
        for scheduler in self.trainer.lr_scheduler_configs:
            if isinstance(plateau := scheduler.scheduler, ReduceLROnPlateau):
                if (value := self.trainer.callback_metrics.get(plateau.monitor)) is None:
                    known = ", ".join(sorted(self.trainer.callback_metrics))
                    raise ValueError(f"lr_scheduler.monitor {plateau.monitor} is not measured; there are {known}")
                plateau.step(value)

    def _describe(self, optimizer: Optimizer, scheduler: LRScheduler) -> dict[str, str]:
        """What must not change when a run is gone on with, as plain text."""
        settings = _describe(optimizer, scheduler)
        settings["weight_treatment"] = str(self.pre_svd_layer and treatment_of(self.pre_svd_layer))
        settings["OptimalLearningRate"] = "in use" if self.separate_pre_svd_layer else "not in use"
        return settings

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["training_setup"] = self._training_setup

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resuming restores optimizer and schedule as they were stored: stop where the command asks for others."""
        if self._trainer is None or not self.trainer.training or "training_setup" not in checkpoint:
            return
        stored, here = checkpoint["training_setup"], self._describe(*_pair(self.configure_optimizers()))
        # where these differ, the settings need not be told
        kinds = [kind for kind in KINDS if stored.get(kind) != here.get(kind)]
        differences = [
            f"{key}: {stored.get(key, 'nothing')} in the checkpoint, {here.get(key, 'nothing')} now"
            for key in kinds or sorted(stored.keys() | here.keys())
            if stored.get(key) != here.get(key)
        ]
        if differences:
            raise ValueError(
                f"cannot resume with another optimizer, schedule or treatment ({'; '.join(differences)}): "
                "use the settings of the checkpoint, or start a new run without --ckpt_path"
            )


def _convert_weight_treatment(model: Classifier, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let checkpoints of models with and without a treatment of the weight load into each other."""
    own, treated = model.pre_svd_layer, treated_layers(state)
    for name, module in model.named_modules():
        layer = f"{prefix}{name}."
        # what was treated may be no layer before a covariance here
        if isinstance(module, nn.Conv2d) and (module is own or layer in treated):
            convert_state(state, layer, module)


NEVER = 2**62
"""Epochs between two steps of a schedule that Lightning leaves alone."""

KINDS = ("optimizer", "lr_scheduler", "weight_treatment", "OptimalLearningRate")
"""Entries of the training setup beside which the others need not be told."""

DERIVED = ("params", "initial_lr", "base_lrs")
"""Entries of an optimizer or schedule that say nothing of their own about its settings."""


def _pair(configuration: dict[str, Any]) -> tuple[Optimizer, LRScheduler]:
    return configuration["optimizer"], configuration["lr_scheduler"]["scheduler"]


def _describe(optimizer: Optimizer, scheduler: LRScheduler) -> dict[str, str]:
    """The settings of a fresh optimizer and schedule as plain text, to compare two runs by."""
    settings = {"optimizer": type(optimizer).__name__, "lr_scheduler": type(scheduler).__name__}
    for index, group in enumerate(optimizer.param_groups):
        settings.update({f"optimizer.{k}[{index}]": repr(v) for k, v in group.items() if k not in DERIVED})
    for key, value in scheduler.state_dict().items():
        if not (key.startswith("_") or key in DERIVED or callable(value)):
            settings[f"lr_scheduler.{key}"] = repr(value)
    return settings
