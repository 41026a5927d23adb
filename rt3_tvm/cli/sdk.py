"""``rt3 sdk``."""

import argparse
from pathlib import Path


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    p = commands.add_parser("sdk", help="print the folder of the C headers, or write an SDK for a bundle")
    p.add_argument("bundle", type=Path, nargs="?", help="a bundle to package with headers, CMake and pkg-config files")
    p.add_argument("-o", "--output", type=Path, metavar="DIR", help="where the SDK goes")
    p.set_defaults(drive=drive)


def drive(args: argparse.Namespace) -> None:
    """Run the command."""
    from rt3_tvm.codegen import link, sdk
    from rt3_tvm.errors import Rt3Error

    if (args.bundle is None) != (args.output is None):
        raise Rt3Error("give a bundle and -o DIR, or neither")
    if args.bundle is None:
        print(link.runtime_directory())
        return
    for path in sdk.write_sdk(args.bundle, args.output):
        print(path)
