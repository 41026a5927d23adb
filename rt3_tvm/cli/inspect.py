"""``rt3 inspect``."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from rt3_tvm.cli.options import console


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    p = commands.add_parser("inspect", help="say what a checkpoint or a bundle holds")
    p.add_argument("path", type=Path, metavar="CKPT|BUNDLE")
    p.add_argument("--ops", action="store_true", help="run a bundle here and list its kernels by their time")
    p.add_argument("--level", type=int, default=0, metavar="N", help="with --ops: the level; default 0")
    p.add_argument(
        "--seq-len", dest="length", type=int, metavar="T", help="with --ops: length of the input; default the longest"
    )
    p.add_argument("--threads", type=int, default=1, metavar="N", help="with --ops: threads; default 1")
    p.add_argument("--check", action="store_true", help="compare all that it holds with its checksums first")
    p.add_argument("--json", action="store_true")
    p.set_defaults(drive=drive)


def drive(args: argparse.Namespace) -> None:
    """Run the command."""
    from rt3_tvm.report import ops, summary
    from rt3_tvm.runtime.check import check_bundle

    if args.check and not args.path.is_dir():  # a checkpoint is compared whenever it is read
        parts = check_bundle(args.path, for_this_machine=False)
        if not args.json:
            print(f"{args.path}: {len(parts)} sections are as they were linked")
    if args.ops:
        rows = ops.measure_ops(args.path, args.level, args.length, args.threads)
        if args.json:
            print(json.dumps([asdict(row) | {"gflops": row.gflops, "gbytes_per_s": row.gbytes_per_s} for row in rows]))
        else:
            console().print(summary.ops_table(rows))
        return
    facts = summary.describe(args.path)
    if args.json:
        print(json.dumps(facts))
    else:
        for part in summary.tables(facts):
            console().print(part)
