"""Options that several commands share."""

import argparse
import re
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console

from rt3_tvm.errors import Rt3Error

PIPE_WIDTH = 140


def checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a parser of an option's text whose Rt3Error becomes argparse's one-line error."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except Rt3Error as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def numbers(kind: type, what: str) -> Callable[[str], Any]:
    """Return a parser of comma-separated numbers."""

    def parse(text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            raise Rt3Error(f"'{text}': give {what}, separated by commas") from None

    return checked(parse)


def console() -> Console:
    """Return where tables go: as wide as the terminal, and wide enough for every column in a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)


@checked
def frequencies(text: str) -> tuple[float, ...]:
    """Return the Hz of frequencies that commas separate."""
    from rt3_tvm.device import parse_frequencies

    return parse_frequencies(text)


def milliseconds(text: str) -> float:
    """Return the s of a number of ms."""
    return float(text) / 1e3


@checked
def block_shape(text: str) -> tuple[int, int]:
    """Return the rows and columns of '4x32'."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise Rt3Error(f"'{text}': give rows x columns, for example 4x32")
    return int(match[1]), int(match[2])


@checked
def _pattern_count(text: str) -> int:
    """Return K, or EACH_BLOCK for 'each'."""
    from rt3_tvm.pattern import EACH_BLOCK

    if text == "each":
        return EACH_BLOCK
    try:
        return int(text)
    except ValueError:
        raise Rt3Error(f"'{text}': give a number of patterns, or each: one for each block") from None


def add_patterns_option(parser: argparse._ActionsContainer) -> None:
    """Add the option of how many patterns a set has."""
    parser.add_argument(
        "--patterns",
        type=_pattern_count,
        default=256,
        metavar="K|each",
        help="patterns in a set; each: one for each block; default 256",
    )


def add_device_options(parser: argparse._ActionsContainer, default: str | None = None) -> None:
    """Add the options that choose a device; ``chosen_device`` reads them."""
    shown = f"; default {default}" if default else ""
    parser.add_argument("--device", default=default, metavar="NAME", help=f"see rt3 devices{shown}")
    parser.add_argument("--device-file", metavar="TOML", help="a device of your own, instead of --device")
    parser.add_argument("--cluster", metavar="NAME", help="cluster of the device; default its first")


def chosen_device(args: argparse.Namespace) -> str:
    """Return the name or the file of the device that was chosen."""
    if args.device_file is not None and not args.device_file.endswith(".toml"):
        raise Rt3Error(f"--device-file {args.device_file}: give a file that ends in .toml")
    name = args.device_file or args.device
    if name is None:
        raise Rt3Error("no device: pass --device NAME (see rt3 devices) or --device-file board.toml")
    return str(name)
