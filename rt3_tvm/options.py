"""Options as fields: what each is, in which unit it is written, and where it matters, said once.

From a field of a dataclass of options come its line of the class's documentation, its option of the command line, its place in
the table of ``--restart``, and its row in ``docs/options.md``.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from rt3_tvm.device import frequency_name, parse_frequencies
from rt3_tvm.errors import Rt3Error
from rt3_tvm.pattern import EACH_BLOCK, QUAD, PatternShape

T = TypeVar("T", bound=type)

FLOAT32 = "float32"
DTYPES = (FLOAT32, "float16", "int8")
"""What linear layers can multiply, by name; which of it a core has is known when its device is."""


@dataclass(frozen=True)
class Kind:
    """How people write a value.

    Parameters
    ----------
    metavar
        What stands for the value in a text of help.
    read, write
        The value of a text, or Rt3Error; and the text of a value.
    unit
        Of the value, where the text has another one or none.
    """

    metavar: str
    read: Callable[[str], Any]
    write: Callable[[Any], str] = str
    unit: str = ""

    def called(self, metavar: str) -> "Kind":
        """Return the kind with another name for its value."""
        return Kind(metavar, self.read, self.write, self.unit)


@dataclass(frozen=True)
class Option:
    """What is known of a field besides its type and default.

    Parameters
    ----------
    help
        One line.
    kind
        How its value is written; None for a switch.
    name
        Of the option, without dashes, where it is not the field's own. For a switch that is on, of what turns it off.
    group
        Under which heading a text of help lists it.
    phase
        For a search, the first phase in which it matters.
    repeated
        Whether the option is given once for each element of a tuple.
    either
        Name of a set of options of which at most one is given.
    """

    help: str
    kind: Kind | None
    name: str = ""
    group: str = ""
    phase: str = ""
    repeated: bool = False
    either: str = ""


def option(
    default: Any,
    kind: Kind,
    help: str,
    *,
    name: str = "",
    group: str = "",
    phase: str = "",
    repeated: bool = False,
    either: str = "",
) -> Any:
    """Return a field that is an option; see :class:`Option`. ``default`` MISSING: it must be given."""
    return field(default=default, metadata={"option": Option(help, kind, name, group, phase, repeated, either)})


def switch(default: bool, help: str, *, name: str = "", group: str = "", phase: str = "") -> Any:
    """Return a field that an option without a value turns to what ``default`` is not."""
    return field(default=default, metadata={"option": Option(help, None, name, group, phase)})


def options_in(options: type, prefix: str = "") -> Iterator[tuple[str, Field, Option]]:
    """Yield the path (``reward.shares``), the field and the option of everything that can be given, nested ones too."""
    for f in fields(options):
        if "option" in f.metadata:
            yield prefix + f.name, f, f.metadata["option"]
        elif is_dataclass(f.default_factory):
            yield from options_in(f.default_factory, f"{prefix}{f.name}.")  # type: ignore[arg-type]


def flag_of(path: str, what: Option) -> str:
    """Return what is typed for an option."""
    return "--" + (what.name or path.rpartition(".")[2].replace("_", "-"))


def default_of(f: Field, what: Option) -> str:
    """Return the default as it would be typed; an empty text where there is none, or the help says it."""
    if what.kind is None or f.default in (MISSING, None, ()):
        return ""
    return what.kind.write(f.default)


def explained(f: Field, what: Option) -> str:
    """Return what a field says to users of Python: its unit where the text of the option has another, what False turns on."""
    unit = f" ({what.kind.unit})" if what.kind and what.kind.unit else ""
    return f"{'False: ' if what.kind is None and f.default else ''}{what.help}{unit}"


def documented(options: T) -> T:
    """Give a dataclass of options a documentation that says what each of them is."""
    lines = []
    for f in fields(options):
        what = f.metadata.get("option")
        if what is not None:
            lines += [f.name, f"    {explained(f, what)}."]
    options.__doc__ = f"{options.__doc__}\n\nParameters\n----------\n" + "\n".join(lines)
    return options


def _number(kind: type, what: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise Rt3Error(f"'{text}': give {what}") from None

    return read


def _plain(value: float) -> str:
    return f"{value:g}"


def several(each: Callable[[str], Any], what: str, metavar: str, write: Callable[[Any], str] = _plain) -> Kind:
    """Return the kind of values that commas separate; ``what`` the message asks for where they are none."""

    def read(text: str) -> tuple[Any, ...]:
        try:
            return tuple(each(part) for part in text.split(","))
        except ValueError:
            raise Rt3Error(f"'{text}': give {what}, separated by commas") from None

    return Kind(metavar, read, lambda values: ",".join(map(write, values)))


def wholes(what: str, metavar: str) -> Kind:
    """Return the kind of whole numbers that commas separate."""
    return several(int, what, metavar)


def numbers(what: str, metavar: str) -> Kind:
    """Return the kind of numbers that commas separate."""
    return several(float, what, metavar)


TEXT = Kind("NAME", str)
NAMES = several(str, "names", "NAME,NAME", str)
PATH = Kind("FILE", Path)
WHOLE = Kind("N", _number(int, "a whole number"))
NUMBER = Kind("X", _number(float, "a number"), _plain)
MILLISECONDS = Kind("MS", lambda text: NUMBER.read(text) / 1e3, lambda s: _plain(1e3 * s), "s")
FREQUENCIES = Kind("F,F,F", parse_frequencies, lambda hz: ",".join(map(frequency_name, hz)), "Hz")
SHARES = Kind(
    "P,P,P",
    lambda text: tuple(p / 100 for p in numbers("shares in %", "").read(text)),
    lambda shares: ",".join(_plain(100 * s) for s in shares),
    "parts of 1",
)


def _read_shape(text: str) -> PatternShape:
    match = re.fullmatch(r"(\d+)x(\d+)(q?)", text)
    if match is None:
        raise Rt3Error(f"'{text}': give rows x columns, for example 4x32, or 4x32q to keep columns in quads")
    return PatternShape(int(match[1]), int(match[2]), 1, QUAD if match[3] else 1)


def _read_patterns(text: str) -> int:
    return EACH_BLOCK if text == "each" else _number(int, "a number of patterns, or each: one for each block")(text)


SHAPE = Kind("RxC[q]", _read_shape, str)
PATTERNS = Kind("K|each", _read_patterns)
