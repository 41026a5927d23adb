"""``rt3 search``."""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rt3_tvm.cli.options import add_device_file, add_options, chosen_device, console, given
from rt3_tvm.errors import Rt3Error, choices
from rt3_tvm.search.options import WORKERS, SearchOptions

if TYPE_CHECKING:
    from rt3_tvm.search import Found


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    p = commands.add_parser(
        "search", help="train a model to a backbone, search pattern sets for each frequency, train all levels jointly"
    )
    p.add_argument(
        "model", nargs="?", help="as rt3 prune takes it; task lm: random-lm, random-lm-small, random-lm-tiny"
    )
    p.add_argument("-o", "--output", type=Path, required=True, metavar="CKPT", help="directory of the checkpoint")
    p.add_argument(
        "--data", type=Path, metavar="DIR", help="the task's files; lm without it: the text of Python's help"
    )
    add_options(p, SearchOptions, {"threads": os.cpu_count() or 1})
    add_device_file(p)
    _add_running(p)
    p.set_defaults(drive=drive)


def _add_running(p: argparse.ArgumentParser) -> None:
    p.add_argument("--workers", default="in-process", metavar="WHO", help="in-process, ray; default in-process")
    p.add_argument("--ray-address", metavar="ADDR", help="of a Ray cluster; default one of this machine's own")
    p.add_argument(
        "--restart",
        nargs="?",
        const="dense",
        metavar="PHASE",
        help="do a phase of an earlier search to CKPT and those after it again, perhaps with other options: dense (all), "
        "blocks, backbone, search, joint; default dense",
    )
    p.add_argument(
        "--report",
        type=Path,
        nargs="?",
        const=Path(),
        metavar="HTML",
        help="draw the search, default CKPT.html; without a model: that of an earlier search, running or ended",
    )
    p.add_argument("--json", action="store_true")


def drive(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.report is not None and args.model is None:
        _draw(args)
        return
    if args.model is None or args.task is None:
        raise Rt3Error(
            "give a model and --task NAME: lm, sts, rte or text; or --report alone to draw an earlier search"
        )
    from rt3_tvm.search import Bars, folder_of, search

    if args.workers not in WORKERS:
        raise Rt3Error(f"--workers {args.workers}: choose from {choices(WORKERS)}")

    options = given(SearchOptions, args, device=chosen_device(args))
    if args.report is not None:
        from rt3_tvm.report.figures import pyplot

        pyplot()  # its absence is said before hours of work
    bars = Bars()
    try:
        found = search(
            args.model, options, args.output, args.data, bars, args.workers, args.ray_address, restart=args.restart
        )
    except KeyboardInterrupt:
        if folder_of(args.output).is_dir():
            again = " without --restart" if args.restart else ""
            bars.say(f"stopped: the same command{again} goes on with what is in '{folder_of(args.output)}'")
        raise
    if args.report is not None:
        _draw(args)
    if args.json:
        print(json.dumps(found.figures))
        return
    _print(found, args)


def _draw(args: argparse.Namespace) -> None:
    from rt3_tvm.files import write_text
    from rt3_tvm.report.search_page import write_search_page
    from rt3_tvm.search import folder_of

    path = args.report if args.report != Path() else args.output.with_name(args.output.name + ".html")
    page = write_search_page(folder_of(args.output), args.output)
    write_text(path, page)
    print(f"{path}: {len(page) / 2**20:.2f} MiB")


def _print(found: "Found", args: argparse.Namespace) -> None:
    """Print the levels beside the dense model."""
    from rich.table import Table

    from rt3_tvm.device import frequency_name
    from rt3_tvm.tasks import TASKS

    figures, levels = found.figures, found.checkpoint.levels
    table = Table(title=f"{args.output}: {TASKS[args.task].metric}, seed {args.seed}")
    names = sorted(figures["dense"]["test"], key=lambda n: n != "accuracy")
    heads = ["", "frequency", "ms", "density", *(f"{n}, {s}" for s in ("valid", "test") for n in names)]
    heads += ["alone, test"] if "alone" in figures["levels"][0] else []
    for head in heads:
        table.add_column(head, justify="right")

    def cells(row: dict[str, Any]) -> list[str]:
        return [_cell(row[s][n]) for s in ("valid", "test") for n in names]

    table.add_row("dense", "", "", "1.000", *cells(figures["dense"]))
    for i, (row, level) in enumerate(zip(figures["levels"], levels, strict=True)):
        alone = [_cell(row["alone"]["test"]["accuracy"])] if "alone" in row else []
        clock, ms = frequency_name(level.frequency_hz), f"{row['latency_ms']:.4g}"
        table.add_row(f"level {i}", clock, ms, f"{row['density']:.4f}", *cells(row), *alone)
    console().print(table)


_cell: Callable[[float], str] = "{:.4f}".format
