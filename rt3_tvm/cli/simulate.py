"""``rt3 simulate``."""

import argparse
import json
from pathlib import Path

from rt3_tvm.cli.options import add_device_file, add_options, chosen_device, console, given
from rt3_tvm.energy.comparison import Comparison, SimulateOptions, compare
from rt3_tvm.errors import Rt3Error


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    p = commands.add_parser("simulate", help="what a battery is good for: dense, backbone, and RT3's levels")
    p.add_argument("model", type=Path, nargs="?", metavar="BUNDLE|CKPT")
    p.add_argument("--paper", action="store_true", help="the table that RT3's own constants imply, instead")
    add_options(p, SimulateOptions)
    add_device_file(p)
    p.add_argument("--json", action="store_true")
    p.set_defaults(drive=drive)


def drive(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.paper == (args.model is not None):
        raise Rt3Error("give a checkpoint or a bundle, or --paper: one of the two")
    if args.paper:
        _drive_paper(args.json)
        return
    found = compare(args.model, given(SimulateOptions, args, device=chosen_device(args)))
    if args.json:
        print(json.dumps(found.to_json()))
        return
    _print(found)


def _print(found: Comparison) -> None:
    from rich.table import Table

    from rt3_tvm.device import frequency_name

    options = found.options
    table = Table(title=f"{found.model.path} on {found.device.name}, cluster {found.device.cluster.name}")
    clocks = " / ".join(map(frequency_name, found.frequencies))
    switches = ("switches",) if options.auto else ()
    heads = (
        "configuration",
        f"ms at {clocks}",
        "density",
        "runs",
        "over the first",
        "hours",
        "missed",
        *switches,
        "accuracy",
    )
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
            *(f"{o.switches:,}" for _ in switches),
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
