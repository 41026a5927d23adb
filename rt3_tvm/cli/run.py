"""``rt3 run``."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rt3_tvm.cli.options import add_options, checked, console, given
from rt3_tvm.errors import Rt3Error
from rt3_tvm.tune.options import RemoteOptions

if TYPE_CHECKING:
    from rt3_tvm.timing import Timing
    from rt3_tvm.tune.sweep import Sweep

BESIDE = ""
"""What ``--sweep`` without a file is read as: a file beside the bundle."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    from rt3_tvm.device import parse_frequency

    p = commands.add_parser("run", help="run a bundle on inputs from an .npz, here or on a device over RPC")
    p.add_argument("bundle", type=Path)
    p.add_argument("-i", "--inputs", type=Path, metavar="NPZ", help="(batch, length) integers by input name")
    p.add_argument("-o", "--outputs", type=Path, metavar="NPZ", help="where the outputs go")
    which = p.add_mutually_exclusive_group()
    which.add_argument("--freq", type=checked(parse_frequency), metavar="F", help="take the level of this frequency")
    which.add_argument("--level", type=int, metavar="N", help="take this level; default 0")
    which.add_argument(
        "--sweep",
        type=Path,
        nargs="?",
        const=Path(BESIDE),
        metavar="FILE",
        help="instead: time every level, and the dense model, at every frequency that can be set; write the table of latencies "
        "that rt3 search, compile and simulate take; default BUNDLE.latency.json",
    )
    p.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads; default as many as cores, up to what was compiled, of a sweep 1",
    )
    p.add_argument("--print-time", action="store_true", help="print a table of times")
    p.add_argument("--repeat", type=int, default=10, metavar="N", help="rounds to time; default 10")
    p.add_argument("--number", type=int, default=1, metavar="N", help="calls in a round; default 1")
    add_options(p, RemoteOptions)
    p.set_defaults(drive=drive)


def drive(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.sweep is not None:
        _sweep(args)
        return
    if args.inputs is None:
        raise Rt3Error("rt3 run: give inputs, -i NPZ, or --sweep")
    from rt3_tvm.runtime import files

    with _opened(args, given(RemoteOptions, args)) as (bundle, timed):
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
            files.check_rounds(args.repeat, args.number)
            print(files.time_table(timed(inputs, args.repeat, args.number)))


@contextmanager
def _opened(args: argparse.Namespace, options: RemoteOptions) -> Iterator[tuple[Any, "Callable[..., Timing]"]]:
    """Yield the bundle, here or on a device, and what times it with some inputs."""
    if options.rpc_tracker is None:
        from rt3_tvm.runtime import load
        from rt3_tvm.timing import time_calls

        with load(args.bundle) as bundle:
            yield bundle, lambda inputs, *rounds: time_calls(lambda: bundle(**inputs), *rounds)
        return
    from rt3_tvm.tune.remote import RemoteBundle
    from rt3_tvm.tune.session import remote

    with remote(options) as device:
        there = RemoteBundle(device, args.bundle)
        yield there, lambda inputs, *rounds: there.prepared(**inputs).timing(*rounds)
        there.close()


def _sweep(args: argparse.Namespace) -> None:
    import logging

    from rt3_tvm.files import check_target
    from rt3_tvm.tune.session import remote
    from rt3_tvm.tune.sweep import sweep

    if args.inputs is not None or args.outputs is not None or args.print_time:
        raise Rt3Error("--sweep draws its own inputs and prints all times: give no -i, -o or --print-time with it")
    options = given(RemoteOptions, args)
    path = args.bundle.with_suffix(".latency.json") if args.sweep == Path(BESIDE) else args.sweep
    check_target(path)
    with remote(options) as device:
        found = sweep(args.bundle, device, options, args.threads or 1, logging.info)
    _show(found, path)


def _show(found: "Sweep", path: Path) -> None:
    import json

    from rich.table import Table

    from rt3_tvm.device import frequency_name
    from rt3_tvm.files import write_text

    table = Table(title=f"batch {found.batch}, {found.table.tokens} tokens, threads: {found.table.threads}")
    for head in ("clock", "", "density", "median ms", "min", "max"):
        table.add_column(head, justify="right")
    for hz, times in found.times.items():
        for name, t in times.items():
            cells = f"{found.densities[name]:.3f}", f"{t.median:.3f}", f"{t.low:.3f}", f"{t.high:.3f}"
            table.add_row(frequency_name(hz), name, *cells)
    console().print(table)
    for note in found.notes:
        print(note)
    write_text(path, json.dumps(found.table.to_json(), indent=1) + "\n")
    print(f"{path}: {len(found.table.table)} rows, {found.table.source}")
