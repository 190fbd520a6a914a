"""The layers that networks are built of. They know nothing of training."""

from app.layers.global_covariance_pooling import META_LAYERS, GlobalCovariancePooling

__all__ = ["META_LAYERS", "GlobalCovariancePooling"]
