"""What an element type costs: ``python benchmarks/accuracy.py CKPT --data DIR [...]``; prints a Markdown table.

A checkpoint that was trained on a task is compiled in each element type, and every level of it scored on the test split, with
what it loses against its float32 level. Types are written as float32, float16, int8, or int8+FILE: calibrated with a file (see
``rt3 compile --calibrate``). For another machine (``--device``) the host twin of the bundle is scored, which computes the same.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine

from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.codegen import CompileOptions, compile_checkpoint
from rt3_tvm.device.frequencies import parse_frequencies
from rt3_tvm.errors import Rt3Error
from rt3_tvm.runtime import Bundle, load
from rt3_tvm.tasks import TASKS

LENGTHS = (32, 64)
"""Tokens of what the task's batches are padded to; longer sentences are cut off by the task."""


def called(bundle: Bundle, **tokens: Any) -> dict[str, Any]:
    """Return what a model gives, computed by a bundle sentence by sentence; of hidden states the last."""
    names = bundle.metadata["inputs"]
    arrays = {name: value.numpy() for name, value in tokens.items() if name in names}
    rows = range(len(next(iter(arrays.values()))))
    outputs = [bundle(**{name: array[i : i + 1] for name, array in arrays.items()}) for i in rows]
    whole = {name: torch.from_numpy(np.concatenate([o[name] for o in outputs])) for name in outputs[0]}
    return whole | {"hidden_states": [whole["last_hidden_state"]] * 2}


def scores(args: argparse.Namespace, dtype: str, folder: Path) -> list[float]:
    """Return the accuracy of each level in an element type."""
    name, _, calibration = dtype.partition("+")
    checkpoint, path, twin = Checkpoint.load(args.checkpoint), folder / "m.so", folder / "twin.so"
    asked = {"device": args.device, "cluster": args.cluster, "twin": twin if args.device != "host" else None}
    calibrate = Path(calibration) if calibration else None
    options = CompileOptions(**asked, frequencies=args.freqs, lengths=LENGTHS, dtype=(name,), calibrate=calibrate)
    compile_checkpoint(checkpoint, path, options)
    task = TASKS[args.task].load(args.data, checkpoint.dense_model(), checkpoint.tokenizer[0].parent)
    found = []
    with load(twin if args.device != "host" else path) as bundle:
        bundle.set_threads(1)
        for level in range(len(checkpoint.levels)):
            bundle.set_level(level)
            print(f"{dtype}: level {level}", file=sys.stderr, flush=True)
            found.append(task.evaluate(lambda b=bundle, **tokens: called(b, **tokens), args.split)["accuracy"])
    return found


def table(args: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the table."""
    levels = [level.density for level in Checkpoint.load(args.checkpoint).levels]
    yield "| level | density | " + " | ".join(f"{d} | less float32" for d in args.dtypes) + " |"
    yield "|" + "---|" * (2 + 2 * len(args.dtypes))
    columns = []
    for dtype in args.dtypes:
        with tempfile.TemporaryDirectory(prefix="rt3-") as folder:
            columns.append(scores(args, dtype, Path(folder)))
    for i, density in enumerate(levels):
        cells = (f"{column[i]:.4f} | {column[i] - columns[0][i]:+.4f}" for column in columns)
        yield f"| {i} | {density:.4f} | " + " | ".join(cells) + " |"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", default="sts", choices=sorted(TASKS))
    parser.add_argument("--split", default="test")
    parser.add_argument("--device", default="host")
    parser.add_argument("--cluster")
    parser.add_argument(
        "--freqs", type=parse_frequencies, help="of the levels, as of rt3 compile; default the checkpoint's"
    )
    parser.add_argument("--dtypes", default="float32,int8", type=lambda text: text.split(","))
    args = parser.parse_args()
    if args.dtypes[0] != "float32":
        parser.error("the first of --dtypes is what the others are compared with: float32")
    print(f"{args.checkpoint.name}, {args.split} of {args.task}, for {args.device} ({machine()})\n")
    try:
        for line in table(args):
            print(line, flush=True)
    except Rt3Error as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
