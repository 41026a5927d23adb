"""A gate on the code for ARM: ``python benchmarks/arm_counts.py``; instructions of a small model's kernels against a table.

The table stands in docs/results/arm.md, exact, with the versions that it holds for; ``tests/arm/test_counts.py`` fails where a
family of kernels grows by more than 3 %. ``--update-counts`` writes the table anew and says what changed. What it needs is what
``rt3 bench arm`` needs.
"""

import argparse
import math
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import tvm

from rt3_tvm import CompileOptions, PruneOptions, compile, prune
from rt3_tvm.bench.arm import OUTSIDE, RUNTIME, Rung, bench_arm
from rt3_tvm.checkpoint import Checkpoint
from rt3_tvm.pattern import QUAD, PatternShape

PAGE = Path(__file__).parent.parent / "docs/results/arm.md"
BEGIN, END = "<!-- counts: begin -->", "<!-- counts: end -->"
CORES = {
    "A76": ("rk3588", "big0"),
    "A55": ("rk3588", "little"),
    "A53": ("rk3399", "little"),
    "A7": ("odroid-xu3", "LITTLE"),
}
GROUPS = (4, 2, 1)
DTYPES = {"A76": ("float32", "float16", "int8"), "A55": ("float32",), "A53": ("int8",), "A7": ("float32",)}
"""What the linear layers of a core's bundles are computed in: each has rows of its own."""
QUADS = ("A76 int8",)
"""What has rows of levels whose columns are kept in quads too."""
QUAD_GROUPS = (4, 1)
SPARSITY = 0.75
LENGTH = 32
GROWTH = 0.03
ALL = "all kernels"

Counts = dict[str, dict[str, int]]
"""Instructions of an inference by row (core and level) and family."""


def versions() -> str:
    """Return what the counts depend on, beside our own source."""
    return f"TVM {tvm.__version__}, LLVM {tvm.target.codegen.llvm_version_major()}"


def small_checkpoint() -> Checkpoint:
    """Return an encoder of 2 layers and 128 features: a dense level, and one a group V of equal density."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    model = BertModel(BertConfig(vocab_size=500, max_position_embeddings=128, **sizes)).eval()
    dense = prune(model, PruneOptions((0.0,)))
    groups = [prune(model, PruneOptions((SPARSITY,), shape=PatternShape(4, 32, group))) for group in GROUPS]
    return replace(dense, levels=(*dense.levels, *(c.levels[0] for c in groups)))


def in_quads(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint of the same weights with a level of quads for each of QUAD_GROUPS."""
    options = (PruneOptions((SPARSITY,), shape=PatternShape(4, 32, group, QUAD)) for group in QUAD_GROUPS)
    return replace(checkpoint, levels=tuple(prune(checkpoint.dense_model(), o).levels[0] for o in options))


def count(core: str, checkpoint: Checkpoint) -> Counts:
    """Return the counts of a core, in each element type that it has rows of."""
    counts: Counts = {}
    for dtype in DTYPES[core]:
        code = core if dtype == "float32" else f"{core} {dtype}"
        names = (f"{code} dense", *(f"{code} V={group}" for group in GROUPS))
        counts |= {n: _families(rung) for n, rung in zip(names, _rungs(core, checkpoint, dtype), strict=True)}
        if code in QUADS:
            names = tuple(f"{code} V={group} quads" for group in QUAD_GROUPS)
            rungs = _rungs(core, in_quads(checkpoint), dtype)
            counts |= {n: _families(rung) for n, rung in zip(names, rungs, strict=True)}
    return counts


def _rungs(core: str, checkpoint: Checkpoint, dtype: str) -> tuple[Rung, ...]:
    device, cluster = CORES[core]
    options = CompileOptions(device, lengths=(LENGTH,), cluster=cluster, verify=False, dtype=(dtype,))
    with tempfile.TemporaryDirectory(prefix="rt3-") as folder:
        bundle = Path(folder) / "small.so"
        compile(checkpoint, bundle, options)
        return bench_arm(bundle, model_cycles=False).rungs


def _families(rung: Rung) -> dict[str, int]:
    row = {k.symbol: k.instructions for k in rung.families if k.symbol not in (RUNTIME, OUTSIDE)}
    return dict(sorted(row.items())) | {ALL: sum(row.values())}


def written(page: Path = PAGE) -> tuple[str, Counts]:
    """Return the versions and the counts of a page."""
    text = page.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    lines = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("|")]
    found = re.search(r"TVM \S+, LLVM \d+", text)
    if not lines or not found:
        return "", {}
    (_, *heads), _, *rows = ([cell.strip() for cell in line] for line in lines)
    counts = {
        name: {family: int(n.replace(",", "")) for family, n in zip(heads, row, strict=True) if n}
        for name, *row in rows
    }
    return found[0], counts


def write(page: Path, counts: Counts) -> None:
    """Replace the table of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    families = [*sorted({family for row in counts.values() for family in row} - {ALL}), ALL]
    lines = [f"| {' | '.join(['code', *families])} |", "|" + "---|" * (1 + len(families))]
    for name, row in counts.items():
        cells = (f"{row[family]:,}" if family in row else "" for family in families)
        lines.append(f"| {' | '.join([name, *cells])} |")
    table = "\n".join(lines)
    page.write_text(f"{before}{BEGIN}\n{versions()}:\n\n{table}\n{END}{after}", encoding="utf-8")


def changes(before: Counts, now: Counts) -> list[str]:
    """Return a line for each count that differs, what grew most first."""
    found = []
    for name, row in now.items():
        old_row = before.get(name, {})
        for family in old_row | row:
            old, new = old_row.get(family, 0), row.get(family, 0)
            if old != new:
                ratio = new / old if old else math.inf
                part = f"{ratio - 1.0:+.1%}" if old else "new"
                found.append((ratio, f"{name}, {family}: {old:,} to {new:,} ({part})"))
    return [line for _, line in sorted(found, key=lambda pair: -pair[0])]


def grown(before: Counts, now: Counts) -> list[str]:
    """Return a line for each family, and each sum, that grew by more than is allowed.

    A family that is new counts in the sum alone: what it replaces shrank.
    """
    return [
        f"{name}, {family}: {old:,} to {now[name].get(family, 0):,}"
        for name in before.keys() & now.keys()
        for family, old in before[name].items()
        if now[name].get(family, 0) > (1.0 + GROWTH) * old
    ]


def main() -> int:
    """Count, say what differs from the page, and write it where that is asked for; 1 where something grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update-counts", action="store_true", help="write the table anew")
    args = parser.parse_args()
    before_versions, before = written()
    checkpoint = small_checkpoint()
    now: Counts = {}
    for core in CORES:
        print(core, file=sys.stderr)
        now |= count(core, checkpoint)
    if before_versions != versions():
        print(f"the page has {before_versions or 'no counts'}, this is {versions()}")
    print("\n".join(changes(before, now)) or "nothing changed")
    if args.update_counts:
        write(PAGE, now)
        return 0
    return int(bool(grown(before, now)))


if __name__ == "__main__":
    sys.exit(main())
