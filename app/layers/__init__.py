"""Layers for building networks, independent of how the networks are trained."""

from .decorrelated_batch_norm import DecorrelatedBatchNorm2d
from .global_average_pooling import GlobalAveragePooling
from .global_covariance_pooling import GlobalCovariancePooling
from .pooling import META_LAYERS, build_pooling, meta_layers
from .spectral_layer import SpectralLayer, spectral_layers
from .weight_treatments import (
    OrthogonalWeight,
    original_weight,
    remove_weight_treatment,
    treat_weight,
    treatment_of,
)

__all__ = [
    "META_LAYERS",
    "DecorrelatedBatchNorm2d",
    "GlobalAveragePooling",
    "GlobalCovariancePooling",
    "OrthogonalWeight",
    "SpectralLayer",
    "build_pooling",
    "meta_layers",
    "original_weight",
    "remove_weight_treatment",
    "spectral_layers",
    "treat_weight",
    "treatment_of",
]
