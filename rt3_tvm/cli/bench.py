"""``rt3 bench``."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rt3_tvm.bench.options import LatencyOptions
from rt3_tvm.cli.options import add_options, checked, console, given
from rt3_tvm.errors import Rt3Error
from rt3_tvm.options import wholes
from rt3_tvm.tune.options import RemoteOptions

if TYPE_CHECKING:
    from rt3_tvm.bench.model import ModelResult


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    p = commands.add_parser("bench", help="measure against dense rivals on this machine")
    what = p.add_subparsers(dest="what", metavar="WHAT", required=True, parser_class=type(p))
    linear = what.add_parser("linear", help="one linear layer, one thread, against the best dense one found here")
    linear.add_argument("--rows", type=int, required=True, metavar="O")
    linear.add_argument("--cols", type=int, required=True, metavar="I")
    linear.add_argument("--tokens", type=int, default=128, metavar="T")
    linear.add_argument("--sparsity", type=float, default=0.75, metavar="S")
    linear.add_argument("--group", type=int, default=4, metavar="V", help="0: our dense kernel")
    linear.add_argument("--dtype", default="float32", help="what our kernel multiplies, with what it takes to convert")
    linear.add_argument("--quads", action="store_true", help="keep columns in fours, four beside each other")
    linear.add_argument("--json", action="store_true")
    linear.set_defaults(drive=drive_linear)
    model = what.add_parser("model", help="every level of a bundle against dense rivals")
    model.add_argument("bundle", type=Path)
    model.add_argument(
        "--against",
        metavar="NAMES",
        help="torch,onnxruntime,openvino,onnxruntime-int8,executorch,executorch-int8; default the first three, where installed; "
        "over RPC it is our own dense model",
    )
    model.add_argument(
        "--seq-len", dest="length", type=int, metavar="T", help="length of the input; default the longest"
    )
    model.add_argument("--threads", type=int, default=1, metavar="N", help="of all contestants; default 1")
    model.add_argument("--json", action="store_true")
    add_options(model, RemoteOptions)
    model.set_defaults(drive=drive_model)
    latency = what.add_parser(
        "latency", help="a table of latencies by shape, group and density, for simulate and search"
    )
    latency.add_argument("model", help="a model as rt3 prune takes it, or a checkpoint")
    latency.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the table, JSON")
    add_options(latency, LatencyOptions)
    latency.set_defaults(drive=drive_latency)
    arm = what.add_parser(
        "arm", help="a bundle for ARM: its instructions, counted under qemu-user, and modelled cycles"
    )
    arm.add_argument("bundle", type=Path)
    arm.add_argument("--level", dest="levels", type=_wholes, metavar="L,L", help="levels to count; default all")
    arm.add_argument(
        "--seq-len", dest="lengths", type=_wholes, metavar="T,T", help="lengths of the input; default those compiled"
    )
    arm.add_argument("--families", action="store_true", help="a row a family, not a kernel")
    arm.add_argument("--json", action="store_true")
    arm.set_defaults(drive=drive_arm)


def _wholes(text: str) -> tuple[int, ...]:
    return checked(wholes("numbers", "N,N").read)(text)


def drive_linear(args: argparse.Namespace) -> None:
    """Run ``rt3 bench linear``."""
    from rt3_tvm.bench.linear import bench_linear
    from rt3_tvm.bench.linear_kernel import LinearCase

    case = LinearCase(args.rows, args.cols, args.tokens, args.sparsity, args.group, args.dtype, args.quads)
    result = bench_linear(case).to_json()
    if args.json:
        print(json.dumps(result))
        return
    print(
        f"{args.rows}x{args.cols}, {args.tokens} tokens, group {args.group}, sparsity {result['sparsity']:.3f}: "
        f"ours in {result['dtype']} {result['ours_ms']:.4f} ms ({result['gflops']:.1f} GFLOP/s of kept weights), "
        f"{result['dense_name']} {result['dense_ms']:.4f} ms, speed-up {result['speedup']:.2f}, "
        f"max abs error {result['max_abs_err']:.1e}"
    )


def drive_model(args: argparse.Namespace) -> None:
    """Run ``rt3 bench model``."""
    from rich.table import Table

    from rt3_tvm.bench.model import bench_model

    against = args.against.split(",") if args.against else None
    options = given(RemoteOptions, args)
    if options.rpc_tracker is None:
        result = bench_model(args.bundle, args.length, against, threads=args.threads)
    else:
        result = _on_device(args, options, against)
    if args.json:
        print(json.dumps(result.to_json()))
        return
    table = Table(title=f"batch {result.batch}, {result.length} tokens, threads: {result.threads}")
    for head in ("", "density", "median ms", "min", "max", *(f"vs {n}" for n in result.rivals)):
        table.add_column(head, justify="right")
    rows = [(f"level {i}", f"{d:.3f}", t) for i, (d, t) in enumerate(zip(result.densities, result.levels, strict=True))]
    rows += [(name, "1.000", t) for name, t in result.rivals.items()]
    for name, density, t in rows:
        ratios = (f"{rival.median / t.median:.2f}x" for rival in result.rivals.values())
        table.add_row(name, density, f"{t.median:.3f}", f"{t.low:.3f}", f"{t.high:.3f}", *ratios)
    console().print(table)


def _on_device(args: argparse.Namespace, options: RemoteOptions, against: list[str] | None) -> "ModelResult":
    import logging

    from rt3_tvm.tune.session import remote
    from rt3_tvm.tune.sweep import DENSE, bench_remote

    if against not in (None, [DENSE]):
        raise Rt3Error(f"--against {args.against}: over RPC the rival is our own dense model: leave it out")
    with remote(options) as device:
        return bench_remote(args.bundle, device, options, args.length, args.threads, logging.info)


def drive_latency(args: argparse.Namespace) -> None:
    """Run ``rt3 bench latency``."""
    import logging

    from rt3_tvm import model as models
    from rt3_tvm.bench.latency import bench_latency
    from rt3_tvm.checkpoint import Checkpoint
    from rt3_tvm.files import write_text

    options = given(LatencyOptions, args)
    path = Path(args.model)
    is_checkpoint = (path / "checkpoint.json").is_file()
    model = Checkpoint.load(path).dense_model() if is_checkpoint else models.load(args.model)
    table = bench_latency(model, options, logging.info)
    write_text(args.output, json.dumps(table.to_json(), indent=1) + "\n")
    rows = [row for row in table.table if row.rows]
    compute, memory = sum(r.compute_s for r in rows), sum(r.memory_s for r in rows)
    print(
        f"{args.output}: {len(rows)} kernels and the rest ({1e3 * table.table[0].compute_s:.2f} ms), {table.source}; "
        f"{memory / (compute + memory):.0%} of the kernels' time is waiting for memory"
    )


def drive_arm(args: argparse.Namespace) -> None:
    """Run ``rt3 bench arm``."""
    import logging

    from rich.box import SIMPLE
    from rich.table import Table

    from rt3_tvm.bench.arm import bench_arm
    from rt3_tvm.bench.arm_report import cells, heads

    ladder = bench_arm(args.bundle, args.levels, args.lengths, progress=logging.info)
    if args.json:
        print(json.dumps(ladder.to_json()))
        return
    for rung in ladder.rungs:
        title = (
            f"level {rung.level}, density {rung.density:.3f}, {rung.length} tokens, batch 1: thousands of instructions"
        )
        table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("family" if args.families else "kernel", no_wrap=True)
        for head in heads(ladder):
            table.add_column(head, justify="right")
        for kernel in rung.families if args.families else rung.kernels:
            table.add_row(kernel.symbol, *cells(kernel, ladder))
        table.add_section()
        table.add_row("all", *cells(rung.whole, ladder))
        console().print(table)
    print(
        f"counted: {ladder.command}; spill: stores to the stack; loops: instructions of inner loops that are such stores"
    )
    print(f"modelled: kcycles by {ladder.model}" if ladder.model else ladder.no_cycles)
