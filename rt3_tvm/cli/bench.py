"""``rt3 bench``."""

import argparse
import json
from pathlib import Path

from rt3_tvm.bench.options import LatencyOptions
from rt3_tvm.cli.options import add_options, console, given


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
    linear.add_argument("--json", action="store_true")
    linear.set_defaults(drive=drive_linear)
    model = what.add_parser("model", help="every level of a bundle against dense rivals")
    model.add_argument("bundle", type=Path)
    model.add_argument(
        "--against",
        metavar="NAMES",
        help="torch,onnxruntime,openvino,onnxruntime-int8; default what is installed of the fp32 ones",
    )
    model.add_argument(
        "--seq-len", dest="length", type=int, metavar="T", help="length of the input; default the longest"
    )
    model.add_argument("--threads", type=int, default=1, metavar="N", help="of all contestants; default 1")
    model.add_argument("--json", action="store_true")
    model.set_defaults(drive=drive_model)
    latency = what.add_parser(
        "latency", help="a table of latencies by shape, group and density, for simulate and search"
    )
    latency.add_argument("model", help="a model as rt3 prune takes it, or a checkpoint")
    latency.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the table, JSON")
    add_options(latency, LatencyOptions)
    latency.set_defaults(drive=drive_latency)


def drive_linear(args: argparse.Namespace) -> None:
    """Run ``rt3 bench linear``."""
    from rt3_tvm.bench.linear import bench_linear
    from rt3_tvm.bench.linear_kernel import LinearCase

    result = bench_linear(LinearCase(args.rows, args.cols, args.tokens, args.sparsity, args.group)).to_json()
    if args.json:
        print(json.dumps(result))
        return
    print(
        f"{args.rows}x{args.cols}, {args.tokens} tokens, group {args.group}, sparsity {result['sparsity']:.3f}: "
        f"ours {result['ours_ms']:.4f} ms ({result['gflops']:.1f} GFLOP/s of kept weights), "
        f"{result['dense_name']} {result['dense_ms']:.4f} ms, speed-up {result['speedup']:.2f}, "
        f"max abs error {result['max_abs_err']:.1e}"
    )


def drive_model(args: argparse.Namespace) -> None:
    """Run ``rt3 bench model``."""
    from rich.table import Table

    from rt3_tvm.bench.model import bench_model

    against = args.against.split(",") if args.against else None
    result = bench_model(args.bundle, args.length, against, threads=args.threads)
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
