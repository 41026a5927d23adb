"""``rt3 search``."""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rt3_tvm.cli.options import (
    add_device_options,
    add_patterns_option,
    block_shape,
    checked,
    chosen_device,
    console,
    frequencies,
    numbers,
)
from rt3_tvm.errors import Rt3Error, choices

if TYPE_CHECKING:
    from rt3_tvm.search import Found, SearchOptions


@checked
def _ratio_of(text: str) -> tuple[str, float]:
    """Return the glob and the ratio of 'GLOB=S'."""
    glob, _, ratio = text.rpartition("=")
    try:
        return glob, float(ratio)
    except ValueError:
        raise Rt3Error(f"'{text}': give a glob of weights and a ratio, for example '*.query.weight=0.3'") from None


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    p = commands.add_parser(
        "search", help="train a model to a backbone, search pattern sets for each frequency, train all levels jointly"
    )
    p.add_argument(
        "model", nargs="?", help="as rt3 prune takes it; task lm: random-lm, random-lm-small, random-lm-tiny"
    )
    p.add_argument("-o", "--output", type=Path, required=True, metavar="CKPT", help="directory of the checkpoint")
    p.add_argument("--task", metavar="NAME", help="lm, sts, rte, or text (files of text and label)")
    p.add_argument(
        "--data", type=Path, metavar="DIR", help="the task's files; lm without it: the text of Python's help"
    )
    for add in (_add_levels, _add_pruning, _add_training, _add_search, _add_reward, _add_running):
        add(p)
    p.set_defaults(drive=drive)


def _add_levels(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("levels")
    add_device_options(g)
    g.add_argument(
        "--freqs",
        dest="frequencies",
        type=frequencies,
        metavar="F,F,F",
        help="one per level, descending; default three of the device's",
    )
    g.add_argument("--deadline", type=float, default=0.0, metavar="MS", help="of one inference, at every frequency")
    g.add_argument(
        "--sparsity", type=numbers(float, "one sparsity per level"), metavar="S,S,S", help="of each level, not searched"
    )
    g.add_argument("--latency", default="rt3", metavar="rt3|FILE", help="latency model; default rt3")
    g.add_argument("--seq-len", type=int, default=1, metavar="T", help="tokens of an inference, for rt3; default 1")
    g.add_argument("--power", metavar="FILE|published", help="as rt3 simulate takes it")
    g.add_argument("--cores", type=int, default=1, metavar="N", help="cores busy in an inference; default 1")


def _add_pruning(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("block pruning and patterns")
    g.add_argument("--block", default="lasso", metavar="HOW", help="lasso, gradual, one-shot, random; default lasso")
    g.add_argument(
        "--block-sparsity",
        type=float,
        metavar="S",
        help="of the backbone; default the smallest that meets the deadline at the top frequency, else the first level's",
    )
    g.add_argument(
        "--block-sparsity-of",
        type=_ratio_of,
        action="append",
        default=[],
        metavar="GLOB=S",
        help="of some matrices; repeatable",
    )
    g.add_argument("--block-rows", type=int, default=100, metavar="R", help="rows of a block; default 100")
    g.add_argument(
        "--pattern", default="maps", metavar="HOW", help="maps (RT3's), magnitude, random; default maps, refined"
    )
    g.add_argument("--pattern-shape", type=block_shape, default="1x32", metavar="RxC", help="default 1x32")
    g.add_argument(
        "--group", type=numbers(int, "groups V"), default="1", metavar="V,V", help="V to choose from; default 1"
    )
    add_patterns_option(g)
    g.add_argument(
        "--candidates", type=int, default=4, metavar="N", help="sets of each group to choose from; default 4"
    )
    g.add_argument(
        "--grid",
        type=numbers(float, "sparsities"),
        metavar="S,S,..",
        help="sparsities within the backbone to choose from; default RT3's ten, 0.01 to 0.99",
    )
    g.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="weights that stay dense; repeatable")
    g.add_argument("--embeddings", action="store_true", help="prune the tables that tokens look up too")
    g.add_argument("--group-rows", action="store_true", help="put rows beside rows like them, where that is free")


def _add_training(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("training")
    g.add_argument(
        "--epochs",
        type=numbers(int, "four numbers of epochs"),
        default="1,1,1,2",
        metavar="E,E,E,E",
        help="dense, block pruning, backbone, joint; default 1,1,1,2",
    )
    g.add_argument("--epoch-steps", type=int, default=0, metavar="N", help="batches of an epoch; default 0: all")
    g.add_argument("--rate", type=float, metavar="R", help="of dense training; default the task's")
    g.add_argument("--pruned-rate", type=float, metavar="R", help="of what follows dense training; default the task's")
    g.add_argument("--lasso", type=float, default=1e-4, metavar="L", help="strength of the group lasso; default 1e-4")
    g.add_argument(
        "--distillation", type=float, default=0.5, metavar="D", help="share of the dense model's outputs; default 0.5"
    )
    g.add_argument(
        "--unlabelled", type=Path, action="append", default=[], metavar="FILE", help="text to distil on; repeatable"
    )
    g.add_argument(
        "--unlabelled-batches", type=int, default=1, metavar="N", help="for each batch with labels; default 1"
    )
    g.add_argument(
        "--whole-gradients", action="store_true", help="a level's gradient reaches the weights that it masks, too"
    )
    g.add_argument("--at-once", action="store_true", help="full sparsity from the first epoch of joint training on")
    g.add_argument(
        "--level-weights", type=numbers(float, "weights"), default="0.5,0.3,0.2", metavar="W,W,W", help="0.5,0.3,0.2"
    )
    g.add_argument(
        "--precision", default="float32", metavar="P", help="of training: float32, bfloat16; default float32"
    )
    g.add_argument("--alone", action="store_true", help="train each level alone too, to compare with")


def _add_search(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("search")
    g.add_argument("--search", default="rl", metavar="HOW", help="rl, random, evolution, none; default rl")
    g.add_argument("--children", type=int, default=100, metavar="N", help="proposed; default 100")
    g.add_argument("--episode-batch", type=int, default=5, metavar="N", help="proposed at once; default 5")
    g.add_argument("--child-steps", type=int, default=0, metavar="N", help="batches of a child; default 0: an epoch")
    g.add_argument("--controller-hidden", type=int, default=35, metavar="N", help="units; default 35")
    g.add_argument("--controller-rate", type=float, default=0.02, metavar="R", help="default 0.02")
    g.add_argument("--controller-baseline", type=float, default=0.9, metavar="B", help="its memory; default 0.9")
    g.add_argument("--controller-entropy", type=float, default=0.01, metavar="E", help="its weight; default 0.01")


def _add_reward(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("reward")
    g.add_argument("--accuracy-min", type=float, metavar="A", help="RT3's 0.85; default that part of the dense model's")
    g.add_argument("--accuracy-dense", type=float, metavar="A", help="RT3's 0.9745; default measured on validation")
    g.add_argument("--runs-offset", type=float, metavar="N", help="RT3's 2.3e6; default the densest child's in time")
    g.add_argument("--runs-scale", type=float, metavar="N", help="RT3's 2.2e6; default the densest child's in time")
    g.add_argument("--runs-weight", type=float, default=1.0, metavar="W", help="0 leaves energy out; default 1")
    g.add_argument("--order-penalty", type=float, default=0.5, metavar="P", help="default 0.5")
    g.add_argument("--missed-reward", type=float, default=-1.0, metavar="R", help="default -1")
    g.add_argument("--battery", default="37800J", metavar="J", help="default 37800J")
    g.add_argument(
        "--shares", type=numbers(float, "shares"), default="50,30,20", metavar="P,P,P", help="%% of the charge by level"
    )


def _add_running(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("running")
    g.add_argument("--workers", default="in-process", metavar="WHO", help="in-process, ray; default in-process")
    g.add_argument("--ray-address", metavar="ADDR", help="of a Ray cluster; default one of this machine's own")
    g.add_argument("--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="default all cores")
    g.add_argument("--seed", type=int, default=0)
    g.add_argument(
        "--restart",
        nargs="?",
        const="dense",
        metavar="PHASE",
        help="do a phase of an earlier search to CKPT and those after it again, perhaps with other options: dense (all), "
        "blocks, backbone, search, joint; default dense",
    )
    g.add_argument(
        "--report",
        type=Path,
        nargs="?",
        const=Path(),
        metavar="HTML",
        help="draw the search, default CKPT.html; without a model: that of an earlier search, running or ended",
    )
    g.add_argument("--json", action="store_true")


def search_options(args: argparse.Namespace) -> "SearchOptions":
    """Return what the options ask for."""
    from rt3_tvm.energy.battery import parse_battery
    from rt3_tvm.pattern import PatternShape
    from rt3_tvm.search import ControllerOptions, RewardOptions, SearchOptions

    rows, cols = args.pattern_shape
    more: dict[str, Any] = {} if args.grid is None else {"grid": args.grid}
    return SearchOptions(
        task=args.task,
        device=chosen_device(args),
        cluster=args.cluster,
        frequencies=args.frequencies,
        deadline_s=args.deadline / 1e3,
        sparsity=args.sparsity,
        latency=args.latency,
        tokens=args.seq_len,
        power=args.power,
        cores=args.cores,
        block=args.block,
        block_sparsity=args.block_sparsity,
        block_sparsity_of=tuple(args.block_sparsity_of),
        block_rows=args.block_rows,
        pattern=args.pattern,
        shape=PatternShape(rows, cols, 1),
        groups=args.group,
        patterns=args.patterns,
        candidates=args.candidates,
        exclude=tuple(args.exclude),
        embeddings=args.embeddings,
        group_rows=args.group_rows,
        epochs=args.epochs,
        epoch_steps=args.epoch_steps,
        rate=args.rate,
        pruned_rate=args.pruned_rate,
        lasso=args.lasso,
        distillation=args.distillation,
        unlabelled=tuple(args.unlabelled),
        unlabelled_batches=args.unlabelled_batches,
        masked_gradients=not args.whole_gradients,
        gradual=not args.at_once,
        precision=args.precision,
        level_weights=args.level_weights,
        search=args.search,
        children=args.children,
        episode_batch=args.episode_batch,
        child_steps=args.child_steps,
        reward=RewardOptions(
            args.accuracy_min,
            args.accuracy_dense,
            args.runs_offset,
            args.runs_scale,
            args.runs_weight,
            args.order_penalty,
            args.missed_reward,
            parse_battery(args.battery),
            tuple(s / 100 for s in args.shares),
        ),
        controller=ControllerOptions(
            args.controller_hidden, args.controller_rate, args.controller_baseline, args.controller_entropy
        ),
        alone=args.alone,
        threads=args.threads,
        seed=args.seed,
        **more,
    )


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
    from rt3_tvm.search.options import WORKERS

    if args.workers not in WORKERS:
        raise Rt3Error(f"--workers {args.workers}: choose from {choices(WORKERS)}")

    options = search_options(args)
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
