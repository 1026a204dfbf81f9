"""Errors that a user can fix. The command line prints them as one line; all other exceptions keep their traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Base class of expected errors. The message names the value, what is accepted, and what to do."""


class SettingsError(UserError, ValueError):
    """A setting, an option or an argument has a value that is not accepted."""


class WeightsError(UserError, RuntimeError):
    """Weights are missing and cannot be fetched, or a file does not contain the expected weights."""


class DataError(UserError, ValueError):
    """A user's file or folder is missing, cannot be read, or does not contain what it should."""


class VersionError(DataError):
    """A file was written by another version of this package, which this version cannot continue."""


class ExtraError(UserError, ImportError):
    """An optional dependency is not installed."""


class HostError(UserError, RuntimeError):
    """nnU-Net is missing, is not set up, or rejects a request."""


class DimensionError(SettingsError, NotImplementedError):
    """Something is not available for the configuration's number of spatial axes."""


@contextmanager
def about(place: object) -> Iterator[None]:
    """Errors about settings and data inside this context begin with the place that they are about, such as a file."""
    try:
        yield
    except (SettingsError, DataError) as error:
        raise type(error)(f"{place}: {error}") from error
