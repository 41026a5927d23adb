"""``rt3 prune``."""

import argparse
import logging
from pathlib import Path

from rt3_tvm.cli.options import add_patterns_option, block_shape, frequencies, numbers


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    p = commands.add_parser("prune", help="prune a model once, by magnitude, to a checkpoint of several levels")
    p.add_argument(
        "model",
        help="a local Hugging Face directory; minilm (real weights, with the extra `demo`); or random weights, for speed: "
        "random-bert, -distilbert, -electra, -gpt2, -llama, -lm, -minilm, -mpnet, -roberta, -tiny, -vit",
    )
    p.add_argument("-o", "--output", type=Path, required=True, metavar="CKPT", help="directory of the checkpoint")
    p.add_argument(
        "--sparsity",
        type=numbers(float, "one sparsity per level"),
        default="0.5,0.75,0.9",
        metavar="S,S,S",
        help="one per level, ascending, in [0, 1); default 0.5,0.75,0.9",
    )
    p.add_argument(
        "--block-sparsity",
        type=float,
        default=0.0,
        metavar="S",
        help="part of its columns that each block row loses for the backbone; default 0",
    )
    p.add_argument(
        "--block-rows",
        type=int,
        default=None,
        metavar="R",
        help="rows of a block in block pruning; default 128, or the next multiple of the group",
    )
    p.add_argument("--pattern-shape", type=block_shape, default="4x32", metavar="RxC", help="default 4x32")
    p.add_argument("--group", type=int, default=4, metavar="V", help="rows that keep the same columns; default 4")
    add_patterns_option(p)
    p.add_argument("--embeddings", action="store_true", help="prune the tables that tokens look up too")
    p.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="weights that stay dense; repeatable")
    p.add_argument(
        "--freqs",
        dest="frequencies",
        type=frequencies,
        metavar="F,F,F",
        help="frequencies of the levels, kept in the checkpoint; default none, rt3 compile chooses",
    )
    p.add_argument(
        "--without-head", action="store_true", help="leave out the head that the model's configuration names"
    )
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(drive=drive)


def drive(args: argparse.Namespace) -> None:
    """Run the command."""
    from rt3_tvm import model as models
    from rt3_tvm.pattern import PatternShape
    from rt3_tvm.prune import PruneOptions, prune_one_shot

    rows, cols = args.pattern_shape
    shape = PatternShape(rows, cols, args.group)
    block_rows = args.block_rows if args.block_rows is not None else -(-128 // args.group) * args.group
    options = PruneOptions(
        sparsity=tuple(args.sparsity),
        block_sparsity=args.block_sparsity,
        shape=shape,
        patterns=args.patterns,
        block_rows=block_rows,
        exclude=tuple(args.exclude),
        embeddings=args.embeddings,
        frequencies=args.frequencies,
        seed=args.seed,
    )
    model = models.load(args.model, not args.without_head)
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
    counts = f"{len(checkpoint.levels[0].matrices)} matrices pruned, {len(checkpoint.skipped)} dense"
    print(f"{args.output}: {type(model).__name__}, {counts}, density by level {densities}")
