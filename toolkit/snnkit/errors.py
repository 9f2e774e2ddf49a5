"""Errors that a user can act on: each says what happened and what to do about it."""

import difflib
from collections.abc import Iterable, Sequence


class SnnkitError(Exception):
    """What happened (``str(error)``) and the remedy (``error.hint``)."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(SnnkitError):
    """A command or function was called with something it cannot take."""


class ConfigError(SnnkitError):
    """A configuration that is not valid."""


class DataError(SnnkitError):
    """Data that is missing, damaged, or not of the shape that the network takes."""


class NetworkError(SnnkitError):
    """A network, or a network file, that breaks a rule of the representation."""


class RunFolderError(SnnkitError):
    """A run directory that is missing, incomplete or already in use."""


class UnsupportedError(SnnkitError):
    """A network that an exporter, target or pass cannot take; ``reasons`` lists every cause."""

    def __init__(self, what: str, reasons: Sequence[str], hint: str) -> None:
        super().__init__(f"{what}: " + "; ".join(reasons), hint)
        self.reasons = tuple(reasons)


class UnavailableError(SnnkitError):
    """Something that is not installed on this machine, and how to get it."""


class WorkerError(SnnkitError):
    """A worker process that failed or died."""


class WorkerTimeoutError(WorkerError):
    """A worker process that did not answer within its time limit."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest known one, or all of them."""
    known = sorted(names)
    if close := difflib.get_close_matches(name, known, n=1, cutoff=0.5):
        return f"did you mean '{close[0]}'?"
    return "known are: " + ", ".join(known)
