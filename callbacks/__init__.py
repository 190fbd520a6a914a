"""Callbacks, selectable by class name on the command line: one behaviour, one file."""

from callbacks.condition_number_monitor import ConditionNumberMonitor
from callbacks.gradient_smoothness import GradientSmoothness
from callbacks.hybrid_protocol import HybridProtocol
from callbacks.loss_landscape import LossLandscape
from callbacks.prediction_writer import PredictionWriter
from callbacks.svd_failure_counter import SVDFailureCounter

__all__ = [
    "ConditionNumberMonitor",
    "GradientSmoothness",
    "HybridProtocol",
    "LossLandscape",
    "PredictionWriter",
    "SVDFailureCounter",
]
