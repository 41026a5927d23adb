"""``rt3 compile``."""

import argparse
import logging
from pathlib import Path

from rt3_tvm.cli.options import add_device_options, chosen_device, numbers


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    p = commands.add_parser("compile", help="compile a checkpoint to one shared library")
    p.add_argument("checkpoint", type=Path)
    p.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="the shared library")
    add_device_options(p, default="host")
    table = p.add_mutually_exclusive_group()
    table.add_argument(
        "--freqs",
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
        "--deadline", type=float, default=0.0, metavar="MS", help="deadline that `auto` watches; default none"
    )
    p.add_argument("--cross-compiler", metavar="CMD", help="C compiler for the device, with its options")
    p.add_argument("--no-cache", action="store_true", help="build everything anew, and keep nothing for the next time")
    p.add_argument("--dump-ir", type=Path, metavar="DIR", help="write the module after each phase")
    p.set_defaults(drive=drive)


def drive(args: argparse.Namespace) -> None:
    """Run the command."""
    from rt3_tvm.checkpoint import Checkpoint
    from rt3_tvm.codegen import CompileOptions, compile_checkpoint
    from rt3_tvm.device import parse_frequencies

    checkpoint = Checkpoint.load(args.checkpoint)
    frequencies = parse_frequencies(args.freqs, len(checkpoint.levels)) if args.freqs else None
    if args.latency is not None:
        frequencies = _by_latency(args)
    options = CompileOptions(
        device=chosen_device(args),
        cluster=args.cluster,
        frequencies=frequencies,
        lengths=tuple(args.seq_len),
        batch=args.batch,
        deadline_s=args.deadline / 1e3,
        threads=args.threads,
        cross_compiler=args.cross_compiler,
        dump_ir=args.dump_ir,
        cache=not args.no_cache,
    )
    report = compile_checkpoint(checkpoint, args.output, options, logging.info)
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in report.seconds.items())
    levels = ", ".join(
        f"{i}: {row['frequency_hz'] / 1e9:g} GHz density {row['density']:.3f}"
        for i, row in enumerate(report.metadata["levels"])
    )
    for name in report.metadata["unmatched"]:
        print(f"{name}: no linear layer was matched, runs dense with its mask")
    logging.info("linked with %s", " ".join(report.compiler))
    print(
        f"{args.output}: {report.bytes / 2**20:.1f} MiB, levels {levels}; seconds: {seconds}"
        + ("; built before, taken from the cache" if report.from_cache else "")
    )


def _by_latency(args: argparse.Namespace) -> tuple[float, ...]:
    """Return the lowest frequency at which each level meets the deadline."""
    from rt3_tvm import device
    from rt3_tvm.energy.latency import latency_model, lowest_frequencies, source_for
    from rt3_tvm.energy.loads import read_facts
    from rt3_tvm.errors import Rt3Error

    if args.deadline <= 0:
        raise Rt3Error("--latency needs --deadline MS: the frequencies follow from both")
    board = device.load(chosen_device(args))
    cluster = (board.with_cluster(args.cluster) if args.cluster else board).cluster
    if not cluster.opps:
        raise Rt3Error(f"--latency: device '{board.name}' shows no operating points: pass --freqs")
    levels = [level.loads for level in read_facts(args.checkpoint).levels]
    model = latency_model(args.latency, max(args.seq_len))
    found = lowest_frequencies(model, levels, [opp.hz for opp in cluster.opps], args.deadline / 1e3)
    print(f"frequencies by latency: {', '.join(map(device.frequency_name, found))}; {source_for(model, cluster.core)}")
    return found
