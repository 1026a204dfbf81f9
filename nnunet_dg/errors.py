"""The errors that a user can mend. The command line prints these as one line; a bug keeps its traceback."""

from __future__ import annotations


class UserError(Exception):
    """Base of the expected errors: a message that names the value, what is accepted, and what to do."""


class SettingsError(UserError, ValueError):
    """A setting, an option or an argument has a value that is not accepted."""


class WeightsError(UserError, RuntimeError):
    """Weights are missing and cannot be fetched, or a file does not hold the weights it should."""


class DataError(UserError, ValueError):
    """A file or a folder of the user's is missing, cannot be read, or does not hold what it should."""


class ExtraError(UserError, ImportError):
    """An optional dependency is not installed."""


class HostError(UserError, RuntimeError):
    """nnU-Net is missing, not set up, or refuses what it was asked for."""


class DimensionError(SettingsError, NotImplementedError):
    """Something exists for another number of spatial axes than the configuration has."""
