"""Errors that end in one line for the user."""

from collections.abc import Iterable


class Rt3Error(Exception):
    """Bad input: what was wrong, where, and what is accepted. The command line exits with 2."""


class JobError(Exception):
    """A job that failed although its input was sound (a cross compiler, a full disk). The command line exits with 1."""


def choices(names: Iterable[str]) -> str:
    """Return names as they are listed in a message."""
    return ", ".join(sorted(names))
