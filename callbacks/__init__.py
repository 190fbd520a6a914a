"""Callbacks, selectable by class name on the command line: one behaviour, one file."""

from callbacks.nearest_orthogonal_gradient import NearestOrthogonalGradient
from callbacks.optimal_learning_rate import OptimalLearningRate
from callbacks.orthogonal_loss import OrthogonalLoss
from callbacks.prediction_writer import PredictionWriter

__all__ = ["NearestOrthogonalGradient", "OptimalLearningRate", "OrthogonalLoss", "PredictionWriter"]
