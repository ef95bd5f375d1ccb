"""Errors caused by user input or data; the command line prints their message in one line and nothing else."""


class JaxInterpError(Exception):
    """Base class of errors caused by user input or data."""


class DataError(JaxInterpError):
    """A data set is missing, truncated, foreign or has a wrong checksum."""


class CheckpointError(JaxInterpError):
    """A checkpoint is missing, damaged, or of another model, type or configuration."""


class ConfigError(JaxInterpError, ValueError):
    """A run, a key or an argument is unknown or out of range: `name: got A, expected B`."""


class NonFiniteError(JaxInterpError):
    """A loss or a gradient norm became NaN or infinite during training."""
