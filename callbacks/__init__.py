"""Callbacks, selectable by class name on the command line: one behaviour, one file."""

from callbacks.gradient_smoothness import GradientSmoothness
from callbacks.loss_landscape import LossLandscape
from callbacks.prediction_writer import PredictionWriter

__all__ = ["GradientSmoothness", "LossLandscape", "PredictionWriter"]
