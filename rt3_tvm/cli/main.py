"""The command ``rt3``: one file per sub-command, ``add_parser`` and ``drive``, no logic."""

import argparse
import importlib
import logging
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rt3_tvm import __version__
from rt3_tvm.errors import JobError, Rt3Error, choices

COMMANDS = (
    "prune",
    "search",
    "compile",
    "run",
    "bench",
    "inspect",
    "devices",
    "sdk",
    "simulate",
    "report",
    "tune",
    "rpc-server",
)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser() -> tuple[Parser, dict[str, argparse.ArgumentParser]]:
    """Return the parser, and those of the commands by name."""
    parser = Parser(prog="rt3", description="Transformers that switch their sparsity with the CPU frequency.")
    parser.add_argument("-v", "--verbose", action="store_true", help="say more; show tracebacks")
    parser.add_argument("--version", action="version", version=f"rt3 {__version__}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML with a table of options for each command")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name in COMMANDS:
        importlib.import_module(f"rt3_tvm.cli.{name.replace('-', '_')}").add_parser(commands)
    return parser, dict(commands.choices)


def options_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the options of a command."""
    return [a for a in parser._actions if a.option_strings and a.dest != "help"]


def option_names(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, str]:
    """Return what the user of a command types for a field, by the field."""
    names = {a.dest: a.option_strings[0] for a in options_of(parser)}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and (chosen := getattr(args, action.dest)):
            names |= option_names(action.choices[chosen], args)
    return names


def apply_config(path: Path, parsers: dict[str, argparse.ArgumentParser]) -> None:
    """Make the values of a configuration file the defaults of the options they name."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Rt3Error(f"--config {path}: {error}") from error
    for command, values in tables.items():
        if command not in parsers or not isinstance(values, dict):
            raise Rt3Error(f"--config {path}: '{command}' is not a table of a command: choose from {choices(parsers)}")
        actions = {name.lstrip("-"): a for a in options_of(parsers[command]) for name in a.option_strings}
        for key, value in values.items():
            name = key.replace("_", "-")
            if name not in actions:
                raise Rt3Error(f"--config {path}: {command}.{key} is no option: choose from {choices(actions)}")
            action = actions[name]
            action.required = False
            action.default = _default(action, value)


def _default(action: argparse.Action, value: Any) -> Any:
    """Return what a value of a configuration is as the default of an option."""
    if isinstance(value, bool):
        return value is not isinstance(action, argparse._StoreFalseAction)
    if isinstance(action, argparse._AppendAction):  # argparse reads one text as the default, not several
        read: Any = action.type or str
        return [read(str(v)) for v in (value if isinstance(value, list) else [value])]
    return str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 1 for a failed job, 2 for bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbose = "-v" in arguments or "--verbose" in arguments
    typed: dict[str, str] = {}
    try:
        parser, parsers = build_parser()
        config = argparse.ArgumentParser(add_help=False)
        config.add_argument("--config", type=Path)
        given = config.parse_known_args(arguments)[0].config
        if given is not None:
            apply_config(given, parsers)
        args = parser.parse_args(arguments)
        logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
        typed = option_names(parsers[args.command], args)
        args.drive(args)
    except (Rt3Error, JobError) as error:
        if verbose:
            raise
        print(f"rt3: error: {error.shown(typed)}", file=sys.stderr)
        return 2 if isinstance(error, Rt3Error) else 1
    except SystemExit as stop:  # argparse's: an option that cannot be read, --help, --version
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
