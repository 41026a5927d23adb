"""``rt3 simulate``."""

import argparse
import json

from rt3_tvm.cli.options import console


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    p = commands.add_parser("simulate", help="what a battery is good for (modelled)")
    p.add_argument("--paper", action="store_true", required=True, help="the table that RT3's own constants imply")
    p.add_argument("--json", action="store_true")
    p.set_defaults(drive=drive)


def drive(args: argparse.Namespace) -> None:
    """Run the command."""
    from rich.table import Table

    from rt3_tvm.hardware.paper import BATTERY_J, DEVICE, paper_rows

    rows = paper_rows()
    if args.json:
        print(json.dumps({"rows": [row.to_json() for row in rows]}))
        return
    table = Table(title=f"RT3's language model on {DEVICE}, {BATTERY_J:g} J; everything modelled")
    for head in ("configuration", "ms", "sparsity %", "million runs", "over the first"):
        table.add_column(head, justify="left" if head == "configuration" else "right")
    for row in rows:
        ms, sparsity = (
            " / ".join(f"{v:.{d}f}" for v in values)
            for values, d in ((row.latency_ms, 1), ([100 * s for s in row.sparsity], 2))
        )
        table.add_row(row.name, ms, sparsity, f"{row.runs / 1e6:.3f}", f"{row.ratio:.2f}x")
    console().print(table)
