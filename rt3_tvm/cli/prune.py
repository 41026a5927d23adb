"""``rt3 prune``."""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

from rt3_tvm.cli.options import add_options, checked, given
from rt3_tvm.options import wholes
from rt3_tvm.prune.options import PruneOptions


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    p = commands.add_parser("prune", help="prune a model once, by magnitude, to a checkpoint of several levels")
    p.add_argument(
        "model",
        help="a local Hugging Face directory; minilm (real weights, with the extra `demo`); or random weights, for speed: "
        "random-bert, -deberta, -distilbert, -electra, -embeddinggemma, -gpt2, -llama, -lm, -minilm, -modernbert, "
        "-mpnet, -roberta, -tiny, -vit",
    )
    p.add_argument("-o", "--output", type=Path, required=True, metavar="CKPT", help="directory of the checkpoint")
    add_options(p, PruneOptions, {"block_rows": None})  # the next multiple of the group that was given
    p.add_argument("--group", type=int, default=4, metavar="V", help="rows that keep the same columns; default 4")
    p.add_argument(
        "--without-head", action="store_true", help="leave out the head that the model's configuration names"
    )
    p.add_argument(
        "--input-shape",
        type=checked(wholes("the axes behind the batch", "").read),
        metavar="N,N,N",
        help="shape of one image or sound, where the model's configuration leaves it open or for another size: 3,224,224",
    )
    p.set_defaults(drive=drive)


def drive(args: argparse.Namespace) -> None:
    """Run the command."""
    from rt3_tvm import model as models
    from rt3_tvm.prune import prune_one_shot

    group = args.group
    block_rows = -(-PruneOptions.block_rows // group) * group if args.block_rows is None else args.block_rows
    options = given(PruneOptions, args, shape=replace(args.shape, group=group), block_rows=block_rows)
    model = models.load(args.model, not args.without_head)
    if args.input_shape is not None:
        models.give_input_shape(model, args.input_shape)
    checkpoint = prune_one_shot(model, options, models.source_directory(args.model))
    checkpoint.save(args.output)
    for name, reason in checkpoint.skipped.items():
        logging.info("%s stays dense: %s", name, reason)
    narrowed = {n: m for n, m in checkpoint.levels[0].matrices.items() if m.patterns.shape.group != args.group}
    for name, matrix in narrowed.items():
        print(
            f"{name}: group {args.group} does not divide its {matrix.backbone.shape[0]} rows, took {matrix.patterns.shape.group}"
        )
    densities = ", ".join(f"{level.density:.3f}" for level in checkpoint.levels)
    energies = ", ".join(f"{level.energy(checkpoint.weights):.4f}" for level in checkpoint.levels)
    counts = f"{len(checkpoint.levels[0].matrices)} matrices pruned, {len(checkpoint.skipped)} dense"
    print(f"{args.output}: {type(model).__name__}, {counts}, density by level {densities}, kept energy {energies}")
