"""The image classifier: backbone, pooling head, linear classifier, and how they are trained.

Shapes: B batch, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal

import jsonargparse
import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from app.layers import GlobalAveragePooling, build_pooling, remove_weight_treatment, treat_weight
from app.layers.global_covariance_pooling import MetaLayer
from app.layers.weight_treatments import Treatment, convert_state, treated_layers, treatment_of
from app.models.backbones import Downsampling, Stem, build_backbone
from app.models.decorrelation import decorrelate, decorrelated_convolution
from app.models.features import as_feature_map, feature_channels, last_convolution
from app.models.hyperparameters import replace_hyperparameter, save_plain_hyperparameters
from app.models.lightning_compat import batch_size_to_log, schedule_configuration, step_plateau_schedules
from app.models.pretrained import initialise, weights_for
from app.models.training_setup import announced, check_unchanged, describe_optimizer, describe_schedule
from app.spectral import Method, ScalarFunction

# Without this, jsonargparse treats dataclasses as plain data and accepts no class path in place of one.
jsonargparse.set_parsing_settings(subclasses_enabled=[Method])

OwnModule = Callable[[Any], Any]
"""A `torch.nn.Module`. With that type the help would list its hundreds of subclasses (jsonargparse 4.53;
https://github.com/Lightning-AI/pytorch-lightning/issues/20591)."""

NOT_SAVED = ("optimizer", "lr_scheduler", "weights", "init_from", "init_from_required")
"""Arguments that are not saved as hyper-parameters: a checkpoint has the weights, optimizer and schedule anyway."""


class Classifier(pl.LightningModule):
    """An image classifier: a backbone, covariance pooling of its features, and a linear classifier.

    Features are pooled by a function of their covariance, usually its square root (Song et al., ICCV 2021, appendix D),
    or by their mean. An argument that takes an object is given in YAML by a class path, such as {class_path:
    my_module.MyMethod, init_args: {limit: 3}}, and in Python by the object itself.

    Args:
        num_classes: number of classes; null: that of the data.
        backbone: alexnet, alexnet_bn, resnet18, resnet34, resnet50, resnet101, resnet152, mobilenet_v2 or compact; or a
            torch.nn.Module of your own, {class_path: my_module.MyBackbone, init_args: {width: 64}}, that turns images
            into a feature map (B, C, h, w) or tokens (B, N, C).
        meta_layer: gap for global average pooling; or the method for the square root of the covariance and its
            gradient: isqrt-cov, ns-minimax, svd-halley, mpn-cov, svd-exact, svd-pade, svd-taylor, svd-trunc, svd-topn,
            svd-newton or svd-pi; or power or log of the covariance; or the class path of an app.spectral.Method or of
            a torch.nn.Module that normalises the covariance, (B, d, d) -> (B, d, d).
        dim: channels d of the covariance, to which a 1x1 convolution with batch norm and ReLU reduces those of the
            backbone; several numbers: that many reductions, one after the other (256 and 128 in Wang et al., CVPR
            2020); null: no reduction. The classifier has d (d + 1) / 2 inputs. Not used by gap.
        meta_options: options of a meta_layer that is given by name, such as {taylor_degree: 50} or {iterations: 7};
            those of power are {alpha: 0.5, method: svd-exact}, those of log {eps: 1e-5, method: svd-exact}.
        spectral_dtype: precision of the covariance and of its function.
        function: function of the covariance, as the class path of an app.spectral.ScalarFunction, such as
            {class_path: app.spectral.Power, init_args: {alpha: 0.4}}; null: the square root.
        feature_normalisation: class path of a torch.nn.Module that is applied to the features (B, d, N) of the N
            positions before their covariance is taken; null: none.
        downsampling: down-sampling of the last stage, for a backbone that is given by name: removed, kept, or max-pool
            (by a max-pooling before that stage); null: removed with covariance pooling, kept with gap.
        stem: imagenet, or cifar for images of 32x32 pixels (3x3 convolution of stride 1, no max-pooling; ResNets only).
        decorrelation: method of a decorrelated batch norm that replaces the first batch norm of the backbone (Song et
            al., ECCV 2022): any method of meta_layer except gap and svd-topn; null: none. It is usually combined with
            meta_layer gap.
        decorrelation_options: options of the decorrelated batch norm, such as {groups: 4, eps: 1e-3, synchronised:
            true}, and of its method.
        weight_treatment: treatment of the weight W of the pre-SVD layer: spectral (W over its largest singular value)
            or orthogonal (exp(W - W^T)); null: none. The pre-SVD layer is the convolution before the decorrelated
            batch norm, or without one the last convolution before the covariance.
        weights: weights of the backbone: a file of torchvision weights, or a name such as IMAGENET1K_V1; null: random.
        init_from: file of the weights to start from: a checkpoint of this program, of fast-MPN-COV or
            DifferentiableSVD, or torchvision's weights; null: random weights. Layers that do not fit, such as a
            classifier for other classes, are left as initialised and listed, and validate and test refuse to run with
            them. From a checkpoint of this program, train.py also takes the backbone and the pooling, except for
            arguments that are given as flags.
        init_from_required: true: it is an error if no backbone weight of init_from could be loaded; false: a warning.
        optimizer: any torch optimizer; the default is the papers' SGD.
        classifier_learning_rate: learning rate of the linear classifier; null: that of the optimizer.
        lr_scheduler: any torch schedule, stepped once per epoch; null: the papers' division by 10 at epochs 30 and 45.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        backbone: str | OwnModule = "resnet50",
        meta_layer: Method | str | OwnModule = "isqrt-cov",
        dim: int | list[int] | None = 256,
        meta_options: dict[str, Any] | None = None,
        spectral_dtype: Literal["float32", "float64"] = "float64",
        function: ScalarFunction | None = None,
        feature_normalisation: OwnModule | None = None,
        downsampling: Downsampling | None = None,
        stem: Stem = "imagenet",
        decorrelation: Method | str | None = None,
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
        objects = {
            "backbone": backbone,
            "meta_layer": meta_layer,
            "function": function,
            "feature_normalisation": feature_normalisation,
            "decorrelation": decorrelation,
        }
        save_plain_hyperparameters(self, objects, ignore=NOT_SAVED)
        self.num_classes = _known_number(num_classes)
        if weights is not None and init_from is not None:
            raise ValueError("model.weights and model.init_from are two sources of weights: give one")
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.classifier_learning_rate = classifier_learning_rate
        if downsampling is None and isinstance(backbone, str):
            downsampling = "kept" if meta_layer == "gap" else "removed"
        self.backbone = _build_backbone(backbone, downsampling, stem, weights)
        self.pooling = build_pooling(
            meta_layer,  # type: ignore[arg-type]
            feature_channels(self.backbone),
            dim,
            meta_options,
            spectral_dtype,
            function,
            feature_normalisation,  # type: ignore[arg-type]
        )
        self.classifier = nn.Linear(self.pooling.out_features, self.num_classes)
        _decorrelate(self.backbone, decorrelation, decorrelation_options)
        if weight_treatment is not None:
            self._treat_weight(weight_treatment)
        self.register_load_state_dict_pre_hook(_convert_weight_treatment)
        self.train_metrics = _accuracies(self.num_classes, "train", (1,))
        self.val_metrics = _accuracies(self.num_classes, "val", (1, 5))
        self.test_metrics = _accuracies(self.num_classes, "test", (1, 5))
        self._parameters_apart: list[nn.Parameter] = []
        self._training_setup: dict[str, str] = {}
        self._initial_seed = 0
        self._layers_not_loaded: list[str] = []
        if init_from is not None:
            resnet = isinstance(backbone, str) and backbone.startswith("resnet")
            self._initialise(init_from, resnet, init_from_required)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` to logits ``(B, K)``."""
        features = as_feature_map(self.backbone, self.backbone(images))
        return self.classifier(self.pooling(features))

    @property
    def pre_svd_layer(self) -> nn.Conv2d | None:
        """The convolution that feeds the covariance; ``None`` for networks without a covariance.

        In a network with both a decorrelated batch norm and covariance pooling, it is the one before the former.
        """
        if (convolution := decorrelated_convolution(self.backbone)) is not None:
            return convolution
        if isinstance(self.pooling, GlobalAveragePooling):
            return None
        return self.pooling.pre_svd_layer or last_convolution(self.backbone)

    def _treat_weight(self, weight_treatment: Treatment) -> None:
        if self.pre_svd_layer is None:
            raise ValueError(
                f"weight_treatment {weight_treatment} has no layer to act on: this model takes no covariance "
                "(meta_layer gap without decorrelation), or has no convolution before it"
            )
        treat_weight(self.pre_svd_layer, weight_treatment)

    def remove_weight_treatment(self) -> None:
        """Make the treated weight an ordinary one, for inference; checkpoints then name no treatment."""
        if self.pre_svd_layer is not None:
            remove_weight_treatment(self.pre_svd_layer)
        self.hparams["weight_treatment"] = None

    def _initialise(self, path: str, resnet: bool, required: bool) -> None:
        state = weights_for(self, path, resnet=resnet)
        _convert_weight_treatment(self, state, "")
        report = initialise(self, state, path, required=required)
        self._layers_not_loaded = report.shape_mismatches + report.missing

    def use_meta_layer(self, meta_layer: MetaLayer, meta_options: dict[str, Any] | None = None) -> None:
        """Switch to another meta-layer; checkpoints written from now on name it.

        Raises:
            ValueError: for a wrong name or option, or a meta-layer that pools to another shape.
        """
        self.pooling.use_meta_layer(meta_layer, meta_options)
        replace_hyperparameter(self, "meta_layer", meta_layer)
        replace_hyperparameter(self, "meta_options", meta_options)

    def setup(self, stage: str) -> None:
        """Check that data and model agree on the classes, and that there are weights to evaluate."""
        if stage != "fit" and self._layers_not_loaded:
            raise ValueError(
                f"model.init_from: the network would be evaluated with random weights: {self._layers_not_loaded[0]} "
                f"and {len(self._layers_not_loaded) - 1} more are not in the file, or have another shape"
            )
        names = getattr(self.trainer.datamodule, "class_names", None)  # type: ignore[attr-defined]
        if names is not None and len(names) != self.num_classes:
            raise ValueError(f"the data have {len(names)} classes, but model.num_classes is {self.num_classes}")
        self._initial_seed = torch.initial_seed()

    def teardown(self, stage: str) -> None:
        # Callbacks request these groups in `setup`, for a single call of the trainer.
        self._parameters_apart.clear()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        return self._step(batch, "train", self.train_metrics)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        return self._step(batch, "val", self.val_metrics)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        return self._step(batch, "test", self.test_metrics)

    def _step(self, batch: tuple[Tensor, Tensor], stage: str, metrics: MetricCollection) -> Tensor:
        _, labels = batch
        in_training = stage == "train"
        loss, logits = self.loss(batch)
        # Every process must log the same keys; otherwise they would wait for each other forever.
        self.log(
            f"{stage}/loss",
            loss,
            on_step=in_training,
            on_epoch=not in_training,
            prog_bar=True,
            sync_dist=True,
            batch_size=batch_size_to_log(labels),
        )
        metrics.update(logits, labels)
        self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(labels))
        return loss

    def loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of a batch, and its logits ``(B, K)``; nothing is logged or counted."""
        images, labels = batch
        logits = self(images)
        return nn.functional.cross_entropy(logits, labels), logits

    def predict_step(self, batch: Any, batch_index: int) -> dict[str, Any]:
        """Probabilities ``(B, K)`` of the images, together with the other entries of the batch.

        Args:
            batch: a dictionary with ``images`` and entries that are passed on (our data modules: ``files`` and
                ``errors``); or images alone, or a sequence that begins with them.
            batch_index: not used.
        """
        prediction: dict[str, Any] = {}
        if isinstance(batch, dict):
            prediction.update(batch)
            images = prediction.pop("images")
        elif isinstance(batch, Tensor):
            images = batch
        else:
            images = batch[0]
        if len(images):
            prediction["probabilities"] = self(images).softmax(-1).float().cpu()
        else:  # None of the files of the batch could be read.
            prediction["probabilities"] = torch.zeros(0, self.num_classes)
        return prediction

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        self.seed_step(batch_index)

    def seed_step(self, batch_index: int) -> None:
        """Seed the random numbers of a step: dropout is the same in a resumed run as in an uninterrupted one.

        The seed of the run is that of the data module if it has one, which stores it in checkpoints, and otherwise the
        seed that torch had when the training was set up.
        """
        seed = getattr(self.trainer.datamodule, "seed", None)  # type: ignore[attr-defined]
        if not isinstance(seed, int):
            seed = self._initial_seed
        numbers = [seed, self.trainer.current_epoch, batch_index, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))

    def give_own_parameter_group(self, parameter: nn.Parameter) -> None:
        """Give a parameter its own group in the optimizer of the next `fit`; callbacks request it in `setup`."""
        if not any(parameter is other for other in self._parameters_apart):
            self._parameters_apart.append(parameter)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the optimizer: backbone and pooling, the classifier, those of `_parameters_apart`.

        The states of optimizers in checkpoints depend on the order of groups and of parameters.
        """
        apart = {id(parameter) for parameter in self._parameters_apart}
        of_classifier = {id(parameter) for parameter in self.classifier.parameters()}
        rest, classifier = [], []
        for parameter in self.parameters():
            if id(parameter) in of_classifier - apart:
                classifier.append(parameter)
            elif id(parameter) not in apart:
                rest.append(parameter)
        groups: list[dict[str, Any]] = [{"params": rest}, {"params": classifier}]
        if self.classifier_learning_rate is not None:
            groups[1]["lr"] = self.classifier_learning_rate
        for parameter in self._parameters_apart:
            groups.append({"params": [parameter]})
        return groups

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer, scheduler = self._optimizer_and_schedule()
        self._training_setup = self._describe_training(optimizer, scheduler)
        return {"optimizer": optimizer, "lr_scheduler": schedule_configuration(scheduler)}

    def _optimizer_and_schedule(self) -> tuple[Optimizer, LRScheduler]:
        try:
            optimizer = self.optimizer(self.parameter_groups())
        except ValueError:
            # torch.optim.LBFGS takes one group only. That is enough if no group has its own settings.
            if self.classifier_learning_rate is not None or self._parameters_apart:
                raise
            optimizer = self.optimizer(list(self.parameters()))
        if self.lr_scheduler is None:
            return optimizer, MultiStepLR(optimizer, [30, 45], gamma=0.1)
        return optimizer, self.lr_scheduler(optimizer)

    def on_train_epoch_end(self) -> None:
        step_plateau_schedules(self.trainer)

    def _describe_training(self, optimizer: Optimizer, scheduler: LRScheduler) -> dict[str, str]:
        treatment = None
        if self.pre_svd_layer is not None:
            treatment = treatment_of(self.pre_svd_layer)
        description = {**describe_optimizer(optimizer), **describe_schedule(scheduler)}
        description["weight_treatment"] = str(treatment)
        if self._trainer is not None:
            description |= announced(self._trainer.callbacks)  # type: ignore[attr-defined]
        return description

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["training_setup"] = self._training_setup

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that a resumed run has the optimizer, schedule and treatments of the checkpoint."""
        resuming = self._trainer is not None and self._trainer.training
        if resuming and "training_setup" in checkpoint:
            check_unchanged(checkpoint["training_setup"], self._describe_training(*self._optimizer_and_schedule()))


def _known_number(num_classes: int | None) -> int:
    if num_classes is None:
        raise ValueError("num_classes is missing: give the number of classes (train.py takes that of the data)")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    return num_classes


def _build_backbone(
    backbone: str | OwnModule, downsampling: Downsampling | None, stem: Stem, weights: str | None
) -> nn.Module:
    if isinstance(backbone, str):
        return build_backbone(backbone, downsampling or "removed", stem, weights)
    name = type(backbone).__name__
    if not isinstance(backbone, nn.Module):
        raise ValueError(f"backbone must be a name or a torch.nn.Module, got a {name}")
    if downsampling is not None or stem != "imagenet" or weights is not None:
        raise ValueError(f"downsampling, stem and weights are options of the backbones with a name: {name} has none")
    return backbone


def _decorrelate(backbone: nn.Module, method: Method | str | None, options: dict[str, Any] | None) -> None:
    if method is not None:
        decorrelate(backbone, method, options)
    elif options:
        raise ValueError(
            "decorrelation_options are given without decorrelation: name a method, such as svd-exact, or set them "
            "to null, --model.decorrelation_options null"
        )


def _accuracies(num_classes: int, stage: str, top: tuple[int, ...]) -> MetricCollection:
    metrics: dict[str, Metric | MetricCollection] = {}
    for k in top:
        metrics[f"top{k}"] = MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro")
    # Compute groups would merge two metrics for good if their states were equal after the first batch (torchmetrics
    # 1.9, https://github.com/Lightning-AI/torchmetrics/issues/2596); top-1 and top-5 accuracy must not depend on how
    # torchmetrics stores them.
    return MetricCollection(metrics, prefix=f"{stage}/", compute_groups=False)


def _convert_weight_treatment(model: Classifier, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let checkpoints of models with and without a treatment of the weight load into each other."""
    own, treated = model.pre_svd_layer, treated_layers(state)
    for name, module in model.named_modules():
        layer = f"{prefix}{name}."
        # The layer that was treated when the state was stored need not be the one before a covariance here.
        if isinstance(module, nn.Conv2d) and (module is own or layer in treated):
            convert_state(state, layer, module)


# Checkpoints from before the move to app.models name the class app.classifier.Classifier, and `load_from_checkpoint`
# of Lightning (2.6, https://github.com/Lightning-AI/pytorch-lightning/issues/21822) accepts imported classes only.
sys.modules.setdefault("app.classifier", sys.modules[__name__])
