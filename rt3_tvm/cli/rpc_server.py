"""``rt3 rpc-server``."""

import argparse
import sys

from rt3_tvm.cli.options import add_options, given
from rt3_tvm.tune.options import ServerOptions


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    p = commands.add_parser("rpc-server", help="let rt3 tune and rt3 run measure on this board")
    add_options(p, ServerOptions)
    p.add_argument("--with-parent", action="store_true", help=argparse.SUPPRESS)
    p.set_defaults(drive=drive)


def drive(args: argparse.Namespace) -> None:
    """Run the command."""
    from rt3_tvm.tune.server import end_with_parent, serve

    if args.with_parent:
        end_with_parent()
    serve(
        given(ServerOptions, args),
        lambda line: print(line, flush=True),
        lambda line: print(f"rt3 rpc-server: {line}", file=sys.stderr, flush=True),
    )
