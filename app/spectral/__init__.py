"""Differentiable spectral matrix functions. Pure torch: nothing here knows of images, modules or training."""

from app.spectral.eigh import FailureCounts
from app.spectral.functions import (
    METHODS,
    covariance_power,
    covariance_spectrum,
    covariance_sqrt,
    matrix_inverse_sqrt,
    matrix_log,
    matrix_power,
    matrix_sqrt,
)

__all__ = [
    "METHODS",
    "FailureCounts",
    "covariance_power",
    "covariance_spectrum",
    "covariance_sqrt",
    "matrix_inverse_sqrt",
    "matrix_log",
    "matrix_power",
    "matrix_sqrt",
]
