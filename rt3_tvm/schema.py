"""JSON that comes from a file: read, and checked against what must be there, of which kind, in which range.

A check is a function of a value and of the words for where it stands; it raises ``ValueError`` with one line. Checks compose::

    LEVEL = record(frequency_hz=number(0), deadline_s=number(0), density=number(0, 1))
    check = record(levels=list_of(LEVEL, at_least=1))
"""

import json
import math
from collections.abc import Callable
from typing import Any

Check = Callable[[Any, str], None]


def parse(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises
    ------
    ValueError
        It is no JSON, no UTF-8, or nested too deep.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _fail(value: Any, where: str, wanted: str) -> None:
    shown = repr(value)
    raise ValueError(f"{where} is {shown if len(shown) <= 40 else shown[:37] + '...'}, expected {wanted}")


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """Return the check of a finite number in [low, high]."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            _fail(value, where, "a number")
        if not (math.isfinite(value) and low <= value <= high):
            _fail(value, where, f"a number in [{low:g}, {high:g}]")

    return check


def integer(low: int, high: int = 2**63 - 1) -> Check:
    """Return the check of an integer in [low, high]."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            _fail(
                value, where, f"an integer of at least {low}" if high == 2**63 - 1 else f"an integer in [{low}, {high}]"
            )

    return check


def _kind(kind: type, words: str) -> Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, kind):
            _fail(value, where, words)

    return check


text = _kind(str, "a text")
flag = _kind(bool, "true or false")
table = _kind(dict, "a table")


def optional(inner: Check) -> Check:
    """Return the check of a value that may be null, or missing in its record."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            inner(value, where)

    return check


def list_of(inner: Check, at_least: int = 0) -> Check:
    """Return the check of a list whose items all pass ``inner``."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or len(value) < at_least:
            _fail(value, where, f"a list of at least {at_least}" if at_least else "a list")
        for i, item in enumerate(value):
            inner(item, f"{where}[{i}]")

    return check


def row_of(*inner: Check) -> Check:
    """Return the check of a list with one item for each check."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or len(value) != len(inner):
            _fail(value, where, f"a list of {len(inner)}")
        for i, (one, item) in enumerate(zip(inner, value, strict=True)):
            one(item, f"{where}[{i}]")

    return check


def table_of(inner: Check) -> Check:
    """Return the check of a table whose values, whatever their names, pass ``inner``."""

    def check(value: Any, where: str) -> None:
        table(value, where)
        for name, item in value.items():
            inner(item, f"{where}.{name}")

    return check


def record(**fields: Check) -> Check:
    """Return the check of a table with these fields; it may have others."""

    def check(value: Any, where: str) -> None:
        table(value, where)
        for name, inner in fields.items():
            inner(value.get(name), f"{where}.{name}")

    return check
