"""Callbacks, selectable by class name on the command line: one behaviour per file."""

from .best_checkpoint import BestCheckpoint
from .condition_number_monitor import ConditionNumberMonitor
from .finite_checkpoints import FiniteCheckpoints
from .finite_evaluation import FiniteEvaluation
from .gradient_smoothness import GradientSmoothness
from .hybrid_protocol import HybridProtocol
from .last_checkpoint import LastCheckpoint
from .loss_landscape import LossLandscape
from .nearest_orthogonal_gradient import NearestOrthogonalGradient
from .non_finite import NonFinitePolicy
from .optimal_learning_rate import OptimalLearningRate
from .orthogonal_loss import OrthogonalLoss
from .prediction_writer import PredictionWriter
from .same_checkpoint import SameCheckpoint
from .stop_on_signal import StopOnSignal, StoppedBySignal
from .svd_failure_counter import SVDFailureCounter

__all__ = [
    "BestCheckpoint",
    "ConditionNumberMonitor",
    "FiniteCheckpoints",
    "FiniteEvaluation",
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
    "StopOnSignal",
    "StoppedBySignal",
]
