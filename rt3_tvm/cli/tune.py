"""``rt3 tune``."""

import argparse
from pathlib import Path

from rt3_tvm.cli.options import add_device_file, add_options, chosen_device, given
from rt3_tvm.errors import Rt3Error
from rt3_tvm.tune.options import LIST, TuneOptions


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    p = commands.add_parser("tune", help="measure plans of kernels on a device, for rt3 compile")
    p.add_argument("checkpoint", type=Path, nargs="?")
    p.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="folder of the log, CORE.jsonl in it; default tuning_logs/DEVICE",
    )
    p.add_argument(
        "--merge", type=Path, nargs="+", metavar="LOG", help="instead: write the records of logs into -o FILE"
    )
    p.add_argument(
        "--fit", type=Path, metavar="LOG", help="instead: fit the model of the core to a log or a folder of logs"
    )
    add_options(p, TuneOptions)
    add_device_file(p)
    p.set_defaults(drive=drive)


def drive(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.merge:
        _merge(args)
    elif args.fit:
        _fit(args)
    elif args.checkpoint is None:
        raise Rt3Error("rt3 tune: give a checkpoint, or --merge or --fit")
    else:
        _tune(args)


def _tune(args: argparse.Namespace) -> None:
    from rt3_tvm.checkpoint import Checkpoint
    from rt3_tvm.tune.run import Setting, tune
    from rt3_tvm.tune.tasks import tasks_of

    options = given(TuneOptions, args, device=chosen_device(args))
    checkpoint = Checkpoint.load(args.checkpoint)
    if options.tasks == LIST:
        for i, task in enumerate(tasks_of(checkpoint, options, Setting.of(options).device)):
            print(f"{i:3d} {task.share:6.1%} {task.uses:5.1f} calls  {task}")
        return
    report = tune(checkpoint, options, args.output, lambda line: print(line, flush=True))
    for result in report.results:
        ratios = ", ".join(f"{r:.3f}" for r in result.ratios)
        print(f"{result.task}: {ratios} of the untuned time, {result.tried} tried")
    print(
        f"{report.log}: {report.plans} plans measured in {report.seconds:.0f} s ({60 * report.plans / report.seconds:.0f} a "
        f"minute), {report.failed} failed" + ("; the budget is used up" if report.out_of_time else "")
    )


def _fit(args: argparse.Namespace) -> None:
    from rt3_tvm.tune.fit import fit_log

    for line in fit_log(args.fit, given(TuneOptions, args, device=chosen_device(args))):
        print(line)


def _merge(args: argparse.Namespace) -> None:
    from rt3_tvm.tune.log import merge

    if args.output is None:
        raise Rt3Error("--merge: give -o FILE")
    print(f"{args.output}: {merge(args.merge, args.output)} records")
