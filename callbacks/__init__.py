"""Callbacks, selectable by class name on the command line: one behaviour, one file."""

from callbacks.condition_number_monitor import ConditionNumberMonitor
from callbacks.gradient_smoothness import GradientSmoothness
from callbacks.hybrid_protocol import HybridProtocol
from callbacks.last_checkpoint import LastCheckpoint, StoppedBySignal
from callbacks.loss_landscape import LossLandscape
from callbacks.nearest_orthogonal_gradient import NearestOrthogonalGradient
from callbacks.non_finite import NonFinitePolicy
from callbacks.optimal_learning_rate import OptimalLearningRate
from callbacks.orthogonal_loss import OrthogonalLoss
from callbacks.prediction_writer import PredictionWriter
from callbacks.same_checkpoint import SameCheckpoint
from callbacks.svd_failure_counter import SVDFailureCounter

__all__ = [
    "ConditionNumberMonitor",
    "GradientSmoothness",
    "HybridProtocol",
    "LastCheckpoint",
    "LossLandscape",
    "NearestOrthogonalGradient",
    "NonFinitePolicy",
    "OptimalLearningRate",
    "OrthogonalLoss",
    "PredictionWriter",
    "SVDFailureCounter",
    "SameCheckpoint",
    "StoppedBySignal",
]
