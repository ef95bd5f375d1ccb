"""Errors that a command shows as one line: what was wrong, where, and what was expected."""


class JaxInterpError(Exception):
    """Base of every error that a user can mend; the command line prints its message and nothing else."""


class DataError(JaxInterpError):
    """A data set is missing, truncated, foreign or has a wrong checksum."""


class CheckpointError(JaxInterpError):
    """A checkpoint is missing, damaged, or of another model, type or configuration."""


class ConfigError(JaxInterpError):
    """A run, a key or a value is unknown or out of range."""


class NonFiniteError(JaxInterpError):
    """Training met a loss or a gradient norm that is not finite."""
