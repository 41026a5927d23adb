"""``rt3 compile``."""

import argparse
import logging
from pathlib import Path

from rt3_tvm.cli.options import add_device_file, add_options, chosen_device, given
from rt3_tvm.codegen.options import CompileOptions


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    p = commands.add_parser("compile", help="compile a checkpoint to one shared library")
    p.add_argument("checkpoint", type=Path)
    p.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="the shared library")
    add_options(p, CompileOptions)
    add_device_file(p)
    p.set_defaults(drive=drive)


def drive(args: argparse.Namespace) -> None:
    """Run the command."""
    from rt3_tvm.checkpoint import Checkpoint
    from rt3_tvm.codegen import compile_checkpoint

    checkpoint = Checkpoint.load(args.checkpoint)
    options = given(CompileOptions, args, device=chosen_device(args))
    report = compile_checkpoint(checkpoint, args.output, options, logging.info)
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in report.seconds.items())
    levels = ", ".join(
        f"{i}: {row['frequency_hz'] / 1e9:g} GHz density {row['density']:.3f}{' ' + row['dtype'] if 'dtype' in row else ''}"
        for i, row in enumerate(report.metadata["levels"])
    )
    for name in report.metadata["unmatched"]:
        print(f"{name}: no linear layer was matched, runs dense with its mask")
    if report.latency_source:
        print(f"frequencies by latency: {report.latency_source}")
    for line in report.tuning:
        print(line)
    logging.info("linked with %s", " ".join(report.compiler))
    print(
        f"{args.output}: {report.bytes / 2**20:.1f} MiB, levels {levels}; seconds: {seconds}"
        + ("; built before, taken from the cache" if report.from_cache else "")
    )
