"""The layers that networks are built of. They know nothing of training."""

from app.layers.decorrelated_batch_norm import DecorrelatedBatchNorm2d
from app.layers.global_covariance_pooling import META_LAYERS, GlobalCovariancePooling
from app.layers.weight_treatments import (
    OrthogonalWeight,
    original_weight,
    remove_weight_treatment,
    treat_weight,
    treatment_of,
)

__all__ = [
    "META_LAYERS",
    "DecorrelatedBatchNorm2d",
    "GlobalCovariancePooling",
    "OrthogonalWeight",
    "original_weight",
    "remove_weight_treatment",
    "treat_weight",
    "treatment_of",
]
