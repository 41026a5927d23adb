"""``rt3 inspect``."""

import argparse
import json
from pathlib import Path


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    p = commands.add_parser("inspect", help="say what a checkpoint or a bundle holds")
    p.add_argument("path", type=Path, metavar="CKPT|BUNDLE")
    p.add_argument("--json", action="store_true")
    p.set_defaults(drive=drive)


def drive(args: argparse.Namespace) -> None:
    """Run the command."""
    from rich.console import Console

    from rt3_tvm.report import summary

    facts = summary.describe(args.path)
    if args.json:
        print(json.dumps(facts))
    else:
        for part in summary.tables(facts):
            Console().print(part)
