"""``rt3 compile``."""

import argparse
import logging
from pathlib import Path

from rt3_tvm.cli.options import add_device_options, chosen_device, frequencies, milliseconds, numbers


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    p = commands.add_parser("compile", help="compile a checkpoint to one shared library")
    p.add_argument("checkpoint", type=Path)
    p.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="the shared library")
    add_device_options(p, default="host")
    table = p.add_mutually_exclusive_group()
    table.add_argument(
        "--freqs",
        dest="frequencies",
        type=frequencies,
        metavar="F,F,F",
        help="one per level, descending, as 1.4GHz,1.0GHz,0.8GHz; default those that the checkpoint names, else the top, "
        "the lowest and evenly spaced operating points of the device",
    )
    table.add_argument(
        "--latency",
        metavar="rt3|FILE",
        help="instead: for each level the lowest operating point that meets --deadline, by this latency model",
    )
    p.add_argument(
        "--seq-len",
        type=numbers(int, "sequence lengths"),
        default="128",
        metavar="T,T",
        help="lengths to compile for; a call takes the smallest that fits; default 128",
    )
    p.add_argument("--batch", type=int, default=1, metavar="N", help="largest batch; default 1")
    p.add_argument("--threads", type=int, default=1, metavar="N", help="most threads of a run; default 1")
    p.add_argument(
        "--deadline",
        dest="deadline_s",
        type=milliseconds,
        default=0.0,
        metavar="MS",
        help="deadline that `auto` watches; default none",
    )
    p.add_argument("--cross-compiler", metavar="CMD", help="C compiler for the device, with its options")
    p.add_argument("--no-cache", action="store_true", help="build everything anew, and keep nothing for the next time")
    p.add_argument(
        "--no-verify",
        action="store_true",
        help="leave out the comparison of every level and length with PyTorch; the bundle says so",
    )
    p.add_argument("--dump-ir", type=Path, metavar="DIR", help="write the module after each phase")
    p.set_defaults(drive=drive)


def drive(args: argparse.Namespace) -> None:
    """Run the command."""
    from rt3_tvm.checkpoint import Checkpoint
    from rt3_tvm.codegen import CompileOptions, compile_checkpoint

    checkpoint = Checkpoint.load(args.checkpoint)
    options = CompileOptions(
        device=chosen_device(args),
        cluster=args.cluster,
        frequencies=args.frequencies,
        latency=args.latency,
        lengths=tuple(args.seq_len),
        batch=args.batch,
        deadline_s=args.deadline_s,
        threads=args.threads,
        cross_compiler=args.cross_compiler,
        dump_ir=args.dump_ir,
        cache=not args.no_cache,
        verify=not args.no_verify,
    )
    report = compile_checkpoint(checkpoint, args.output, options, logging.info)
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in report.seconds.items())
    levels = ", ".join(
        f"{i}: {row['frequency_hz'] / 1e9:g} GHz density {row['density']:.3f}"
        for i, row in enumerate(report.metadata["levels"])
    )
    for name in report.metadata["unmatched"]:
        print(f"{name}: no linear layer was matched, runs dense with its mask")
    if report.latency_source:
        print(f"frequencies by latency: {report.latency_source}")
    logging.info("linked with %s", " ".join(report.compiler))
    print(
        f"{args.output}: {report.bytes / 2**20:.1f} MiB, levels {levels}; seconds: {seconds}"
        + ("; built before, taken from the cache" if report.from_cache else "")
    )
