"""``rt3 report``."""

import argparse
from pathlib import Path

from rt3_tvm.cli.options import add_device_file, add_options, chosen_device, given
from rt3_tvm.energy.comparison import SimulateOptions


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    p = commands.add_parser("report", help="pictures of a checkpoint and its battery, one HTML page")
    p.add_argument("checkpoint", type=Path, metavar="CKPT")
    p.add_argument("-o", "--output", type=Path, required=True, metavar="HTML", help="the page; everything is in it")
    p.add_argument("--bundle", type=Path, help="the same model compiled for this machine, to time its kernels")
    p.add_argument(
        "--level", type=int, metavar="N", help="with --bundle: level whose kernels are shown; default the middle"
    )
    add_options(p, SimulateOptions)
    add_device_file(p)
    p.set_defaults(drive=drive)


def drive(args: argparse.Namespace) -> None:
    """Run the command."""
    from rt3_tvm.files import write_text
    from rt3_tvm.report.page import write_page

    options = given(SimulateOptions, args, device=chosen_device(args))
    page = write_page(args.checkpoint, args.bundle, options, args.level)
    write_text(args.output, page)
    print(f"{args.output}: {len(page) / 2**20:.2f} MiB")
