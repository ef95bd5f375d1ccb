"""Layers, losses and baseline networks that all families share."""

from jaxinterp.lazy import modules

__all__ = [
    "baselines",
    "batchnorm",
    "layers",
    "losses",
    "patches",
    "platform",
    "pooling",
    "targets",
    "torch_weights",
    "weights",
]

__getattr__, __dir__ = modules(__name__, __all__)
