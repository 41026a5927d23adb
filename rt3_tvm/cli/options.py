"""Options that several commands share."""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar

from rich.console import Console

from rt3_tvm.errors import Rt3Error
from rt3_tvm.options import Option, default_of, flag_of, options_in

PIPE_WIDTH = 140
Options = TypeVar("Options")


def checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a parser of an option's text whose Rt3Error becomes argparse's one-line error."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except Rt3Error as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def add_options(parser: argparse.ArgumentParser, options: type, defaults: Mapping[str, Any] | None = None) -> None:
    """Add an option for every field of a dataclass of options; ``given`` reads them.

    Parameters
    ----------
    defaults
        Defaults by field where they are not those of the dataclass; the help says them.
    """
    homes: dict[str, Any] = {"": parser}
    for path, f, what in options_in(options):
        home = what.either or what.group
        if home not in homes:
            above = homes.get(what.group, parser)
            homes[home] = above.add_mutually_exclusive_group() if what.either else parser.add_argument_group(home)
        add_option(homes[home], path, f, what, defaults or {})


def add_option(
    home: argparse._ActionsContainer, path: str, f: Field, what: Option, defaults: Mapping[str, Any]
) -> None:
    """Add the option of one field."""
    shown = "" if f.name in defaults else default_of(f, what)
    said = what.help.replace("%", "%%") + (f"; default {shown}" if shown else "")
    default = defaults.get(f.name, None if f.default is MISSING else f.default)
    more: dict[str, Any] = {"dest": path, "help": said}
    if what.kind is None:
        more |= {"action": "store_false" if f.default else "store_true"}
    elif what.repeated:
        more |= {"action": "append", "default": [], "type": checked(what.kind.read), "metavar": what.kind.metavar}
    else:
        more |= {"default": default, "type": checked(what.kind.read), "metavar": what.kind.metavar}
    home.add_argument(flag_of(path, what), **more)


def given(options: type[Options], args: argparse.Namespace, **instead: Any) -> Options:
    """Return what the command line asks for, with some fields as they are said here."""
    return _given(options, args, "", instead)


def _given(options: type[Options], args: argparse.Namespace, prefix: str, instead: Mapping[str, Any]) -> Options:
    values = dict(instead)
    for f in fields(options):  # type: ignore[arg-type]
        if f.name in instead:
            continue
        what = f.metadata.get("option")
        if what is not None:
            value = getattr(args, prefix + f.name)
            values[f.name] = tuple(value) if what.repeated else value
        elif is_dataclass(f.default_factory):
            values[f.name] = _given(f.default_factory, args, f"{prefix}{f.name}.", {})  # type: ignore[arg-type]
    return options(**values)


def console() -> Console:
    """Return where tables go: as wide as the terminal, and wide enough for every column in a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)


def add_device_file(parser: argparse._ActionsContainer) -> None:
    """Add the other way to choose a device; ``chosen_device`` reads both."""
    parser.add_argument("--device-file", metavar="TOML", help="a device of your own, instead of --device")


def chosen_device(args: argparse.Namespace) -> str:
    """Return the name or the file of the device that was chosen."""
    if args.device_file is not None and not args.device_file.endswith(".toml"):
        raise Rt3Error(f"--device-file {args.device_file}: give a file that ends in .toml")
    name = args.device_file or args.device
    if name is None:
        raise Rt3Error("no device: pass --device NAME (see rt3 devices) or --device-file board.toml")
    return str(name)
