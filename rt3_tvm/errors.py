"""Errors that end in one line for the user."""

import re
from collections.abc import Iterable, Mapping

_FIELD = re.compile(r"`([a-z_.]+)`")


class _OneLine(Exception):
    """A message that names the fields of options in backquotes, so that whoever shows it can name what its user typed.

    Python's users see the fields (``block_rows``), those of the command line its options (``--block-rows``).
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def shown(self, names: Mapping[str, str]) -> str:
        """Return the message with fields under these names; others keep their own."""
        return _FIELD.sub(lambda m: names.get(m[1], m[1]), self.text)

    def __str__(self) -> str:
        return self.shown({})


class Rt3Error(_OneLine):
    """Bad input: what was wrong, where, and what is accepted. The command line exits with 2."""


class JobError(_OneLine):
    """A job that failed although its input was sound (a cross compiler, a full disk). The command line exits with 1."""


def choices(names: Iterable[str]) -> str:
    """Return names as they are listed in a message."""
    return ", ".join(sorted(names))


def reason(error: BaseException) -> str:
    """Return what an error of another library says, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
