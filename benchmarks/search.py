"""What the search is worth: ``python benchmarks/search.py [CASE ...] --work DIR``; prints Markdown tables.

Cases: rl (the controller against random search; --searches adds evolution), parts (BP+PP against rBP+PP and BP+rPP), shared (one
weight for all levels against each alone; gradients masked or whole), lm (RT3's language model, smaller, on a part of WikiText-2,
against dense training for as long), sts and rte (MiniLM on STS-B and on RTE), cost (what V, K and the shape of a block cost on
STS-B).

Every run is one ``rt3 search`` that goes on in DIR where it was stopped. lm, sts, rte and cost need --data: a folder with
wikitext-2, stsb and rte.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from machine import machine

Row = dict[str, Any]
DEVICE = ("--device", "odroid-xu3", "--power", "published")
TINY = ("random-lm-tiny", "--task", "lm", *DEVICE, "--seq-len", 35, "--embeddings", "--block-rows", 64)
TINY_SPARSITY = ("--sparsity", "0.64,0.74,0.80", "--block-sparsity", 0.3, "--search", "none")
RL = (
    *("--epochs", "4,1,1,0", "--deadline", 24, "--block-sparsity", 0.3, "--group", "1,4", "--candidates", 2),
    *("--grid", "0.4,0.45,0.5,0.55,0.6,0.65,0.7,0.75,0.8,0.85", "--child-steps", 15, "--pruned-rate", 2e-3),
)
MINILM = ("minilm", *DEVICE, "--seq-len", 128, "--exclude", "pooler*", "--precision", "bfloat16")
MINILM_LEVELS = ("--sparsity", "0.64,0.74,0.80", "--block-sparsity", 0.125, "--block-rows", 128, "--search", "none")
MINILM_TRAINING = ("--pruned-rate", 4e-4, "--distillation", 0.9, "--level-weights", "0.3,0.3,0.4")


def run(args: argparse.Namespace, name: str, *options: object) -> Row:
    """Run one search to its end, and return its figures."""
    output = args.work / f"{name}.ckpt"
    command = [sys.executable, "-m", "rt3_tvm.cli.main", "search", *options, "-o", output, "--json"]
    begin = time.perf_counter()
    print(f"{name}: rt3 {' '.join(map(str, command[3:]))}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [*map(str, command), "--threads", str(args.threads)], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout) | {"wall_s": time.perf_counter() - begin, "folder": f"{output}.search"}


def _accuracies(figures: Row, split: str = "test") -> list[float]:
    return [row[split]["accuracy"] for row in figures["levels"]]


def _seconds(figures: Row) -> float:
    """Return the seconds of training, over all times that the search was run."""
    return sum(phase["seconds"] for phase in figures["phases"].values())


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def rl(args: argparse.Namespace) -> Iterator[Row]:
    """Yield the best reward after a number of children, by seed, and the mean of all seeds."""
    marks = [n for n in (10, 20, 40, 60, 80, 120) if n <= args.children]
    for how in args.searches:
        best: dict[int, list[float]] = {n: [] for n in marks}
        for seed in range(args.seeds):
            options = (*TINY, *RL, "--search", how, "--children", args.children, "--seed", seed)
            figures = run(args, f"rl-{how}-{seed}", *options)
            rewards = _rewards(Path(figures["folder"]) / "journal.jsonl")
            for n in marks:
                best[n].append(max(rewards[:n]))
            last = statistics.fmean(rewards[-20:])
            yield (
                {"search": how, "seed": seed} | {f"best of {n}": best[n][-1] for n in marks} | {"mean of last 20": last}
            )
        yield (
            {"search": how, "seed": "mean"}
            | {f"best of {n}": statistics.fmean(best[n]) for n in marks}
            | {"mean of last 20": ""}
        )


def _rewards(journal: Path) -> list[float]:
    rows = (json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines())
    return [row["reward"] for row in rows if row.get("kind") == "episode"]


def parts(args: argparse.Namespace) -> Iterator[Row]:
    """Yield test accuracy by level of the two levels of pruning, and with one of them random."""
    cases = {
        "BP+PP": ("--block", "lasso", "--pattern", "magnitude"),
        "rBP+PP": ("--block", "random", "--pattern", "magnitude"),
        "BP+rPP": ("--block", "lasso", "--pattern", "random"),
    }
    base = (*TINY, *TINY_SPARSITY, "--pattern-shape", "1x45", "--epochs", "4,1,1,3")  # 45 divides what each row keeps
    for name, options in cases.items():
        found = [run(args, f"parts-{name}-{s}", *base, *options, "--seed", s) for s in range(args.seeds)]
        yield _by_level(name, found)


def shared(args: argparse.Namespace) -> Iterator[Row]:
    """Yield test accuracy by level of one shared weight, gradients masked or whole, and of each level trained alone."""
    options = (*TINY, *TINY_SPARSITY, "--epochs", "4,1,1,3", "--pattern", "magnitude")
    masked = [run(args, f"shared-masked-{s}", *options, "--alone", "--seed", s) for s in range(args.seeds)]
    yield _by_level("shared, gradients masked", masked)
    whole = [run(args, f"shared-whole-{s}", *options, "--whole-gradients", "--seed", s) for s in range(args.seeds)]
    yield _by_level("shared, whole gradients", whole)
    alone = [[row["alone"]["test"]["accuracy"] for row in f["levels"]] for f in masked]
    dense = _spread([f["dense"]["test"]["accuracy"] for f in masked])
    levels = {f"level {i}": _spread([a[i] for a in alone]) for i in range(len(alone[0]))}
    yield {"what": "each level alone", "dense": dense} | levels | {"densities": ""}


def _by_level(name: str, found: list[Row]) -> Row:
    levels = [_accuracies(f) for f in found]
    rows = {f"level {i}": _spread([x[i] for x in levels]) for i in range(len(levels[0]))}
    densities = " / ".join(f"{row['density']:.3f}" for row in found[0]["levels"])
    return (
        {"what": name, "dense": _spread([f["dense"]["test"]["accuracy"] for f in found])}
        | rows
        | {"densities": densities}
    )


def lm(args: argparse.Namespace) -> Iterator[Row]:
    """Yield RT3's language model, smaller, on WikiText-2: dense training for as long, then three levels."""
    base = (args.lm, "--task", "lm", "--data", _part(args), *DEVICE, "--seq-len", 35, "--embeddings")
    base = (*base, "--precision", "bfloat16")
    levels = ("--sparsity", "0.64,0.74,0.80", "--block-sparsity", 0.25, "--pattern", "magnitude", "--search", "none")
    levels = (*levels, "--pattern-shape", "1x50", "--patterns", "each", "--distillation", args.lm_distillation)
    ours = run(args, "lm-levels", *base, *levels, "--epochs", args.lm_epochs)
    spent = _seconds(ours)
    per_epoch = ours["phases"]["dense"]["seconds"] / len(ours["phases"]["dense"]["loss"])
    epochs = round(spent / per_epoch)
    dense = run(args, f"lm-dense-{epochs}", *base, *levels, "--epochs", f"{epochs},0,0,0")
    reference = max((dense["dense"], ours["dense"]), key=lambda row: row["valid"]["accuracy"])["test"]["accuracy"]
    rows = [("dense, as long", 1.0, dense["dense"], _seconds(dense)), ("dense, teacher", 1.0, ours["dense"], spent)]
    rows += [(f"level {i}", row["density"], row, spent) for i, row in enumerate(ours["levels"])]
    for name, density, row, seconds in rows:
        test = row["test"]
        yield {
            "what": name,
            "density": density,
            "valid accuracy": row["valid"]["accuracy"],
            "test accuracy": test["accuracy"],
            "test perplexity": test["perplexity"],
            "over the better dense": test["accuracy"] / reference - 1.0,
            "s": seconds,
        }


def _part(args: argparse.Namespace) -> Path:
    """Return a folder with the first lines of WikiText-2 to train and validate on, and all of its test split."""
    folder = args.work / f"wikitext-2-{args.lm_part:g}"
    folder.mkdir(exist_ok=True)
    for name, part in (("train", args.lm_part), ("valid", args.lm_part), ("test", 1.0)):
        lines = (args.data / "wikitext-2" / f"{name}.txt").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"{name}.txt").write_text("".join(lines[: round(part * len(lines))]), encoding="utf-8")
    return folder


def sts(args: argparse.Namespace) -> Iterator[Row]:
    """Yield MiniLM on STS-B: the dense fine-tuned model, and three levels from one shared weight."""
    yield from _minilm(args, "sts", "stsb", "3,1,1,7")


def rte(args: argparse.Namespace) -> Iterator[Row]:
    """Yield MiniLM on RTE, the same way."""
    yield from _minilm(args, "rte", "rte", args.rte_epochs)


def _minilm(args: argparse.Namespace, task: str, folder: str, epochs: str) -> Iterator[Row]:
    patterns = ("--pattern", "magnitude", "--pattern-shape", "1x112", "--patterns", "each")
    text = ("--unlabelled", args.data / "wikitext-2" / "train.txt", "--epochs", epochs)
    options = (*MINILM, "--task", task, "--data", args.data / folder, *MINILM_LEVELS, *MINILM_TRAINING)
    figures = run(args, task, *options, *patterns, *text)
    dense = figures["dense"]
    seconds = _seconds(figures)
    for name, density, row in [
        ("dense", 1.0, dense),
        *((f"level {i}", row["density"], row) for i, row in enumerate(figures["levels"])),
    ]:
        valid, test = row["valid"]["accuracy"], row["test"]["accuracy"]
        gap = test - dense["test"]["accuracy"]
        yield {"what": name, "density": density, "valid": valid, "test": test, "test less dense": gap, "s": seconds}


COSTS = (  # V, shape, K; the shapes divide what block pruning leaves of MiniLM's matrices, so that the densities are equal
    (1, "1x112", "each"),
    (2, "2x112", "each"),
    (4, "4x112", "each"),
    (1, "1x112", 1024),
    (1, "1x112", 64),
    (1, "1x112", 4),
    (1, "1x336", "each"),
    (1, "1x28", "each"),
    (1, "96x112", 4),
)


def cost(args: argparse.Namespace) -> Iterator[Row]:
    """Yield what groups, shapes and numbers of patterns cost on STS-B: all trained equally long from one fine-tuned model."""
    for group, shape, count in COSTS:
        options = (*MINILM, "--task", "sts", "--data", args.data / "stsb", *MINILM_LEVELS, *MINILM_TRAINING)
        options = (*options, "--pattern", "magnitude", "--group", group, "--pattern-shape", shape, "--patterns", count)
        length = ("--block", "one-shot", "--epochs", args.cost_epochs)
        figures = run(args, f"cost-{group}-{shape}-{count}", *options, *length)
        row: Row = {"V": group, "block": shape, "K": count}
        for i, level in enumerate(figures["levels"]):
            row |= {f"density {i}": level["density"]}
            row |= {f"valid {i}": level["valid"]["accuracy"], f"test {i}": level["test"]["accuracy"]}
        yield row | {"dense": figures["dense"]["test"]["accuracy"]}


CASES: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "rl": rl,
    "parts": parts,
    "shared": shared,
    "lm": lm,
    "sts": sts,
    "rte": rte,
    "cost": cost,
}


def main() -> None:
    """Run the cases that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help=", ".join(CASES))
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and journals")
    parser.add_argument("--data", type=Path, help="folder with wikitext-2, stsb and rte")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--children", type=int, default=80)
    parser.add_argument("--searches", type=lambda t: t.split(","), default=["rl", "random"], help="of rl")
    parser.add_argument("--lm", default="random-lm-small")
    parser.add_argument("--lm-part", type=float, default=0.25, help="of WikiText-2's training and validation text")
    parser.add_argument("--lm-epochs", default="6,1,1,6")
    parser.add_argument("--lm-distillation", type=float, default=0.5)
    parser.add_argument("--rte-epochs", default="5,1,1,4")
    parser.add_argument("--cost-epochs", default="1,0,0,2")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for name in args.cases or CASES:
        if name in ("lm", "sts", "rte", "cost") and args.data is None:
            parser.error(f"case {name} needs --data: a folder with wikitext-2, stsb and rte")
        print(f"\n## {name} ({machine()}, threads: {args.threads})\n", flush=True)
        head: list[str] = []
        for row in CASES[name](args):
            if list(row) != head:
                head = list(row)
                print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
            print(f"| {' | '.join(_cell(v) for v in row.values())} |", flush=True)


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
