"""``rt3 run``."""

import argparse
from pathlib import Path

from rt3_tvm.cli.options import checked


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    from rt3_tvm.device import parse_frequency

    p = commands.add_parser("run", help="run a bundle on inputs from an .npz")
    p.add_argument("bundle", type=Path)
    p.add_argument(
        "-i", "--inputs", type=Path, required=True, metavar="NPZ", help="(batch, length) integers by input name"
    )
    p.add_argument("-o", "--outputs", type=Path, metavar="NPZ", help="where the outputs go")
    which = p.add_mutually_exclusive_group()
    which.add_argument("--freq", type=checked(parse_frequency), metavar="F", help="take the level of this frequency")
    which.add_argument("--level", type=int, metavar="N", help="take this level; default 0")
    p.add_argument(
        "--threads", type=int, metavar="N", help="threads; default as many as cores, up to what was compiled"
    )
    p.add_argument("--print-time", action="store_true", help="print a table of times")
    p.add_argument("--repeat", type=int, default=10, metavar="N", help="rounds to time; default 10")
    p.add_argument("--number", type=int, default=1, metavar="N", help="calls in a round; default 1")
    p.set_defaults(drive=drive)


def drive(args: argparse.Namespace) -> None:
    """Run the command."""
    from rt3_tvm.runtime import files, load

    with load(args.bundle) as bundle:
        if args.threads is not None:
            bundle.set_threads(args.threads)
        if args.freq is not None and not bundle.set_frequency(args.freq):
            print(f"{args.freq / 1e9:g} GHz is below the lowest level: took the sparsest, no deadline is guaranteed")
        elif args.level is not None:
            bundle.set_level(args.level)
        inputs = files.read_inputs(args.inputs, bundle.inputs)
        outputs = bundle(**inputs)
        if args.outputs is not None:
            files.write_outputs(args.outputs, outputs)
        for name, value in outputs.items():
            print(f"{name}: {value.dtype} {value.shape}")
        if args.print_time:
            print(files.time_table(lambda: bundle(**inputs), args.repeat, args.number))
