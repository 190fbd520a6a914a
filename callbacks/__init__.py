"""Callbacks, selectable by class name on the command line: one behaviour, one file."""

from callbacks.prediction_writer import PredictionWriter

__all__ = ["PredictionWriter"]
