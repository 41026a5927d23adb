"""``rt3 simulate``."""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from rt3_tvm.cli.options import add_device_options, checked, chosen_device, console, frequencies, numbers
from rt3_tvm.errors import Rt3Error

if TYPE_CHECKING:
    from rt3_tvm.energy.comparison import Comparison, SimulateOptions


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    p = commands.add_parser("simulate", help="what a battery is good for: dense, backbone, and RT3's levels")
    p.add_argument("model", type=Path, nargs="?", metavar="BUNDLE|CKPT")
    p.add_argument("--paper", action="store_true", help="the table that RT3's own constants imply, instead")
    add_simulate_options(p)
    p.add_argument("--json", action="store_true")
    p.set_defaults(drive=drive)


def add_simulate_options(p: argparse.ArgumentParser) -> None:
    """Add the options of a simulation; ``simulate_options`` reads them."""
    from rt3_tvm.energy.battery import parse_battery

    add_device_options(p)
    p.add_argument(
        "--latency",
        default="rt3",
        metavar="rt3|FILE",
        help="RT3's analytic model, or what rt3 bench latency measured; default rt3",
    )
    p.add_argument(
        "--seq-len", type=int, metavar="T", help="tokens of an inference; default the bundle's longest, else 1"
    )
    p.add_argument(
        "--power",
        metavar="FILE|published",
        help="measured watts, or what a publication used; default c f V^2 with the device's figures",
    )
    p.add_argument(
        "--static-power", type=float, metavar="W", help="what the cluster draws besides; default the device's"
    )
    p.add_argument("--cores", type=int, default=1, metavar="N", help="cores busy in an inference; default 1")
    p.add_argument(
        "--battery",
        type=checked(parse_battery),
        default="37800J",
        metavar="J",
        help="37800J, 10.5Wh or 3000mAhx3.85V; default 37800J",
    )
    policy = p.add_mutually_exclusive_group()
    policy.add_argument(
        "--governor",
        default="rt3",
        metavar="NAME",
        help="performance, powersave, ondemand, conservative, schedutil, or rt3: each frequency spends its share; default rt3",
    )
    policy.add_argument("--trace", type=Path, metavar="FILE", help="frequency over time: lines as 3600,1.4GHz")
    p.add_argument(
        "--shares",
        type=numbers(float, "one share per level"),
        default="50,30,20",
        metavar="P,P,P",
        help="%% of the charge by frequency, for rt3; default 50,30,20",
    )
    p.add_argument("--rate", type=float, default=0.0, metavar="R", help="inferences per second; default back to back")
    p.add_argument("--deadline", type=float, default=0.0, metavar="MS", help="deadline of an inference; default none")
    p.add_argument("--hours", type=float, default=math.inf, metavar="H", help="end here although charge is left")
    p.add_argument(
        "--freqs",
        dest="frequencies",
        type=frequencies,
        metavar="F,F,F",
        help="frequencies of the levels; default those the model names, else the device's",
    )
    p.add_argument(
        "--accuracy", type=numbers(float, "accuracies"), metavar="A,A,..", help="of the dense model, then of each level"
    )


def simulate_options(args: argparse.Namespace) -> "SimulateOptions":
    """Return what the options ask for."""
    from rt3_tvm.energy.comparison import SimulateOptions

    return SimulateOptions(
        device=chosen_device(args),
        cluster=args.cluster,
        latency=args.latency,
        tokens=args.seq_len,
        power=args.power,
        static_w=args.static_power,
        cores=args.cores,
        battery_j=args.battery,
        governor=args.governor,
        trace=args.trace,
        shares=tuple(s / 100 for s in args.shares),
        rate=args.rate,
        deadline_s=args.deadline / 1e3,
        hours=args.hours,
        frequencies=args.frequencies,
        accuracy=args.accuracy,
    )


def drive(args: argparse.Namespace) -> None:
    """Run the command."""
    from rt3_tvm.energy.comparison import compare

    if args.paper == (args.model is not None):
        raise Rt3Error("give a checkpoint or a bundle, or --paper: one of the two")
    if args.paper:
        _drive_paper(args.json)
        return
    found = compare(args.model, simulate_options(args))
    if args.json:
        print(json.dumps(found.to_json()))
        return
    _print(found)


def _print(found: "Comparison") -> None:
    from rich.table import Table

    from rt3_tvm.device import frequency_name

    options = found.options
    table = Table(title=f"{found.model.path} on {found.device.name}, cluster {found.device.cluster.name}")
    clocks = " / ".join(map(frequency_name, found.frequencies))
    heads = ("configuration", f"ms at {clocks}", "density", "runs", "over the first", "hours", "missed", "accuracy")
    for head in heads:
        table.add_column(head, justify="left" if head == "configuration" else "right")
    for row in found.rows:
        o = row.outcome
        total = o.runs + o.skipped
        missed = (
            f"{o.missed} ({o.missed / total:.1%})"
            if options.deadline_s and total
            else f"{o.skipped} skipped"
            if options.rate
            else ""
        )
        table.add_row(
            row.name,
            " / ".join(f"{ms:.4g}" for ms in row.latency_ms),
            " / ".join(f"{d:.3f}" for d in row.density),
            f"{o.runs:,}",
            f"{row.ratio:.2f}x",
            f"{o.seconds / 3600:.2f}",
            missed,
            "unknown" if row.accuracy is None else f"{row.accuracy:.4f}",
        )
    console().print(table)
    for what, source in found.sources.items():
        print(f"{what}: {source}")


def _drive_paper(as_json: bool) -> None:
    from rich.table import Table

    from rt3_tvm import rt3
    from rt3_tvm.energy.paper import paper_rows

    rows = paper_rows()
    if as_json:
        print(json.dumps({"rows": [row.to_json() for row in rows]}))
        return
    table = Table(title=f"RT3's language model on {rt3.DEVICE}, {rt3.BATTERY_J:g} J; everything modelled")
    for head in ("configuration", "ms", "sparsity %", "million runs", "over the first"):
        table.add_column(head, justify="left" if head == "configuration" else "right")
    for row in rows:
        ms, sparsity = (
            " / ".join(f"{v:.{d}f}" for v in values)
            for values, d in ((row.latency_ms, 1), ([100 * s for s in row.sparsity], 2))
        )
        table.add_row(row.name, ms, sparsity, f"{row.runs / 1e6:.3f}", f"{row.ratio:.2f}x")
    console().print(table)
